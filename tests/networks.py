"""Small networks that several tests use."""

import torch
from torch import nn

# Settings of the transformer of experiment 1.
ARITHMETIC = {
    "prime": 7,
    "width": 16,
    "heads": 2,
    "mlp_width": 32,
    "depth": 1,
    "shared_operands": True,
    "shared_outputs": False,
}


def convnet(inputs, width=4, memory_format=torch.contiguous_format):
    """Batch norm with statistics of its own and dropout: what tells the modes apart.

    Args:
        inputs: ``(input, channel, 6, 6)``, which the running statistics are of.
        width: channels within.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(inputs.shape[1], width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(16 * width, 4),
    )
    model(inputs)
    return model.to(memory_format=memory_format)
