import os
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as transforms

from losskernel.data.images import ClassFolders, WnidImages, decode, imagenet_wnids, load_images
from losskernel.errors import DataError

TENCH, GOLDFISH, TISSUE = "n01440764", "n01443537", "n15075141"


def add_image(folder, wnid, name, color=(255, 0, 0), size=(32, 24)):
    (folder / wnid).mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 60, (size[1], size[0], 3))
    pixels = np.clip(noise + np.array(color), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / wnid / name)
    return folder / wnid / name


@pytest.fixture
def folder(tmp_path):
    add_image(tmp_path, TISSUE, "b.JPEG")
    add_image(tmp_path, TENCH, "b.png", (0, 255, 0))
    add_image(tmp_path, TENCH, "a.jpg", (0, 0, 255))
    add_image(tmp_path, GOLDFISH, "c.jpeg")
    (tmp_path / TENCH / "notes.txt").write_text("not an image")
    (tmp_path / "README.md").write_text("beside the class folders")
    return tmp_path


def truncate(path, keep=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])


def bmp_of_wrong_bits(path) -> bytes:
    """A bitmap whose header names a compression that there is not, for which Pillow raises."""
    Image.new("RGB", (4, 4)).save(path, "BMP")
    content = bytearray(path.read_bytes())
    content[30] = 77
    return bytes(content)


def test_classes_are_those_of_ilsvrc():
    wnids = imagenet_wnids()
    assert len(wnids) == 1000 and wnids == sorted(wnids)
    assert (wnids[0], wnids[1], wnids[999]) == (TENCH, GOLDFISH, TISSUE)


def test_order_labels_and_names(folder):
    images = WnidImages(folder, transforms.pil_to_tensor)
    names = [f"{TENCH}/a.jpg", f"{TENCH}/b.png", f"{GOLDFISH}/c.jpeg", f"{TISSUE}/b.JPEG"]
    assert images.names.tolist() == names
    assert images.labels.tolist() == [0, 0, 1, 999]
    assert images.wnids.tolist() == [TENCH, TENCH, GOLDFISH, TISSUE]
    image, label = images[1]
    assert image.shape == (3, 24, 32) and label == 0
    assert image[1].float().mean() > 200 > 100 > image[0].float().mean()


def test_per_class_takes_the_first_by_name(folder):
    images = WnidImages(folder, transforms.pil_to_tensor, per_class=1)
    assert images.names.tolist() == [f"{TENCH}/a.jpg", f"{GOLDFISH}/c.jpeg", f"{TISSUE}/b.JPEG"]


def test_loading_all(folder):
    images = WnidImages(folder, lambda image: transforms.pil_to_tensor(image).float())
    inputs, labels = load_images(images)
    assert inputs.shape == (4, 3, 24, 32) and inputs.dtype == torch.float32
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [0, 0, 1, 999]
    assert torch.equal(inputs[3], images[3][0])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_image_becomes_rgb(tmp_path, mode):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    (tmp_path / TENCH).mkdir()
    Image.new(mode, (8, 8)).save(tmp_path / TENCH / name)
    assert WnidImages(tmp_path, transforms.pil_to_tensor)[0][0].shape == (3, 8, 8)


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".tif", ".gif", ".TIFF", ".ppm", ".jp2"])
def test_whatever_pillow_reads_is_an_image(tmp_path, suffix):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 4:] = 255  # what a palette and a lossy format keep
    (tmp_path / TENCH).mkdir()
    Image.fromarray(pixels).save(tmp_path / TENCH / f"a{suffix}")
    found, _ = WnidImages(tmp_path, transforms.pil_to_tensor)[0]
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    assert (found.int() - expected.int()).abs().max() <= 8


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm", ".jp2"])
def test_gray_of_16_bits_has_its_own_brightness(tmp_path, suffix):
    values = np.array([[0, 255, 256], [0x7FFF, 0x8000, 0xFFFF]], np.uint16)
    (tmp_path / TENCH).mkdir()
    Image.fromarray(values).save(tmp_path / TENCH / f"a{suffix}")
    found, _ = WnidImages(tmp_path, transforms.pil_to_tensor)[0]
    expected = torch.tensor([[0, 0, 1], [127, 128, 255]], dtype=torch.uint8)
    assert torch.equal(found, expected.expand(3, 2, 3))


def test_gray_of_12_bits_has_its_own_brightness():
    """A TIFF written by hand: two rows of two values of 12 bits, 0x000 0x7FF and 0x800 0xFFF."""
    tags = {256: 2, 257: 2, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 2, 279: 6}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    rows = bytes.fromhex("0007ff800fff")
    header = struct.pack("<2sHI", b"II", 42, 14) + rows
    image = decode(header + struct.pack("<H", len(tags)) + entries + bytes(4))
    assert np.asarray(image)[..., 0].tolist() == [[0, 127], [128, 255]]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_known_white_are_refused(tmp_path, dtype):
    (tmp_path / TENCH).mkdir()
    Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / TENCH / "a.tif")
    with pytest.raises(DataError, match="a.tif: cannot be decoded .values of mode . have no known"):
        WnidImages(tmp_path, transforms.pil_to_tensor)[0]


def test_linked_folders_and_files_are_followed_but_not_in_circles(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    add_image(elsewhere, "more", "z.png")
    (folder / TENCH / "linked").symlink_to(elsewhere / "more")
    (folder / TENCH / "y.png").symlink_to(elsewhere / "more" / "z.png")
    (folder / TENCH / "circle").symlink_to(folder)
    (folder / "n01484850").symlink_to(elsewhere / "more")
    images = WnidImages(folder, transforms.pil_to_tensor)
    names = images.names[images.folders == TENCH].tolist()
    assert names == [f"{TENCH}/{name}" for name in ("a.jpg", "b.png", "linked/z.png", "y.png")]
    assert images.names[images.folders == "n01484850"].tolist() == ["n01484850/z.png"]


def test_a_class_folder_that_is_a_broken_link_is_named(folder):
    (folder / "n01484850").symlink_to(folder / "nowhere")
    with pytest.raises(DataError, match="n01484850: a link that leads nowhere"):
        WnidImages(folder, transforms.pil_to_tensor)


def test_hidden_files_and_folders_are_no_images_and_no_classes(tmp_path):
    for name in ("Ant", "cat"):
        add_image(tmp_path, name, "a.png")
    before = ClassFolders(tmp_path, transforms.pil_to_tensor)
    add_image(tmp_path, ".ipynb_checkpoints", "a.png")  # sorted first, it would shift every label
    add_image(tmp_path, "cat/.cache", "b.png")
    (tmp_path / "Ant" / "._a.png").write_bytes(b"what a Mac adds")
    images = ClassFolders(tmp_path, transforms.pil_to_tensor)
    assert images.classes == ["Ant", "cat"] and images.labels.tolist() == [0, 1]
    assert images.names.tolist() == before.names.tolist() and images.left_out == []


def test_what_is_left_out_is_named_and_counted(folder, caplog):
    truncate(folder / TENCH / "a.jpg")
    with caplog.at_level("INFO", "losskernel"):
        images = WnidImages(folder, transforms.pil_to_tensor)
        load_images(images, skip_unreadable=True)
    assert images.left_out == ["README.md", f"{TENCH}/notes.txt", f"{TENCH}/a.jpg"]
    assert images.provenance["left_out"] == f"README.md, {TENCH}/notes.txt, {TENCH}/a.jpg (3)"
    assert f"left out, as no images: README.md, {TENCH}/notes.txt (2)" in caplog.text
    assert f"left out, as not readable: {TENCH}/a.jpg (1)" in caplog.text


def test_a_class_does_not_vanish(folder):
    (folder / "n01484850").mkdir()
    (folder / "n01484850" / "a.heic").write_bytes(b"a kind that Pillow does not read")
    with pytest.raises(DataError, match=r"no images in .* n01484850 \(1\), only n01484850/a.heic"):
        WnidImages(folder, transforms.pil_to_tensor)
    (folder / "n01484850" / "a.heic").unlink()
    truncate(add_image(folder, "n01484850", "a.jpg"))
    images = WnidImages(folder, transforms.pil_to_tensor)
    with pytest.raises(DataError, match="none of the images can be decoded of n01484850"):
        load_images(images, skip_unreadable=True)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_a_name_that_could_not_be_saved_is_refused(folder):
    (folder / TENCH / os.fsdecode("caf\xe9.png".encode("latin-1"))).write_bytes(b"")
    with pytest.raises(DataError, match=r"caf\\udce9.png: the name is not UTF-8"):
        WnidImages(folder, transforms.pil_to_tensor)


@pytest.mark.parametrize("skipped", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no picture"),
        lambda path: Image.new("L", (20_000, 20_000)).save(path),  # a decompression bomb
        lambda path: path.write_bytes(bmp_of_wrong_bits(path)),
    ],
    ids=["text", "bomb", "ValueError"],
)
def test_what_pillow_refuses_is_one_line_wherever_it_stands(tmp_path, damage, skipped):
    for name in "abc":
        add_image(tmp_path, TENCH, f"{name}.png")
    damage(tmp_path / TENCH / "a.png")
    images = WnidImages(tmp_path, transforms.pil_to_tensor)
    if skipped:
        assert images.first(skip_unreadable=True).shape == (3, 24, 32)
        assert len(load_images(images, skip_unreadable=True)[0]) == 2
        return
    with pytest.raises(DataError, match="a.png: cannot be decoded .*skip_unreadable") as caught:
        load_images(images)
    assert "\n" not in str(caught.value) and "BytesIO" not in str(caught.value)


def test_images_of_several_sizes_are_named(tmp_path):
    add_image(tmp_path, TENCH, "a.png")
    add_image(tmp_path, TENCH, "b.png", size=(8, 8))
    images = WnidImages(tmp_path, transforms.pil_to_tensor)
    with pytest.raises(DataError, match=r"b.png: becomes \(3, 8, 8\), the first image \(3, 24, 32"):
        load_images(images)


def test_an_image_that_cannot_be_resized_is_named(tmp_path):
    add_image(tmp_path, TENCH, "a.png", size=(1, 500))
    images = WnidImages(tmp_path, lambda image: transforms.resize(image, [0, 8]))
    with pytest.raises(DataError, match=r"a.png: 1 x 500 pixels cannot be preprocessed \("):
        images[0]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nowhere", "nowhere: no such image folder"),
        (".", "holds no images; expected <wnid>/<name>"),
    ],
)
def test_a_folder_without_images(tmp_path, where, message):
    (tmp_path / TENCH).mkdir()
    with pytest.raises(DataError, match=message):
        WnidImages(tmp_path / where, transforms.pil_to_tensor)


@pytest.mark.parametrize("name", ["tench", "n0144076", "n014407640", "N01440764", "n00000001"])
def test_a_folder_that_is_no_class(folder, name):
    add_image(folder, name, "a.png")
    known = " is not one of the model's 1000 classes"
    message = known if name == "n00000001" else ": not named by a wnid such as n01440764"
    with pytest.raises(DataError, match=name + message):
        WnidImages(folder, transforms.pil_to_tensor)


@pytest.mark.parametrize("keep", [0, 0.1, 0.6, 0.95])
@pytest.mark.parametrize("name", [f"{TENCH}/a.jpg", f"{TENCH}/b.png"])
def test_a_truncated_image_is_named_and_skipped_only_when_asked(folder, name, keep):
    truncate(folder / name, keep)
    images = WnidImages(folder, transforms.pil_to_tensor)
    with pytest.raises(DataError, match=f"{name}: cannot be decoded .*skip_unreadable") as caught:
        load_images(images)
    assert "\n" not in str(caught.value)
    inputs, labels = load_images(images, skip_unreadable=True)
    assert len(inputs) == len(images) == 3
    assert labels.tolist() == images.labels.tolist() == [0, 1, 999]
    assert name not in images.names and len(images.wnids) == len(images.paths) == 3


def test_class_folders_of_any_name_are_numbered_as_torchvision_does(tmp_path):
    for name in ("zebra", "Ant", "cat 2"):
        add_image(tmp_path, name, "a.png")
    images = ClassFolders(tmp_path, transforms.pil_to_tensor)
    expected = ImageFolder(tmp_path)
    assert images.classes == expected.classes and images.labels.tolist() == expected.targets
    assert images.names.tolist() == ["Ant/a.png", "cat 2/a.png", "zebra/a.png"]
    other = ClassFolders(tmp_path, transforms.pil_to_tensor, classes=["zebra", "cat 2", "Ant", "x"])
    assert other.labels.tolist() == [2, 1, 0]
    with pytest.raises(DataError, match="zebra: zebra is not one of the model's 2 classes"):
        ClassFolders(tmp_path, transforms.pil_to_tensor, classes=["cat 2", "Ant"])


def test_some_images_at_random(folder):
    images = WnidImages(folder, transforms.pil_to_tensor)
    images.draw(9, np.random.default_rng(0))
    images.draw(None, np.random.default_rng(0))
    assert len(images) == 4
    images.draw(2, np.random.default_rng(0))
    assert len(images) == len(set(images.names)) == 2
    assert [name.split("/")[0] for name in images.names] == images.wnids.tolist()
