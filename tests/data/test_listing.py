import hashlib
import os

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as transforms

from losskernel.data.images import ClassFolders, load_images
from losskernel.data.listing import Manifest, visible_files, write_manifest
from losskernel.errors import DataError, TraceError
from losskernel.experiments.imagenet.kernels import feature_kernel


@pytest.fixture
def folder(tmp_path):
    for name, value in (("ant/a, 1.png", 10), ("ant/b.png", 20), ("cat/c.png", 30)):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), value).save(tmp_path / "images" / name)
    (tmp_path / "images/ant/.hidden.png").write_bytes(b"")
    write_manifest(tmp_path / "images", tmp_path / "manifest.csv")
    return tmp_path


def test_a_manifest_names_every_visible_file_with_size_and_hash(folder):
    rows = (folder / "manifest.csv").read_text().splitlines()
    content = (folder / "images/ant/a, 1.png").read_bytes()
    assert rows[0] == "name,bytes,sha256" and len(rows) == 4
    assert rows[1] == f'"ant/a, 1.png",{len(content)},{hashlib.sha256(content).hexdigest()}'
    read = Manifest.read(folder / "manifest.csv")
    assert list(read.hashes) == ["ant/a, 1.png", "ant/b.png", "cat/c.png"]
    whole = hashlib.sha256((folder / "manifest.csv").read_bytes()).hexdigest()
    assert read.sha256 == whole[:16]


def test_the_manifest_is_that_of_the_content(folder):
    before = (folder / "manifest.csv").read_bytes()
    os.utime(folder / "images/cat/c.png", (1, 1))
    write_manifest(folder / "images", folder / "manifest.csv")
    assert (folder / "manifest.csv").read_bytes() == before


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ant/b.png", "ant/b.png: has changed since the manifest .*manifest.csv; make"),
        ("cat/new.png", "cat/new.png: is not in the manifest"),
    ],
)
def test_an_image_replaced_or_added_since_is_refused_also_where_damage_is_skipped(
    folder, name, message, skip
):
    Image.new("L", (4, 4), 99).save(folder / "images" / name)
    images = ClassFolders(
        folder / "images", transforms.pil_to_tensor, manifest=folder / "manifest.csv"
    )
    with pytest.raises(DataError, match=message):
        load_images(images, skip_unreadable=skip)


def test_images_as_the_manifest_says_are_read_and_tell_of_it(folder):
    images = ClassFolders(
        folder / "images", transforms.pil_to_tensor, manifest=folder / "manifest.csv"
    )
    pixels, _ = load_images(images)
    assert pixels[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert images.provenance["manifest_sha256"] == Manifest.read(folder / "manifest.csv").sha256
    plain = ClassFolders(folder / "images", transforms.pil_to_tensor)
    assert plain.provenance["manifest_sha256"] == ""


def test_another_file_is_no_manifest(folder):
    (folder / "other.csv").write_text("name,score\na,1\n")
    with pytest.raises(DataError, match="other.csv: not the manifest of an image folder"):
        Manifest.read(folder / "other.csv")


def test_features_of_other_images_do_not_meet_a_trace(tmp_path):
    values = {"features": np.array([[1.0, 0.0], [1.0, 1.0]]), "name": np.array(["a", "b"])}
    np.savez(tmp_path / "f.npz", **values, inputs_sha256="of these")
    np.savez(tmp_path / "old.npz", **values)  # from before the file told
    for name in ("f", "old"):
        similarity = feature_kernel(tmp_path / f"{name}.npz", values["name"], "of these")
        np.testing.assert_allclose(similarity, [[1, -1], [-1, 1]])  # of two, centered
    with pytest.raises(TraceError, match="f.npz: made with other images than the kernel"):
        feature_kernel(tmp_path / "f.npz", values["name"], "of others")


def test_files_are_sorted_and_a_circle_of_links_ends(folder):
    (folder / "images/cat/all").symlink_to(folder / "images")
    names = [
        path.relative_to(folder / "images").as_posix() for path in visible_files(folder / "images")
    ]
    assert names == ["ant/a, 1.png", "ant/b.png", "cat/c.png"]
