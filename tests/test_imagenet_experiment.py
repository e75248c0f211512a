"""The ImageNet experiment from images to analysis, with a timm model and three inputs a class."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from losskernel.control_variate import normalize
from losskernel.errors import TraceError
from losskernel.experiments import imagenet, limit
from losskernel.kernel import correlation, covariance
from losskernel.trace import LossTrace

HIERARCHY = Path(__file__).parents[1] / "results/reference/imagenet/hierarchy.json"
CLASSES, PER_CLASS, K = 6, 3, 8
SETTINGS = {
    "model": "timm:test_resnet",
    "weights": "random",
    "image_size": 64,
    "per_class": None,
    "max_inputs": None,
    "skip_unreadable": False,
    "seed": 0,
    "probe": {"n_beta": 10, "gamma": 1e4, "step_size": 1e-4},
    "sampling": {"chains": 2, "draws": 16, "batch_size": 4, "eval_batch_size": 18},
}
ANALYSIS = {
    "neighbors": K,
    "lift_neighbors": [1, 5],
    "map_neighbors": 4,
    "permutations": 19,
    "jackknife_blocks": 4,
    "seed": 0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    imagenet.generate(
        {"classes": CLASSES, "per_class": PER_CLASS, "side": 64, "seed": 0}, folder / "images"
    )
    settings = SETTINGS | {"image_folder": str(folder / "images")}
    chains = [folder / f"{chain}.nc" for chain in range(2)]
    journals = [folder / f"journal-{chain}" for chain in range(2)]
    for chain, path in enumerate(chains):
        imagenet.sample(settings, chain, journals[chain], path)
    imagenet.gradients(settings, folder / "gradients")
    limit.gram(folder / "gradients", folder / "limit.npz")
    imagenet.join(chains, journals, folder / "trace.nc", folder / "gradients")
    imagenet.features(settings, folder / "features.npz")
    imagenet.evaluate(settings, folder / "accuracy.json")
    imagenet.analyze(
        folder / "trace.nc",
        folder / "features.npz",
        HIERARCHY,
        ANALYSIS,
        folder / "analysis.npz",
        folder / "lift.csv",
        folder / "convergence.csv",
        folder / "limit.npz",
    )
    return folder


@pytest.fixture(scope="module")
def trace(run):
    return LossTrace.load(run / "trace.nc")


@pytest.fixture(scope="module")
def arrays(run):
    with np.load(run / "analysis.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def estimate(run, trace):
    """R as the analysis estimates it: with the control variate."""
    return imagenet._draws(trace, run / "limit.npz").r


def test_the_estimate_is_that_of_the_draws_plus_what_is_known_of_the_linear_part(run, trace):
    draws = imagenet._draws(trace, run / "limit.npz")
    linear = trace.dataset["linear"].values
    expected = covariance(trace.losses) - covariance(linear) + draws.known
    np.testing.assert_allclose(draws.r, normalize(expected), rtol=0, atol=1e-6)
    # At this localization the losses are nearly linear, which the linear part must follow.
    flat = [values.reshape(-1, values.shape[-1]) for values in (trace.losses, linear)]
    followed = [np.corrcoef(a, b)[0, 1] for a, b in zip(*(v.T for v in flat), strict=True)]
    assert np.median(followed) > 0.9


def test_a_limit_of_other_images_is_refused(run, trace, tmp_path):
    with np.load(run / "limit.npz") as stored:
        changed = {**stored, "inputs_sha256": "0" * 16}
    np.savez(tmp_path / "other.npz", **changed)
    with pytest.raises(TraceError, match="inputs_sha256"):
        imagenet._draws(trace, tmp_path / "other.npz")


def test_without_gradients_the_kernel_is_that_of_the_draws_alone(run, trace):
    np.testing.assert_allclose(
        imagenet._draws(trace, None).r, correlation(trace.losses), rtol=0, atol=1e-12
    )


def test_chains_are_joined_with_the_labels_of_their_images(trace):
    assert trace.losses.shape == (2, 16, CLASSES * PER_CLASS)
    assert not np.array_equal(trace.losses[0], trace.losses[1])
    labels, counts = np.unique(trace.coordinate("label"), return_counts=True)
    assert len(labels) == CLASSES and set(counts) == {PER_CLASS}
    assert trace.attributes["model"] == "timm:test_resnet"


def test_chains_of_different_length_are_cut_to_the_shortest(run, tmp_path):
    long, short = (LossTrace.load(run / f"{chain}.nc") for chain in range(2))
    LossTrace(short.dataset.isel(draw=slice(10))).save(tmp_path / "short.nc")
    imagenet.join([run / "0.nc", tmp_path / "short.nc"], [], tmp_path / "joined.nc")
    joined = LossTrace.load(tmp_path / "joined.nc").losses
    np.testing.assert_array_equal(joined[0], long.losses[0, :10])
    np.testing.assert_array_equal(joined[1], short.losses[0, :10])


def test_no_neighbor_has_the_label_of_its_input(trace, arrays, estimate):
    labels, r = trace.coordinate("label"), estimate.copy()
    np.fill_diagonal(r, -np.inf)
    # Without removal they would be there: images of a class share a color and move together.
    assert (labels[r.argmax(axis=1)] == labels).mean() > 0.5
    assert arrays["neighbors"].shape == (len(labels), K)
    assert not (labels[arrays["neighbors"]] == labels[:, None]).any()


def test_what_remains_are_the_nearest_of_the_other_labels(trace, arrays, estimate):
    labels, r = trace.coordinate("label"), estimate
    for i, found in enumerate(arrays["neighbors"]):
        others = np.flatnonzero(labels != labels[i])
        expected = np.sort(r[i, others])[::-1][:K]
        np.testing.assert_allclose(r[i, found], expected, rtol=0, atol=1e-12)


def test_lift_holds_kernel_nulls_and_baseline(run):
    table = pd.read_csv(run / "lift.csv")
    kernels = set(table.loc[table.statistic == "value", "kernel"])
    assert kernels == {
        "loss kernel",
        "loss kernel, draws alone",
        "exact limit",
        "penultimate features",
        "time-shifted null",
        "label-shuffled null",
    }
    assert set(table.k) == {1, 5}
    # Every pair shares the root, so sharing it is no likelier among neighbors.
    root = table[(table.depth == table.depth.min()) & (table.statistic == "value")]
    np.testing.assert_allclose(root.lift, 1)
    errors = table[table.statistic == "standard_error"]
    assert set(errors.kernel) == {"loss kernel"} and (errors.lift.dropna() >= 0).all()


def test_convergence_ends_at_one_and_summary_counts_the_run(run, arrays):
    curve = pd.read_csv(run / "convergence.csv")
    final = curve[(curve.kind == "to final") & (curve.draws == 16)]
    np.testing.assert_allclose(final.cka, 1)
    summary = json.loads(str(arrays["summary"]))["convergence"]
    assert (summary["chains"], summary["draws"], summary["inputs"]) == (2, 16, 18)


def test_features_and_accuracy_are_of_the_same_images(run, trace):
    with np.load(run / "features.npz") as stored:
        assert stored["name"].tolist() == trace.coordinate("name").tolist()
        assert stored["features"].shape[0] == CLASSES * PER_CLASS
    accuracy = json.loads((run / "accuracy.json").read_text())
    assert accuracy["images"] == CLASSES * PER_CLASS
    np.testing.assert_allclose(accuracy["cross_entropy"], trace.initial_loss.mean(), rtol=1e-5)


def test_a_subset_of_the_images_is_drawn_by_the_seed(run):
    def names(seed):
        settings = {"image_folder": str(run / "images"), "max_inputs": 7, "seed": seed}
        return imagenet._load(SETTINGS | settings)[1].names.tolist()

    assert len(names(0)) == 7 and names(0) == names(0) != names(1)
