"""Inception-v1 (GoogLeNet) as published, layer for layer as in the BVLC Caffe release.

Source: Szegedy et al., "Going deeper with convolutions", CVPR 2015 (arXiv:1409.4842), and the
layer names and hyperparameters of BVLC's released network. Unlike torchvision's ``googlenet``
it has local response normalization, true 5x5 branches, biases and no batch norm. Parameter names
are the Caffe layer names, so the published weights load without a translation table.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# name -> (in, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection); Table 1 of the paper.
BLOCKS = {
    "inception_3a": (192, 64, 96, 128, 16, 32, 32),
    "inception_3b": (256, 128, 128, 192, 32, 96, 64),
    "inception_4a": (480, 192, 96, 208, 16, 48, 64),
    "inception_4b": (512, 160, 112, 224, 24, 64, 64),
    "inception_4c": (512, 128, 128, 256, 24, 64, 64),
    "inception_4d": (512, 112, 144, 288, 32, 64, 64),
    "inception_4e": (528, 256, 160, 320, 32, 128, 128),
    "inception_5a": (832, 256, 160, 320, 32, 128, 128),
    "inception_5b": (832, 384, 192, 384, 48, 128, 128),
}


def local_response_norm(x: Tensor, alpha: float = 1e-4, k: float = 1.0) -> Tensor:
    """Across-channel local response normalization with size 5 and beta 0.75.

    ``y_c = x_c / (k + alpha/5 * sum_{|c'-c|<=2} x_{c'}^2)^0.75`` (Krizhevsky et al. 2012).
    The window is a banded 1x1 convolution: :class:`torch.nn.LocalResponseNorm` goes through a 3-D
    average pool and costs a quarter of the network's forward pass.

    Args:
        x: activations, shape ``(batch, channel, height, width)``.

    Returns:
        Normalized activations of the same shape.
    """
    channel = torch.arange(x.shape[1], device=x.device)
    band = ((channel[:, None] - channel).abs() <= 2).to(x.dtype) * (alpha / 5)
    window = F.conv2d(x * x, band[:, :, None, None], torch.full_like(band[0], k))
    root = torch.rsqrt(window)  # d^-0.5; times its own root gives d^-0.75
    return x * (root * torch.sqrt(root))


class InceptionBlock(nn.Module):
    """Four parallel branches (1x1; 3x3; 5x5; 3x3 max pool), concatenated over channels."""

    def __init__(self, channels: int, n1: int, n3r: int, n3: int, n5r: int, n5: int, pool: int):
        super().__init__()
        self.add_module("1x1", nn.Conv2d(channels, n1, 1))
        self.add_module("3x3_reduce", nn.Conv2d(channels, n3r, 1))
        self.add_module("3x3", nn.Conv2d(n3r, n3, 3, padding=1))
        self.add_module("5x5_reduce", nn.Conv2d(channels, n5r, 1))
        self.add_module("5x5", nn.Conv2d(n5r, n5, 5, padding=2))
        self.add_module("pool_proj", nn.Conv2d(channels, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        layer = self._modules
        return torch.cat(
            (
                F.relu(layer["1x1"](x)),
                F.relu(layer["3x3"](F.relu(layer["3x3_reduce"](x)))),
                F.relu(layer["5x5"](F.relu(layer["5x5_reduce"](x)))),
                F.relu(layer["pool_proj"](F.max_pool2d(x, 3, 1, padding=1))),
            ),
            dim=1,
        )


class InceptionV1(nn.Module):
    """The 6,998,552-parameter classifier, without its two auxiliary training heads.

    Input: ``(batch, 3, height, width)``, BGR, 0-255, minus the channel means (104, 117, 123);
    published for 224 px, any size from 64 px works because the last pool is global.
    Output: logits, ``(batch, classes)``. Dropout 0.4 before the classifier acts in training only.
    """

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.add_module("conv1/7x7_s2", nn.Conv2d(3, 64, 7, stride=2, padding=3))
        self.add_module("conv2/3x3_reduce", nn.Conv2d(64, 64, 1))
        self.add_module("conv2/3x3", nn.Conv2d(64, 192, 3, padding=1))
        for name, widths in BLOCKS.items():
            # Caffe writes "inception_3a/3x3.weight": one flat name per convolution.
            self.add_module(name, InceptionBlock(*widths))
        self.dropout = nn.Dropout(0.4)
        self.add_module("loss3/classifier", nn.Linear(1024, classes))

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features: globally averaged output of ``inception_5b``, ``(batch, 1024)``."""
        layer = self._modules
        x = F.relu(layer["conv1/7x7_s2"](x))
        x = local_response_norm(F.max_pool2d(x, 3, 2, ceil_mode=True))
        x = F.relu(layer["conv2/3x3"](F.relu(layer["conv2/3x3_reduce"](x))))
        x = F.max_pool2d(local_response_norm(x), 3, 2, ceil_mode=True)
        for name in BLOCKS:
            x = layer[name](x)
            if name in ("inception_3b", "inception_4e"):
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self._modules["loss3/classifier"](self.dropout(self.features(x)))


@torch.no_grad()
def initialize(model: InceptionV1) -> None:
    """Draw the weights as for training in the BVLC release, from PyTorch's global generator.

    Caffe's "xavier" filler, uniform with variance 1 / fan-in; biases 0.2, those of the classifier
    0. With PyTorch's own initialization the signal dies on its way: images end in logits that
    differ by 1e-5.
    """
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            bound = math.sqrt(3 / layer.weight[0].numel())
            layer.weight.uniform_(-bound, bound)
            layer.bias.fill_(0.2 if isinstance(layer, nn.Conv2d) else 0.0)


def from_caffe_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename ``inception_3a/3x3.weight`` to this module's ``inception_3a.3x3.weight``."""
    return {
        f"{block}.{rest}" if (block := name.partition("/")[0]) in BLOCKS else name: tensor
        for name, tensor in state.items()
        for rest in [name.partition("/")[2]]
    }
