"""Random crops and flips of images in memory, and what turns their bytes into a network's input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losskernel.errors import ConfigError

# Channel means and standard deviations of ImageNet's pixels in [0, 1], as customary.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalized(pixels: Tensor) -> Tensor:
    """Pixels ``(batch, 3, h, w)`` uint8 as float32 of about zero mean and unit variance.

    In the memory format that convolutions are fastest with, channels last.
    """
    values = pixels.contiguous(memory_format=torch.channels_last).float()
    mean, std = (values.new_tensor(v)[:, None, None] * 255 for v in (MEAN, STD))
    return values.sub_(mean).div_(std)


def center_crop(pixels: Tensor, side: int) -> Tensor:
    """The central ``side`` x ``side`` pixels of images ``(..., h, w)``.

    Raises:
        ConfigError: the images are smaller.
    """
    top, left = (_margin(extent, side) // 2 for extent in pixels.shape[-2:])
    return pixels[..., top : top + side, left : left + side]


def random_crop_flip(pixels: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A random ``side`` x ``side`` crop of each image, mirrored with probability 1/2.

    Args:
        pixels: ``(batch, channel, h, w)``.
        side: of the crop.
        generator: of positions and flips.

    Raises:
        ConfigError: the images are smaller.
    """
    count = len(pixels)
    tops, lefts = (
        torch.randint(_margin(extent, side) + 1, (count,), generator=generator).tolist()
        for extent in pixels.shape[-2:]
    )
    flips = torch.randint(2, (count,), generator=generator).tolist()
    result = pixels.new_empty(count, pixels.shape[1], side, side)
    for i, (top, left, flip) in enumerate(zip(tops, lefts, flips, strict=True)):
        crop = pixels[i, :, top : top + side, left : left + side]
        result[i] = crop.flip(-1) if flip else crop
    return result


class FromPixels(nn.Module):
    """A classifier called with bytes: :func:`normalized` comes before the model.

    So data of many images stay in memory at a quarter of the size. Names of parameters begin with
    ``model.``.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(normalized(pixels))


def _margin(extent: int, side: int) -> int:
    if side > extent:
        raise ConfigError(f"crop = {side} pixels: the images have only {extent}")
    return extent - side
