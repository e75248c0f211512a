"""Inception-v1 for small images: the published blocks behind a stem of a quarter of the stride.

The published stem shrinks 224 px to 28 before the first block. Here 64 px become 16, 8 and 4 for
the blocks 3, 4 and 5, as 128 px would there. Channels are those of Table 1 of Szegedy et al. 2015
(arXiv:1409.4842) times a width, rounded up to whole multiples of eight. Local response
normalization is left out; for training, :func:`with_batch_norm` puts a batch normalization behind
every convolution (as Ioffe and Szegedy 2015, arXiv:1502.03167, did with this network), and
:func:`fold_batch_norm` takes it out again without changing the function.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from losskernel.errors import ConfigError
from losskernel.models.inception_v1 import BLOCKS, InceptionBlock


class InceptionSmall(nn.Module):
    """A classifier of small images.

    Input: ``(batch, 3, height, width)`` of about unit variance, 32 px or more; any size works
    because the last pool is global. Output: logits, ``(batch, classes)``.

    Args:
        classes: number of classes.
        width: share of the published channels; 1 is the published network behind its stem.
        dropout: share of the penultimate features that training drops.

    Raises:
        ConfigError: the width is not above 0.
    """

    def __init__(self, classes: int, width: float = 1.0, dropout: float = 0.0):
        super().__init__()
        if width <= 0:
            raise ConfigError(f"width = {width}: give a share of the published channels above 0")

        def scaled(channels: int) -> int:
            return 8 * math.ceil(channels * width / 8)

        first, second = scaled(64), scaled(192)
        self.conv1 = nn.Conv2d(3, first, 5, stride=2, padding=2)
        self.conv2_reduce = nn.Conv2d(first, first, 1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        channels = second
        for name, (_, n1, n3r, n3, n5r, n5, pool) in BLOCKS.items():
            branches = [scaled(number) for number in (n1, n3r, n3, n5r, n5, pool)]
            self.add_module(name, InceptionBlock(channels, *branches))
            n1, _, n3, _, n5, pool = branches
            channels = n1 + n3 + n5 + pool
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as He et al. 2015, arXiv:1502.01852, for ReLU
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features ``(batch, channel)``: the globally averaged last block."""
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(F.relu(self.conv2_reduce(x))))
        x = F.max_pool2d(x, 3, 2, padding=1)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
            if name in ("inception_3b", "inception_4e"):
                x = F.max_pool2d(x, 3, 2, padding=1)
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.features(x)))


def with_batch_norm(model: nn.Module) -> nn.Module:
    """Put a batch normalization behind every convolution of ``model``, in place; returns it."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d):
                layer.bias = None  # the normalization has one
                norm = nn.BatchNorm2d(layer.out_channels)
                parent._modules[name] = nn.Sequential(OrderedDict(conv=layer, norm=norm))
    return model


@torch.no_grad()
def calibrate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of ``model`` to the averages over ``batches``, in place.

    Running averages lag behind the weights, and at initialization they are none at all. The model
    is left in evaluation mode.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average
    model.train()
    for batch in batches:
        model(batch)
    model.eval()
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy of ``model``, in evaluation mode, with its normalizations merged into convolutions.

    The copy computes the same function with plain convolutions, as published. Its weights have the
    scale with which they act: under batch normalization a convolution's weights can be multiplied
    by anything, so that noise of a given size means something else at every step of training.
    """
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Sequential) and [*layer._modules] == ["conv", "norm"]:
                parent._modules[name] = fuse_conv_bn_eval(layer.conv, layer.norm)
    return model
