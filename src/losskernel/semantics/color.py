"""Mean colors of images, and which pairs of images are alike.

Colors are CIELAB coordinates: L* from 0 to 100, a* (green to red) and b* (blue to yellow) from -128
to 127, white point D50 (the connection space of ICC profiles). Distances there are roughly
perceptual: the difference of two colors is ``dE = |Lab - Lab'|``, CIE76 (CIE 15:2018, 8.2.1).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageCms

from losskernel.errors import DataError


@cache
def _srgb_to_lab() -> ImageCms.ImageCmsTransform:
    profiles = (ImageCms.createProfile(space) for space in ("sRGB", "LAB"))
    return ImageCms.buildTransform(*profiles, "RGB", "LAB")


def mean_color(image: Image.Image) -> NDArray[np.float64]:
    """Mean L*, a* and b* over the pixels of an image, ``(3,)``; its values are read as sRGB.

    A pixel is rounded to 100/255 in L* and to 1 in a* and b*; an embedded profile is not looked at.
    """
    lab = ImageCms.applyTransform(image.convert("RGB"), _srgb_to_lab())
    # Bytes: L* scaled to 0..255, a* and b* as signed integers.
    lightness, red, yellow = np.moveaxis(np.asarray(lab), -1, 0)
    parts = (lightness * (100 / 255), red.view(np.int8), yellow.view(np.int8))
    return np.array([part.mean(dtype=float) for part in parts])


def color_differences(colors: ArrayLike) -> NDArray[np.float64]:
    """CIE76 difference of every pair, ``(input, input)``.

    Args:
        colors: ``(input, 3)`` CIELAB coordinates.

    Raises:
        DataError: the colors have another shape or are not finite.
    """
    colors = np.asarray(colors, float)
    if colors.ndim != 2 or colors.shape[1] != 3 or not np.isfinite(colors).all():
        raise DataError(f"colors: shape {colors.shape}; finite L*, a*, b* of each input are needed")
    return np.linalg.norm(colors[:, None] - colors, axis=2)


def closest_pairs(
    differences: NDArray, quantile: float, labels: ArrayLike | None = None
) -> NDArray[np.bool_]:
    """Which pairs of inputs are among the closest ``quantile`` of all pairs.

    Args:
        differences: ``(input, input)``, of color or texture.
        quantile: share of the pairs that counts as alike, between 0 and 1; the chance share of
            alike neighbors.
        labels: ``(input,)``; pairs of equal label are no pairs: neither counted nor alike.

    Returns:
        ``(input, input)``, symmetric, false on the diagonal.

    Raises:
        DataError: ``quantile`` is not between 0 and 1, or there is no pair.
    """
    if not 0 < quantile < 1:
        raise DataError(f"quantile of closest pairs = {quantile} must be between 0 and 1")
    names = np.arange(len(differences)) if labels is None else np.asarray(labels)
    pairs = names[:, None] != names
    if not pairs.any():
        raise DataError("all inputs have one label; at least two are needed to form pairs")
    return pairs & (differences <= np.quantile(differences[pairs], quantile))
