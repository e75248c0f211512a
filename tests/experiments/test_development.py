"""Training and sampling on a generated archive, and the kernels that come of it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from losskernel.cli import main
from losskernel.data.images import imagenet_wnids
from losskernel.experiments.development import sample as development
from losskernel.gradients.linear_response import gram
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.stored import StoredKernel, square
from losskernel.training.checkpoints import Checkpoint, checkpoint_path

SETTINGS = {
    "image_size": 36,
    "crop": 32,
    "train_per_class": None,
    "device": "cpu",
    "network": {"width": 0.1, "dropout": 0.1},
    "training": {"steps": 6, "batch_size": 16, "learning_rate": 0.003, "warmup": 1},
    "checkpoints": [0, 6],
    "shuffled": {"steps": 2, "checkpoints": [2]},
    "save_every": 4,
    "probe_per_class": 2,
    "calibration_per_class": 3,
    "sampling_seed": 0,
    "gamma": 1e12,
    "rise": 0.05,
    "pairs": 4,
    "groups": 4,
    "width": 10**6,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("development")
    development.generate({"classes": 6, "per_class": 4, "seed": 0}, folder / "a.zip")
    development.train(SETTINGS, folder / "a.zip", 1, folder / "net", folder / "net.csv")
    for step in SETTINGS["checkpoints"]:
        sample(folder, step, folder / "journal")
    return folder


def sample(folder, step, journal, name="{step}", **changes):
    name = name.format(step=step)
    paths = [folder / f"{name}-{rule}.npz" for rule in development.RULES]
    development.sample(
        SETTINGS | changes,
        folder / "a.zip",
        folder / "net",
        "1",
        step,
        journal / name,
        folder / f"{name}.npz",
        paths,
    )
    return paths


def load(path):
    with np.load(path) as stored:
        return dict(stored)


def kernels(folder, step):
    return {rule: StoredKernel.load(folder / f"{step}-{rule}.npz") for rule in development.RULES}


def test_probe_inputs_are_the_first_validation_images_of_each_class(folder):
    kernel = kernels(folder, 6)["fixed"]
    assert kernel.r.shape == (12, 12) and kernel.left_out.shape == (4, 12, 12)
    wnids = kernel.coordinates["wnid"]
    assert (wnids[::2] == wnids[1::2]).all() and (np.sort(wnids) == wnids).all()
    assert np.array(imagenet_wnids())[kernel.coordinates["label"]].tolist() == wnids.tolist()
    # Validation images are written class by class, four each.
    numbers = [
        int(name.rpartition("_")[2].removesuffix(".JPEG")) for name in kernel.coordinates["name"]
    ]
    assert sorted(number % 4 for number in numbers) == [0] * 6 + [1] * 6
    assert kernel.attributes["network"] == "1" and kernel.attributes["step"] == 6


def test_both_rules_share_everything_but_gamma(folder):
    for step in SETTINGS["checkpoints"]:
        found = kernels(folder, step)
        assert found["fixed"].gamma == 1e12 > found["rise"].gamma
        np.testing.assert_array_equal(*(kernel.initial_losses for kernel in found.values()))
        rise, error = found["rise"].rise
        assert abs(rise - 0.05) < 4 * error + 0.01
        accuracy = json.loads(str(load(folder / f"{step}.npz")["accuracy"]))
        assert 0 <= accuracy["top1"] <= accuracy["top5"] <= 1


def test_the_state_is_of_the_kernels_network_and_its_cosines_are_their_limit(folder):
    state, kernel = load(folder / "6.npz"), kernels(folder, 6)["fixed"]
    assert str(state["weights_sha256"]) == kernel.attributes["weights_sha256"]
    assert len(state["features"]) == 12 and len(state["cosine"]) == 12 * 11 / 2
    assert kernel.attributes["linear_share"] > 0.99
    np.testing.assert_allclose(kernel.r, square(state["cosine"], 1.0), atol=0.02)


def test_the_probed_network_is_the_trained_one_without_normalization(folder, tmp_path):
    images = development.load_tiny_imagenet(folder / "a.zip", "train", 3, 36)
    pixels = development.center_crop(images.pixels, 32)
    model = development._network_of(SETTINGS, folder / "net", 6, pixels, images.wnids)
    assert not any("norm" in name for name, _ in model.named_modules())
    shown = development.load_tiny_imagenet(folder / "a.zip", "val", 2, 36)
    data = development.center_crop(shown.pixels, 32).contiguous(), shown.labels
    gradients = per_sample_gradients(
        model, data, tmp_path / "g", engine="sequential", progress=False
    )
    cosine = square(load(folder / "6.npz")["cosine"], 1.0)
    np.testing.assert_allclose(normalize(gram(gradients, progress=False)), cosine, atol=2e-3)


def test_sampling_that_was_cut_short_ends_in_the_same_kernels(folder, tmp_path):
    """Journals of four pairs are extended to six, which leaves the four as they were."""
    sample(folder, 6, tmp_path / "journal", "again")
    paths = sample(folder, 6, tmp_path / "journal", "again", pairs=6)
    for path, rule in zip(paths, development.RULES, strict=True):
        whole, extended = kernels(folder, 6)[rule], StoredKernel.load(path)
        assert extended.attributes["pairs"] == 6
        np.testing.assert_array_equal(extended.losses[:8], whole.losses)


def test_shuffled_labels_are_the_same_images_under_permuted_labels(folder, tmp_path):
    development.train(
        SETTINGS, folder / "a.zip", 1, tmp_path / "net", tmp_path / "net.csv", shuffled=True
    )
    checkpoint = Checkpoint.load(checkpoint_path(tmp_path / "net", 2))
    ours, theirs = (
        json.loads(c.identity)
        for c in (checkpoint, Checkpoint.load(checkpoint_path(folder / "net", 6)))
    )
    assert ours["initialization"] == theirs["initialization"] and ours["data"] != theirs["data"]
    assert ours["settings"]["steps"] == 2
    assert pd.read_csv(tmp_path / "net.csv")["step"].tolist() == [2]


def test_download_by_the_command_line_tells_of_a_missing_checksum(folder, tmp_path, caplog):
    url = (folder / "a.zip").as_uri()
    arguments = ["workflow", "development.sample", "download"]
    arguments += ["--output", str(tmp_path / "b.zip"), "--settings"]
    assert main([*arguments, json.dumps({"url": url, "checksum": None})]) == 0
    digest = hashlib.sha256((folder / "a.zip").read_bytes()).hexdigest()
    assert f"no checksum is configured; write checksum: sha256:{digest}" in caplog.text
    (tmp_path / "b.zip").unlink()
    wrong = json.dumps({"url": url, "checksum": "sha256:" + "0" * 64})
    assert main([*arguments, wrong]) == 1 and not (tmp_path / "b.zip").exists()
