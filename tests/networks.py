"""Small networks that several tests use, and settings of the experiments."""

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

# An image classifier, and the images that it is shown.
CLASSIFIER = {"model": "timm:test_resnet", "weights": "random", "per_class": None}
CLASSIFIER |= {"max_inputs": None, "skip_unreadable": False, "seed": 0, "device": "cpu"}
# Wrong labels of digits.
DIGITS = {
    "inputs": 120,
    "hidden_widths": [16],
    "training": {"steps": 120, "batch_size": 60, "learning_rate": 0.03, "evaluate_every": 20},
    "shares": [0.05, 0.2],
    "draws": [1, 2],
    "neighbors": 5,
    "pilot": {"n_beta": 10, "rise": 0.1},
    "sampling": {"chains": 2, "draws": 10, "batch_size": 60},
}


def mlp(inputs, width, outputs, seed=0):
    """Two linear layers with a tanh between them; the seed decides the weights."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs))


class Line(nn.Module):
    """Output ``x . w``, the weights at 0."""

    def __init__(self, weights):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(weights))

    def forward(self, x):
        return x @ self.w


class Affine(nn.Module):
    """Output ``M w - c`` with M and c the input: half its square is a quadratic loss in w."""

    def __init__(self, weights):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(weights, dtype=torch.float32))

    def forward(self, x):
        return x[..., :-1] @ self.w - x[..., -1]


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
