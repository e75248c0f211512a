"""Mean colors against published CIELAB values, and which pairs count as similar."""

import numpy as np
import pytest
from PIL import Image

from losskernel.errors import DataError
from losskernel.semantics.color import closest_pairs, color_differences, mean_color


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [  # sRGB primaries and grays at D50 (Bradford), Lindbloom's color calculator
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (54.29, 80.81, 69.89)),
        ((0, 255, 0), (87.82, -79.29, 80.99)),
        ((0, 0, 255), (29.57, 68.30, -112.03)),
    ],
)
def test_a_plain_image_has_the_published_color(rgb, lab):
    # Half a step of the 8-bit encoding, and as much for the profile's rounded primaries.
    found = mean_color(Image.new("RGB", (5, 4), rgb))
    assert np.all(np.abs(found - lab) <= np.array([100 / 255, 1, 1]))


def test_the_mean_is_over_pixels_in_lab_not_in_rgb():
    image = Image.new("RGB", (2, 1), (255, 255, 255))
    image.putpixel((0, 0), (0, 0, 0))
    assert mean_color(image)[0] == pytest.approx(50)  # the mean gray, 127, has L* = 53.4


def test_modes_other_than_rgb_are_read_as_rgb():
    np.testing.assert_array_equal(
        mean_color(Image.new("L", (3, 3), 90)), mean_color(Image.new("RGB", (3, 3), (90, 90, 90)))
    )


def test_differences_are_euclidean_distances():
    found = color_differences([[50, 3, 0], [50, 0, 4], [20, 3, 0]])
    np.testing.assert_allclose(found, [[0, 5, 30], [5, 0, np.sqrt(925)], [30, np.sqrt(925), 0]])


def test_the_similar_share_is_the_quantile_without_pairs_of_equal_label():
    rng = np.random.default_rng(0)
    colors, labels = rng.normal(size=(60, 3)), np.arange(60) // 2
    colors[1::2] = colors[::2]  # images of a label have one color
    similar = closest_pairs(color_differences(colors), 0.1, labels)
    pairs = labels[:, None] != labels
    assert not similar[~pairs].any() and (similar == similar.T).all()
    # The 30 labels make 435 pairs of 8 equal distances each, so shares come in steps of 1 / 435.
    assert similar[pairs].mean() == pytest.approx(0.1, abs=1 / 435)
    distances = color_differences(colors)
    assert distances[similar].max() < distances[pairs & ~similar].min()


@pytest.mark.parametrize(
    ("colors", "quantile", "labels", "words"),
    [
        ([[1, 2]], 0.1, None, "shape"),
        ([[1, 2, np.nan]], 0.1, None, "finite"),
        ([[1, 2, 3], [4, 5, 6]], 1.0, None, "between 0 and 1"),
        ([[1, 2, 3], [4, 5, 6]], 0.1, [7, 7], "one label"),
    ],
)
def test_what_makes_no_pairs_is_refused(colors, quantile, labels, words):
    with pytest.raises(DataError, match=words):
        closest_pairs(color_differences(colors), quantile, labels)
