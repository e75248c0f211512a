"""Energies of edges, on images whose edges are known."""

import numpy as np
import pytest
from PIL import Image

from losskernel.semantics.texture import FAINT, SCALES, SIDE, texture, texture_differences


def stripes(period: float, direction: str) -> Image.Image:
    """A wave of lightness of amplitude 1/4 along x or y, even about the edges of the image."""
    wave = 0.5 + 0.25 * np.cos(2 * np.pi * (np.arange(SIDE) + 0.5) / period)
    image = np.tile(wave, (SIDE, 1))
    return Image.fromarray(np.uint8(np.round(255 * (image if direction == "x" else image.T))))


def test_a_flat_image_has_no_texture():
    np.testing.assert_allclose(texture(Image.new("RGB", (40, 30), "red")), np.log(FAINT))


@pytest.mark.parametrize("period", [10, 20])
def test_a_wave_has_the_energy_of_its_derivative_behind_the_filter(period):
    """The filter damps a wave of frequency f by exp(-(f sigma)^2 / 2); the mean of sin^2 is 1/2."""
    found = np.exp(texture(stripes(period, "x")).reshape(len(SCALES), 4)) - FAINT
    f = 2 * np.pi / period
    expected = [(s * f * 0.25) ** 2 / 2 * np.exp(-((f * s) ** 2)) for s in SCALES]
    # Bytes are rounded, and the derivative is of a filter that is sampled at whole pixels.
    np.testing.assert_allclose(found[:, 0], expected, rtol=0.02, atol=1e-5)
    np.testing.assert_allclose(found[:, 1], 0, atol=1e-9)
    np.testing.assert_allclose(found[:, 2], found[:, 0] / 2, atol=1e-9)  # at 45 degrees


def test_turned_images_change_places_and_sizes_do_not_matter():
    across, down = texture(stripes(10, "x")), texture(stripes(10, "y"))
    np.testing.assert_allclose(across.reshape(-1, 4)[:, 0], down.reshape(-1, 4)[:, 1], atol=1e-9)
    twice = stripes(10, "x").resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(texture(twice), across, atol=0.1)


def test_differences_are_in_standard_deviations():
    found = texture_differences([[0, 5], [2, 5], [4, 5]])  # a standard deviation of (8 / 3)^0.5
    np.testing.assert_allclose(found[0], [0, 2 / (8 / 3) ** 0.5, 4 / (8 / 3) ** 0.5])
