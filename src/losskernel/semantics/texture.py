"""Textures of images: the energy of oriented edges by scale.

First derivatives of a Gaussian, as in the filter banks of Leung and Malik 2001 (IJCV 43, 29), in
four directions at four scales.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

SCALES = (1, 2, 4, 8)  # standard deviations of the filters, in pixels
SIDE = 160  # shorter side, in pixels, that images are brought to before they are filtered
FAINT = 1e-5  # energies far below it count as none; lightness runs from 0 to 1


def texture(image: Image.Image) -> NDArray[np.float64]:
    """Log energies of edges, ``(16,)``, by scale and direction.

    ``log(FAINT + mean (u . grad (G_sigma * L))^2)``: L is the lightness in [0, 1], sigma runs over
    :data:`SCALES`, times which the gradient is taken for scales to compare, and u over the
    directions of 0, 90, 45 and 135 degrees.
    """
    shrunk = SIDE / min(image.size)
    size = [max(SIDE, round(side * shrunk)) for side in image.size]
    lightness = np.asarray(image.convert("L").resize(size, Image.Resampling.BILINEAR)) / 255
    energies = []
    for sigma in SCALES:
        x, y = (sigma * gaussian_filter(lightness, sigma, order) for order in ((0, 1), (1, 0)))
        energies += [np.mean(part**2) for part in (x, y, (x + y) / 2**0.5, (x - y) / 2**0.5)]
    return np.log(np.array(energies) + FAINT)


def texture_differences(textures: ArrayLike) -> NDArray[np.float64]:
    """Distance of every pair, ``(input, input)``, each energy in units of its standard deviation.

    Args:
        textures: ``(input, energy)``, from :func:`texture`.
    """
    textures = np.asarray(textures, float)
    spread = textures.std(axis=0)
    units = np.divide(textures, spread, out=np.zeros_like(textures), where=spread > 0)
    return cdist(units, units)
