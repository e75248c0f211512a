import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as transforms

from losskernel.data.images import ClassFolders, WnidImages, imagenet_wnids, load_images
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


def test_own_classes_set_the_indices(folder):
    images = WnidImages(folder, transforms.pil_to_tensor, classes=[TISSUE, GOLDFISH, TENCH])
    assert images.labels.tolist() == [2, 2, 1, 0]


def test_loading_all(folder):
    images = WnidImages(folder, lambda image: transforms.pil_to_tensor(image).float())
    inputs, labels = load_images(images, progress=False)
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


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such image folder"):
        WnidImages(tmp_path / "nowhere", transforms.pil_to_tensor)


@pytest.mark.parametrize("class_folder", [False, True])
def test_empty_folder(tmp_path, class_folder):
    if class_folder:
        (tmp_path / TENCH).mkdir()
    with pytest.raises(DataError, match="holds no images; expected <wnid>/<name>.JPEG"):
        WnidImages(tmp_path, transforms.pil_to_tensor)


@pytest.mark.parametrize("name", ["tench", "n0144076", "n014407640", "N01440764"])
def test_a_folder_not_named_by_a_wnid(folder, name):
    add_image(folder, name, "a.png")
    with pytest.raises(DataError, match=f"{name}: not named by a wnid such as n01440764"):
        WnidImages(folder, transforms.pil_to_tensor)


def test_a_wnid_that_the_model_does_not_know(folder):
    add_image(folder, "n00000001", "a.png")
    with pytest.raises(DataError, match="n00000001 is not one of the model's 1000 classes"):
        WnidImages(folder, transforms.pil_to_tensor)


@pytest.mark.parametrize("keep", [0, 0.1, 0.6, 0.95])
@pytest.mark.parametrize("name", [f"{TENCH}/a.jpg", f"{TENCH}/b.png"])
def test_a_truncated_image_is_named_and_skipped_only_when_asked(folder, name, keep):
    truncate(folder / name, keep)
    images = WnidImages(folder, transforms.pil_to_tensor)
    with pytest.raises(DataError, match=f"{name}: cannot be decoded .*skip_unreadable") as caught:
        load_images(images, progress=False)
    assert "\n" not in str(caught.value)
    inputs, labels = load_images(images, skip_unreadable=True, progress=False)
    assert len(inputs) == len(images) == 3
    assert labels.tolist() == images.labels.tolist() == [0, 1, 999]
    assert name not in images.names and len(images.wnids) == len(images.paths) == 3


def test_nothing_left_after_skipping(tmp_path):
    truncate(add_image(tmp_path, TENCH, "a.jpg"))
    images = WnidImages(tmp_path, transforms.pil_to_tensor)
    with pytest.raises(DataError, match="none of its images can be decoded"):
        load_images(images, skip_unreadable=True, progress=False)


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
