"""Tiny runs of the experiments on labels that are wrong in training."""

import numpy as np
import pandas as pd
import pytest

from losskernel.errors import ConfigError, DataError
from losskernel.experiments.development.sample import generate
from losskernel.experiments.mislabel import memorized, setup
from losskernel.experiments.mislabel.labels import detection
from losskernel.experiments.mislabel.setup import stored_features
from losskernel.gradients.per_sample import gradient_norms
from networks import DIGITS

SETTINGS = DIGITS | {
    "folds": 2,
    "copies": {
        "numbers": [1, 3],
        "inputs_per_number": 5,
        "probes": [{"n_beta": 5, "gamma": 100, "step_size": 5e-3}],
    },
}


@pytest.fixture(scope="module")
def detected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detect")
    files = (folder / "rows.csv", folder / "summary.csv", folder / "scores.npz")
    memorized.on_digits(SETTINGS, *files)
    with np.load(folder / "scores.npz") as stored:
        return pd.read_csv(folder / "rows.csv"), pd.read_csv(folder / "summary.csv"), dict(stored)


def test_every_method_is_measured_on_every_network(detected):
    rows, summary, _ = detected
    assert rows.groupby(["share", "draw"])["method"].nunique().tolist() == [6] * 4
    assert rows["flipped"].unique().tolist() == [6, 24]
    assert (rows["seconds"] > 0).all() and len(summary) == 12
    assert summary["draws"].tolist() == [2] * 12
    means = rows.groupby(["share", "method"], sort=False)["auc"].mean()
    np.testing.assert_allclose(summary["auc"], means)


def test_memorized_labels_along_the_rise(tmp_path):
    chosen = {"share": 0.2, "rises": [1e-3, 0.5], "weight_draws": 300}
    memorized.along_rise(SETTINGS | {"along_rise": chosen}, tmp_path / "rise.csv")
    near, far = pd.read_csv(tmp_path / "rise.csv").itertuples()
    assert (near.target, far.target) == (1e-3, 0.5) and near.gamma > 30 * far.gamma
    assert 0.3 < far.rise < 0.8 and 3e-4 < near.rise < 3e-3
    # Near the trained weights the self-covariance is the squared norm of the gradient.
    limit = []
    for draw in SETTINGS["draws"]:
        problem = setup.digits(120, draw)
        given, flipped = memorized._flipped(problem, 0.2, draw)
        model = setup.fit(SETTINGS, problem, problem.inputs, given, draw).model
        limit.append(detection(gradient_norms(model, (problem.inputs, given)), flipped).auc)
    assert near.auc_self_covariance == pytest.approx(np.mean(limit), abs=0.03)


def test_the_scores_of_the_figure_are_those_of_the_table(detected):
    rows, _, scores = detected
    ours = rows[rows["method"] == "self-covariance"]
    found = [
        detection(k, flipped).auc
        for k, flipped in zip(
            scores["self_covariance"].reshape(4, -1), scores["flipped"].reshape(4, -1), strict=True
        )
    ]
    np.testing.assert_allclose(ours["auc"], found)
    assert (ours["lead"] == 0).all()
    plain = rows[rows["method"] == "loss"]
    np.testing.assert_allclose(plain["lead"].values, ours["auc"].values - plain["auc"].values)


def test_copies_of_flipped_and_of_right_labels(tmp_path):
    memorized.copies(SETTINGS, tmp_path / "rows.csv", tmp_path / "summary.csv")
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert set(rows["gamma"]) == {100, np.inf} and set(rows["kind"]) == {"flipped", "true label"}
    assert (rows.loc[rows["copies"] == 1, "log10_ratio"] == 0).all()
    flipped = rows[rows["kind"] == "flipped"].groupby("copies")["loss"].mean()
    assert flipped[3] < flipped[1]  # what comes three times is learned better
    many = SETTINGS | {"copies": SETTINGS["copies"] | {"inputs_per_number": 31}}
    with pytest.raises(ConfigError, match="124 inputs are more than mislabel.inputs"):
        memorized.copies(many, tmp_path / "r.csv", tmp_path / "s.csv")


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Features of random textures, of an archive made for this."""
    folder = tmp_path_factory.mktemp("tiny")
    sizes = {"train_per_class": 10, "test_per_class": 2}
    generate({"classes": 4, "per_class": 10, "seed": 0}, folder / "tiny.zip")
    model = {"model": "timm:test_resnet", "weights": "random", "image_size": 64, "seed": 0}
    source = {"archive": str(folder / "tiny.zip")}
    memorized.features(model | source | sizes, folder / "features.npz")
    return folder / "features.npz"


def test_features_of_an_archive(features):
    with np.load(features) as stored:
        assert stored["train_features"].shape[0] == 40 and stored["test_features"].shape[0] == 8
        assert stored["train_features"].dtype == np.float16
        assert np.bincount(stored["train_label"]).tolist() == [10] * 4
        assert sorted(stored["wnids"]) == stored["wnids"].tolist()
        assert "weights_sha256" in str(stored["source"])
        without = {name: stored[name] for name in stored if name != "wnids"}
    problem = stored_features(features)
    assert problem.classes == 4 and problem.inputs.square().mean() == pytest.approx(1, rel=1e-5)
    np.savez(features.with_name("other.npz"), **without)
    with pytest.raises(DataError, match="other.npz: lacks wnids"):
        stored_features(features.with_name("other.npz"))


def test_heads_memorize_and_are_measured_as_networks_on_digits_are(tmp_path):
    rng, labels = np.random.default_rng(0), np.arange(40) % 4
    blobs = rng.standard_normal((4, 16))[labels] + 0.5 * rng.standard_normal((40, 16))
    np.savez(
        tmp_path / "features.npz",
        train_features=blobs,
        train_label=labels,
        test_features=blobs[:8],
        test_label=labels[:8],
        wnids=np.array(list("abcd")),
    )
    training = {"steps": 150, "batch_size": 40, "learning_rate": 0.02, "evaluate_every": 20}
    settings = SETTINGS | {"shares": [0.2], "training": training, "hidden_widths": [32]}
    files = [tmp_path / name for name in ("rows.csv", "summary.csv", "scores.npz")]
    memorized.on_features(settings, tmp_path / "features.npz", *files)
    rows = pd.read_csv(files[0])
    assert rows.groupby("draw")["method"].nunique().tolist() == [6, 6]
    assert rows["inputs"].unique() == 40 and rows["classes"].unique() == 4
    assert rows["flipped"].unique() == 8 and (rows["memorized"] == 1).all()
    with np.load(files[2]) as stored:
        flipped = stored["flipped"][0]
    assert (flipped[0] != flipped[1]).any()  # the same images, other flips
