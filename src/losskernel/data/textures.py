"""Random textures in place of photographs, to run the whole chain where there are none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from losskernel.data.images import imagenet_wnids
from losskernel.seeds import numpy_generator


def textures(
    classes: int, per_class: int, side: int, seed: int
) -> Iterator[tuple[str, int, Image.Image]]:
    """Class of ImageNet, number within it, and picture, class by class.

    Pictures of a class share a base color, so that there is something to learn, and neighbors mean
    something.
    """
    rng = numpy_generator(seed, "init")
    for wnid in np.array(imagenet_wnids())[rng.choice(1000, classes, replace=False)]:
        color = rng.integers(40, 216, 3)
        for number in range(per_class):
            pixels = np.clip(color + rng.normal(0, 40, (side, side, 3)), 0, 255)
            yield wnid, number, Image.fromarray(pixels.astype(np.uint8))
