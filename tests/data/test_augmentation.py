import pytest
import torch
from torch import nn

from losskernel.data.augmentation import (
    MEAN,
    STD,
    FromPixels,
    center_crop,
    normalized,
    random_crop_flip,
)
from losskernel.errors import ConfigError

# Each pixel's value tells its image, row and column.
PIXELS = torch.stack(
    [torch.arange(36).reshape(1, 6, 6).repeat(3, 1, 1) + 40 * image for image in range(4)]
).to(torch.uint8)


def test_center_crop():
    assert center_crop(PIXELS, 4)[0, 0].tolist() == [
        [7, 8, 9, 10],
        [13, 14, 15, 16],
        [19, 20, 21, 22],
        [25, 26, 27, 28],
    ]
    assert torch.equal(center_crop(PIXELS, 6), PIXELS)


def test_random_crops_are_crops_or_their_mirror_images_of_the_same_image_in_all_places():
    seen = set()
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        for image, crop in enumerate(random_crop_flip(PIXELS, 4, generator)):
            assert torch.equal(crop[0], crop[1])
            flipped = bool(crop[0, 0, 0] > crop[0, 0, 1])
            shown = crop.flip(-1) if flipped else crop
            top, left = divmod(int(shown[0, 0, 0]) - 40 * image, 6)
            assert torch.equal(shown, PIXELS[image, :, top : top + 4, left : left + 4])
            seen.add((top, left, flipped))
    assert len(seen) == 3 * 3 * 2


def test_a_generator_decides_all():
    crops = [random_crop_flip(PIXELS, 3, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(crops[0], crops[1]) and not torch.equal(crops[0], crops[2])


def test_a_crop_larger_than_the_image():
    for crop in (lambda: center_crop(PIXELS, 7), lambda: random_crop_flip(PIXELS, 7, None)):
        with pytest.raises(ConfigError, match="crop = 7 pixels: the images have only 6"):
            crop()


def test_normalized_pixels_in_channels_last():
    values = normalized(PIXELS)
    assert values.is_contiguous(memory_format=torch.channels_last)
    expected = (PIXELS[2, 1, 3, 4].double() / 255 - MEAN[1]) / STD[1]
    assert values[2, 1, 3, 4].item() == pytest.approx(expected.item(), rel=1e-5)
    assert PIXELS.dtype == torch.uint8 and PIXELS[0, 0, 0, 0] == 0  # not changed in place


def test_a_model_called_with_pixels():
    model = nn.Conv2d(3, 2, 3)
    wrapped = FromPixels(model)
    assert torch.equal(wrapped(PIXELS), model(normalized(PIXELS)))
    assert [name for name, _ in wrapped.named_parameters()] == ["model.weight", "model.bias"]
