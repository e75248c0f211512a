"""The loader on a small archive in the official layout, the folder in it, and the real one."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from losskernel.data.tiny_imagenet import load_tiny_imagenet
from losskernel.errors import DataError

WNIDS = ("n02124075", "n01443537", "n04067472")  # not sorted, as in the official archive


def picture(color, mode="RGB") -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), color).convert(mode).save(encoded, "JPEG", quality=95)
    return encoded.getvalue()


def color(class_number, image_number) -> tuple[int, int, int]:
    return (60 * class_number + 20, 20 * image_number, 100)


@pytest.fixture
def files() -> dict[str, bytes]:
    """Names and contents: 12 training images of each class (the last one gray), 2 to validate."""
    found = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": b"n02124075\tcat"}
    lines = []
    for number, wnid in enumerate(WNIDS):
        for image in range(12):
            name = f"train/{wnid}/images/{wnid}_{image}.JPEG"
            found[name] = picture(color(number, image), "L" if image == 11 else "RGB")
        found[f"train/{wnid}/{wnid}_boxes.txt"] = b"n0_0.JPEG\t0\t0\t1\t1"
    for image in range(6):
        found[f"val/images/val_{image}.JPEG"] = picture(color(image % 3, image))
        lines.append(f"val_{image}.JPEG\t{WNIDS[image % 3]}\t0\t32\t44\t62\n")
    found["val/val_annotations.txt"] = "".join(lines).encode()
    found["test/images/test_0.JPEG"] = b"has no label"
    return found


def archive(folder, files, root="tiny-imagenet-200/"):
    path = folder / "tiny.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(root + name, content)
    return path


def test_training_images_by_class_and_number(tmp_path, files):
    images = load_tiny_imagenet(archive(tmp_path, files), "train")
    assert images.wnids == tuple(sorted(WNIDS))
    assert images.pixels.shape == (36, 3, 64, 64) and images.pixels.dtype == torch.uint8
    assert images.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    numbers = [int(name.rpartition("_")[2].removesuffix(".JPEG")) for name in images.names]
    assert numbers == [*range(12)] * 3  # 10 after 9, not after 1
    means = images.pixels.double().mean((2, 3))
    for row in range(36):
        class_number = WNIDS.index(images.wnids[images.labels[row]])
        expected = color(class_number, row % 12)
        if row % 12 == 11:
            expected = [np.dot([0.299, 0.587, 0.114], expected)] * 3
        np.testing.assert_allclose(means[row], expected, atol=3)  # what JPEG changes


def test_validation_images_have_the_labels_of_the_annotations(tmp_path, files):
    images = load_tiny_imagenet(archive(tmp_path, files), "val")
    pairs = zip(images.names, images.labels, strict=True)
    found = {name: images.wnids[label] for name, label in pairs}
    assert found == {f"val/images/val_{i}.JPEG": WNIDS[i % 3] for i in range(6)}


def test_some_images_a_class_at_another_size(tmp_path, files):
    path = archive(tmp_path, files)
    images = load_tiny_imagenet(path, "train", per_class=2, image_size=40)
    assert images.pixels.shape == (6, 3, 40, 40)
    whole = load_tiny_imagenet(path, "train")
    np.testing.assert_array_equal(images.names, whole.names[[0, 1, 12, 13, 24, 25]])


@pytest.mark.parametrize("inside", [True, False])
def test_an_extracted_folder_is_read_like_the_archive(tmp_path, files, inside):
    path = archive(tmp_path, files)
    with zipfile.ZipFile(path) as zipped:
        zipped.extractall(tmp_path / "extracted")
    folder = tmp_path / "extracted" / ("tiny-imagenet-200" if inside else "")
    for split in ("train", "val"):
        whole = load_tiny_imagenet(path, split)
        found = load_tiny_imagenet(folder, split)
        torch.testing.assert_close(found.pixels, whole.pixels, rtol=0, atol=0)
        np.testing.assert_array_equal(found.names, whole.names)
        torch.testing.assert_close(found.labels, whole.labels)


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        ({"wnids.txt": None}, "train", "has no wnids.txt"),
        ({"wnids.txt": b"cat\n"}, "train", "wnids.txt holds 'cat', which is no wnid"),
        ({"wnids.txt": b"n02124075\n"}, "val", "is of class n01443537, which is not in wnids"),
        ({"wnids.txt": b"n01443537\nn02124075\nn04067472\nn00000001"}, "train", "no images of"),
        ({"val/val_annotations.txt": None}, "val", "val_annotations.txt cannot be read"),
        ({"val/val_annotations.txt": b"val_0.JPEG\n"}, "val", "a line without a name and a wnid"),
        ({"val/images/val_2.JPEG": None}, "val", "val_2.JPEG cannot be read"),
        ({"val/images/val_2.JPEG": b"no picture"}, "val", "val_2.JPEG: cannot be decoded"),
        ({}, "test", "split 'test' is not one of train, val"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, files, change, split, message):
    changed = {name: content for name, content in (files | change).items() if content is not None}
    with pytest.raises(DataError, match=message):
        load_tiny_imagenet(archive(tmp_path, changed), split)


def test_no_archive_and_a_torn_one(tmp_path, files):
    with pytest.raises(DataError, match="no such archive or folder"):
        load_tiny_imagenet(tmp_path / "none.zip", "val")
    path = archive(tmp_path, files)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="not a whole zip archive"):
        load_tiny_imagenet(path, "val")


def test_the_shared_archive(shared_data):
    images = load_tiny_imagenet(shared_data / "tiny-imagenet-200.zip", "val", per_class=2)
    assert len(images.wnids) == 200 and len(images) == 400
    assert images.labels.tolist() == np.repeat(range(200), 2).tolist()
    assert images.pixels.double().std() > 50
