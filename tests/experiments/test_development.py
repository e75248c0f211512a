"""Training and sampling on a generated archive, and the traces that come of it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from losskernel.cli import main
from losskernel.experiments.development import sample as development
from losskernel.gradients.linear_response import gram
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.kernel.control_variate import best_coefficient
from losskernel.trace import LossTrace
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
    "gradient_per_class": 3,
    "calibration_batches": 1,
    "sampling_seed": 0,
    "probe": {"n_beta": 10, "gamma": 1e8, "step_size": 1e-8},
    "pilot": {"rise": 0.05, "inputs": 12, "directions": 2},
    "sampling": {"chains": 2, "draws": 6, "burn_in": 3, "batch_size": 8, "eval_batch_size": 12},
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
    paths = [folder / f"{name}-{rule}.nc" for rule in development.RULES]
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


def test_probe_inputs_are_the_first_validation_images_of_each_class(folder):
    trace = LossTrace.load(folder / "6-fixed.nc")
    assert trace.losses.shape == (2, 6, 12)
    assert trace.coordinate("label").tolist() == np.repeat(range(6), 2).tolist()
    wnids = trace.coordinate("wnid")
    assert (wnids[::2] == wnids[1::2]).all() and (np.sort(wnids) == wnids).all()
    # Validation images are written class by class, four each.
    numbers = [
        int(name.rpartition("_")[2].removesuffix(".JPEG")) for name in trace.coordinate("name")
    ]
    assert sorted(number % 4 for number in numbers) == [0] * 6 + [1] * 6
    assert trace.attributes["network"] == "1" and trace.attributes["step"] == 6


def test_both_rules_share_everything_but_gamma(folder):
    for step in SETTINGS["checkpoints"]:
        traces = {r: LossTrace.load(folder / f"{step}-{r}.nc") for r in development.RULES}
        probes = {rule: json.loads(trace.attributes["probe"]) for rule, trace in traces.items()}
        assert probes["fixed"] == SETTINGS["probe"]
        assert probes["rise"]["n_beta"] == 10
        assert probes["rise"]["gamma"] * probes["rise"]["step_size"] == pytest.approx(1)
        np.testing.assert_array_equal(*(trace.initial_loss for trace in traces.values()))
        found = json.loads(str(load(folder / f"{step}.npz")["accuracy"]))
        assert probes["rise"]["gamma"] == found["pilot_gamma"] < 1e8
        assert found["pilot_rise"] == pytest.approx(0.05, rel=0.2)
        assert 0 <= found["top1"] <= found["top5"] <= 1


def test_the_state_holds_the_gram_matrix_of_the_traces_network(folder):
    state, trace = load(folder / "6.npz"), LossTrace.load(folder / "6-fixed.nc")
    assert str(state["weights_sha256"]) == trace.attributes["weights_sha256"]
    assert state["features"].shape[0] == len(state["norms"]) == 12
    assert len(state["cosine"]) == 12 * 13 / 2
    # In the limit of high localization, variances are squared norms over gamma.
    linear = trace.dataset["linear"].values
    variance = linear.reshape(-1, 12).var(axis=0, ddof=1)
    # eps gamma = 1: stationary variance 1 / gamma / (1 - 1/4).
    expected = state["norms"].astype(float) ** 2 / 1e8 / 0.75
    # 12 correlated draws: the median of 12 ratios is within a factor of two.
    assert 0.5 < np.median(variance / expected) < 2
    assert best_coefficient(trace.losses, linear) == pytest.approx(1, abs=0.1)


def test_the_probed_network_is_the_trained_one_without_normalization(folder, tmp_path):
    images = development.load_tiny_imagenet(folder / "a.zip", "train", 3, 36, progress=False)
    pixels = development.center_crop(images.pixels, 32)
    model = development._network_of(SETTINGS, folder / "net", 6, pixels, 6)
    assert not any("norm" in name for name, _ in model.named_modules())
    shown = development.load_tiny_imagenet(folder / "a.zip", "val", 2, 36, progress=False)
    data = development.center_crop(shown.pixels, 32).contiguous(), shown.labels
    gradients = per_sample_gradients(
        model, data, tmp_path / "g", engine="sequential", progress=False
    )
    norms = load(folder / "6.npz")["norms"]
    np.testing.assert_allclose(np.sqrt(np.diag(gram(gradients, progress=False))), norms, rtol=1e-3)


def test_sampling_that_was_cut_short_ends_in_the_same_traces(folder, tmp_path):
    short = SETTINGS["sampling"] | {"draws": 4}
    sample(folder, 6, tmp_path / "journal", "again", sampling=short)
    paths = sample(folder, 6, tmp_path / "journal", "again")
    for path, rule in zip(paths, development.RULES, strict=True):
        whole, resumed = LossTrace.load(folder / f"6-{rule}.nc"), LossTrace.load(path)
        assert resumed.attributes["resumed_draws"] == 4
        for name in ("loss", "linear"):
            np.testing.assert_array_equal(whole.dataset[name], resumed.dataset[name])


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
