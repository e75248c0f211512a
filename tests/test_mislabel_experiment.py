"""Tiny runs of the experiment on digits, and the ranking of a user's own trace."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from losskernel import LossTrace, self_covariance
from losskernel.cli import main
from losskernel.experiments import mislabel
from losskernel.mislabel import detection

SETTINGS = {
    "inputs": 120,
    "hidden_widths": [16],
    "training": {"steps": 120, "batch_size": 60, "learning_rate": 0.03, "evaluate_every": 20},
    "shares": [0.05, 0.2],
    "draws": [1, 2],
    "folds": 2,
    "neighbors": 5,
    "pilot": {"n_beta": 0, "rise": 0.1},
    "sampling": {"chains": 2, "draws": 10, "batch_size": 60},
    "copies": {
        "numbers": [1, 3],
        "inputs_per_number": 5,
        "probes": [{"n_beta": 0, "gamma": 100, "step_size": 5e-3}],
    },
}


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Two cats, two dogs, and a dog called a cat, learned against the dogs."""
    rng = np.random.default_rng(0)
    cat, dog = rng.standard_normal((2, 1, 400))
    losses = np.stack([cat, cat, dog, dog, 4 * (0.2 * cat - dog)], axis=2)
    losses += 0.1 * rng.standard_normal(losses.shape) + 5
    names = {"name": np.array(list("abcde")), "label": np.array("cat cat dog dog cat".split())}
    path = tmp_path_factory.mktemp("trace") / "trace.nc"
    LossTrace.build(losses, np.arange(5.0), losses.mean(2), None, names).save(path)
    return path


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def ranking(trace, *options) -> pd.DataFrame:
    output = trace.with_name("ranking.csv")
    assert run("mislabel", "rank", "--trace", trace, "--output", output, "--k", 2, *options) == 0
    return pd.read_csv(output)


def test_a_wrong_label_comes_first_with_the_label_of_the_inputs_opposed_to_it(trace):
    first = ranking(trace).iloc[0]
    assert (first["rank"], first["name"], first["given_label"]) == (1, "e", "cat")
    assert first["suggested_label"] == "dog" and first["share_of_votes"] == pytest.approx(1)
    assert set(first["opposed"].split(" | ")) == {"c", "d"}
    assert first["opposed_labels"] == "dog | dog"
    assert set(first["nearest"].split(" | ")) == {"a", "b"}
    assert first["score"] == pytest.approx(self_covariance(LossTrace.load(trace).losses)[4])


def test_a_ranking_by_another_score(trace):
    table = ranking(trace, "--score", "initial_loss")
    assert table["score"].tolist() == [4, 3, 2, 1, 0] == table["initial_loss"].tolist()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--score", "luck"), "score: 'luck' is not one of self_covariance, mean_loss, initial"),
        (("--label", "species"), "the trace has no 'species'"),
    ],
)
def test_an_unknown_score_or_label_is_named(trace, tmp_path, capsys, option, message):
    output = tmp_path / "ranking.csv"
    assert run("mislabel", "rank", "--trace", trace, "--output", output, *option) == 1
    assert message in capsys.readouterr().err and not output.exists()


def test_a_folder_of_images_is_ranked_by_the_names_of_its_class_folders(tmp_path):
    rng = np.random.default_rng(0)
    for wnid in ("n01440764", "n01443537"):
        (tmp_path / "images" / wnid).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / wnid / f"{number}.png")
    settings = {
        "model": "timm:test_resnet",
        "weights": "random",
        "image_folder": str(tmp_path / "images"),
        "image_size": 64,
        "per_class": None,
        "max_inputs": None,
        "skip_unreadable": False,
        "seed": 0,
        "probe": {"n_beta": 10, "gamma": 1e4, "step_size": 1e-5},
        "sampling": {"chains": 1, "draws": 4, "batch_size": 2, "eval_batch_size": 4},
    }
    output = tmp_path / "ranking.csv"
    files = ("--output", output, "--output-trace", tmp_path / "t.nc", "--journal", tmp_path / "j")
    assert run("mislabel", "folder", "--settings", json.dumps(settings), "--k", 1, *files) == 0
    table = pd.read_csv(output)
    assert sorted(table["name"])[0] == "n01440764/0.png" and len(table) == 4
    np.testing.assert_array_equal(table["given_label"], table["name"].str.split("/").str[0])
    assert table["score"].is_monotonic_decreasing


@pytest.fixture(scope="module")
def detected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detect")
    mislabel.detect(SETTINGS, folder / "rows.csv", folder / "summary.csv", folder / "scores.npz")
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


def test_wrong_labels_at_probe_time_only(tmp_path):
    mislabel.probe_time(SETTINGS, tmp_path / "rows.csv", tmp_path / "s.csv", tmp_path / "s.npz")
    rows = pd.read_csv(tmp_path / "rows.csv").set_index(["share", "draw"])
    with np.load(tmp_path / "s.npz") as stored:
        k, flipped = stored["self_covariance"][1, 0], stored["flipped"][1, 0]
    row = rows.loc[(0.2, 1)]
    assert flipped.sum() == 24 == row["flipped"]
    assert row["ratio"] == pytest.approx(k[flipped].mean() / k[~flipped].mean())
    # The network never saw these labels: they are far from what it learned.
    assert row["auc_loss"] > 0.9 and row["auc"] > 0.8 and row["ratio"] > 1


def test_copies_of_flipped_and_of_right_labels(tmp_path):
    mislabel.copies(SETTINGS, tmp_path / "rows.csv", tmp_path / "summary.csv")
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert set(rows["gamma"]) == {100, np.inf} and set(rows["kind"]) == {"flipped", "true label"}
    assert (rows.loc[rows["copies"] == 1, "log10_ratio"] == 0).all()
    flipped = rows[rows["kind"] == "flipped"].groupby("copies")["loss"].mean()
    assert flipped[3] < flipped[1]  # what comes three times is learned better
    many = SETTINGS | {"copies": SETTINGS["copies"] | {"inputs_per_number": 31}}
    with pytest.raises(mislabel.ConfigError, match="124 inputs are more than mislabel.inputs"):
        mislabel.copies(many, tmp_path / "r.csv", tmp_path / "s.csv")
