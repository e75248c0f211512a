"""The ImageNet experiment from images to analysis, with a timm model and three inputs a class."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from losskernel.commands import limit
from losskernel.errors import ConfigError, TraceError
from losskernel.experiments.imagenet import analyze as semantic
from losskernel.experiments.imagenet import controls
from losskernel.experiments.imagenet import reports as semantic_reports
from losskernel.experiments.imagenet import sample as imagenet
from losskernel.experiments.imagenet.kernels import Sources
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.covariance import correlation, covariance
from losskernel.semantics.wordnet import Hierarchy
from losskernel.trace import LossTrace

HIERARCHY = Path(__file__).parents[2] / "results/reference/imagenet/hierarchy.json"
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
    "cluster_depths": [4, 6],
    "claim_neighbors": 5,
    "claim_depth": 4,
    "map_kernels": ["loss kernel", "penultimate features"],
    "map_neighbors": 4,
    "regions": {"living": ["living_thing.n.01"], "rest": ["artifact.n.01", "matter.n.03"]},
    "named_neighbors": 3,
    "permutations": 19,
    "jackknife_blocks": 4,
    "seed": 0,
}
KERNELS = (
    "loss kernel",
    "loss kernel, draws alone",
    "exact limit",
    "exact limit, not normalized",
    "penultimate features",
)


def sources_of(folder):
    return {
        "trace": folder / "trace.nc",
        "features": folder / "features.npz",
        "hierarchy": HIERARCHY,
        "limit": folder / "limit.npz",
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
    files = sources_of(folder)
    semantic.analyze(
        settings=ANALYSIS,
        output=folder / "analysis.npz",
        output_statistics=folder / "statistics.csv",
        output_convergence=folder / "convergence.csv",
        **files,
    )
    semantic.embed(
        settings=ANALYSIS,
        output=folder / "maps.npz",
        output_regions=folder / "regions.csv",
        **files,
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
def sources(run):
    return Sources.load(run / "trace.nc", run / "features.npz", run / "limit.npz")


@pytest.fixture(scope="module")
def maps(run):
    with np.load(run / "maps.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def statistics(run):
    return pd.read_csv(run / "statistics.csv")


def test_the_estimate_is_that_of_the_draws_plus_what_is_known_of_the_linear_part(sources, trace):
    draws = sources.draws
    linear = trace.dataset["linear"].values
    expected = covariance(trace.losses) - covariance(linear) + draws.known
    np.testing.assert_allclose(draws.r, normalize(expected), rtol=0, atol=1e-6)
    # At this localization the losses are nearly linear, which the linear part must follow.
    flat = [values.reshape(-1, values.shape[-1]) for values in (trace.losses, linear)]
    followed = [np.corrcoef(a, b)[0, 1] for a, b in zip(*(v.T for v in flat), strict=True)]
    assert np.median(followed) > 0.9


def test_a_limit_of_other_images_is_refused(run, tmp_path):
    with np.load(run / "limit.npz") as stored:
        changed = {**stored, "inputs_sha256": "0" * 16}
    np.savez(tmp_path / "other.npz", **changed)
    with pytest.raises(TraceError, match="inputs_sha256"):
        Sources.load(run / "trace.nc", run / "features.npz", tmp_path / "other.npz")


def test_without_gradients_the_kernel_is_that_of_the_draws_alone(run, trace):
    sources = Sources.load(run / "trace.nc", run / "features.npz", None)
    r = sources.kernels["loss kernel"]
    np.testing.assert_allclose(r, correlation(trace.losses), rtol=0, atol=1e-12)
    assert set(sources.kernels) == {"loss kernel", "penultimate features"}


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


def test_every_kernel_has_every_statistic_with_null_and_the_sampled_ones_errors(statistics):
    assert set(statistics.kernel) == {*KERNELS, "time-shifted null"}
    own = statistics[statistics.statistic != "cka_features"]
    own = own[own.kernel.isin(KERNELS) & own.value.notna()]
    assert (own.null_low <= own.null_high).all() and own.null_low.notna().all()
    exact = own.kernel.isin(KERNELS[2:])
    assert own.standard_error[exact].isna().all()
    assert (own.standard_error[~exact] >= 0).all()
    names = {"spearman", "spearman_magnitude", "spearman_opposed"}
    expected = {
        f"{name}_{of}" for name in names for of in ("path", "wu_palmer", "lch_depth", "features")
    }
    expected |= {"lift", "common_depth", "opposed_lift", "opposed_common_depth"}
    assert set(statistics.statistic) == expected | {"cka_features", "purity", "nmi", "ami"}
    assert set(statistics[statistics.statistic == "lift"].k) == {1, 5}


def test_every_pair_shares_the_root_so_neighbors_are_no_likelier_to(statistics):
    lifts = statistics[(statistics.statistic == "lift") & (statistics.depth == 1)]
    np.testing.assert_allclose(lifts.value, 1)


def test_features_are_aligned_with_themselves(statistics):
    cells = statistics[statistics.statistic == "cka_features"].set_index("kernel").value
    np.testing.assert_allclose(cells["penultimate features"], 1)
    assert cells["loss kernel"] < 1
    ranks = statistics[statistics.statistic == "spearman_features"].set_index("kernel").value
    np.testing.assert_allclose(ranks["penultimate features"], 1)


def test_standard_errors_are_those_of_leaving_out_quarters_of_the_run(sources, statistics):
    depth = Hierarchy.from_file(HIERARCHY).lowest_common_hypernym_depth
    labels, losses = sources.labels, sources.draws.losses
    values = []
    for start in (0, 4, 8, 12):
        r = correlation(np.delete(losses, np.s_[start : start + 4], axis=1))
        r[labels[:, None] == labels] = -np.inf
        values.append(depth[labels, labels[r.argmax(axis=1)]].mean())
    expected = np.sqrt(3 / 4 * np.sum((np.array(values) - np.mean(values)) ** 2))
    cell = statistics[
        (statistics.kernel == "loss kernel, draws alone")
        & (statistics.statistic == "common_depth")
        & (statistics.k == 1)
    ]
    np.testing.assert_allclose(cell.standard_error, expected, rtol=1e-5, atol=1e-12)


def test_maps_hold_every_kernel_and_the_first_in_three_dimensions(maps):
    inputs = CLASSES * PER_CLASS
    assert maps["kernels"].tolist() == ANALYSIS["map_kernels"]
    assert maps["embeddings"].shape == (2, inputs, 2) and maps["orbit"].shape == (inputs, 3)
    assert np.isfinite(maps["embeddings"]).all() and np.isfinite(maps["orbit"]).all()


def test_regions_hold_the_classes_under_their_synsets(run, maps, trace):
    tree = Hierarchy.from_file(HIERARCHY)
    table = pd.read_csv(run / "regions.csv")
    assert set(table.kernel) == set(ANALYSIS["map_kernels"])
    for number, (region, synsets) in enumerate(ANALYSIS["regions"].items()):
        expected = [
            not tree.ancestors[label].isdisjoint(synsets) for label in trace.coordinate("label")
        ]
        assert maps["members"][:, number].tolist() == expected
        assert set(table[table.region == region].classes) == {sum(expected) // PER_CLASS}


def test_the_nearest_and_the_most_opposed_of_named_images_have_other_labels(run, sources, tmp_path):
    tree = Hierarchy.from_file(HIERARCHY)
    absent = next(name for i, name in enumerate(tree.names) if i not in sources.labels)
    name = tree.names[sources.labels[0]]
    settings = ANALYSIS | {"named_classes": [absent, name]}
    outputs = {"output": tmp_path / "n.csv", "output_markdown": tmp_path / "n.md"}
    semantic_reports.neighbors(settings=settings, **outputs, **sources_of(run))
    table = pd.read_csv(tmp_path / "n.csv")
    assert set(table["class"]) == {name} and len(table) == 2 * 2 * 3
    assert name not in set(table.neighbor_class)
    r = sources.kernels["loss kernel"]
    others = np.sort(r[0, sources.labels != sources.labels[0]])
    own = table[table.kernel == "loss kernel"].set_index("direction").similarity
    np.testing.assert_allclose(own["nearest"], others[::-1][:3], rtol=1e-5)
    np.testing.assert_allclose(own["opposed"], others[:3], rtol=1e-5)
    assert f"**{name}**" in (tmp_path / "n.md").read_text()


def test_a_named_class_that_does_not_exist_is_refused(run, tmp_path):
    settings = ANALYSIS | {"named_classes": ["golden retreiver"]}
    outputs = {"output": tmp_path / "n.csv", "output_markdown": tmp_path / "n.md"}
    with pytest.raises(ConfigError, match="named_classes: 'golden retreiver' is no class"):
        semantic_reports.neighbors(settings=settings, **outputs, **sources_of(run))


def test_the_leader_is_the_kernel_of_the_highest_value_and_the_sentence_counts_it(tmp_path):
    rows = [
        ("loss kernel", "spearman_path", 0.1, 0.06, 0.05),
        ("exact limit", "spearman_path", 0.2, None, 0.05),
        ("penultimate features", "spearman_path", 0.15, None, 0.05),
        ("loss kernel", "spearman_wu_palmer", 0.1, 0.01, 0.2),
        ("exact limit", "spearman_wu_palmer", 0.2, None, 0.05),
        ("penultimate features", "spearman_wu_palmer", 0.3, None, 0.05),
        ("loss kernel", "spearman_lch_depth", 0.4, 0.01, 0.05),
        ("exact limit", "spearman_lch_depth", 0.2, None, 0.05),
        ("penultimate features", "spearman_lch_depth", 0.3, None, 0.05),
    ]
    names = ["kernel", "statistic", "value", "standard_error", "null_high"]
    table = pd.DataFrame(rows, columns=names).assign(depth=None, k=None)
    table.to_csv(tmp_path / "s.csv", index=False)
    semantic_reports.leaders(tmp_path / "s.csv", tmp_path / "l.csv", tmp_path / "l.md")
    found = pd.read_csv(tmp_path / "l.csv").set_index("statistic")
    assert found.leader.to_dict() == {
        "spearman_path": "exact limit",
        "spearman_wu_palmer": "penultimate features",
        "spearman_lch_depth": "loss kernel",
    }
    assert found.level.tolist() == [True, False, False]  # a gap of 0.1 against 2 x 0.06 and 0.01
    assert found.above_null.tolist() == [True, False, True]
    said = (tmp_path / "l.md").read_text()
    assert "Of 3 statistics" in said
    assert "loss kernel 1, exact limit 1, penultimate features 1" in said


def claims_of(run, settings, folder):
    semantic_reports.leaders(run / "statistics.csv", folder / "l.csv", folder / "l.md")
    semantic_reports.claims(
        run / "analysis.npz",
        run / "statistics.csv",
        run / "regions.csv",
        folder / "l.csv",
        settings,
        folder / "claims.csv",
    )
    return pd.read_csv(folder / "claims.csv").set_index("id")


def test_claims_say_what_the_statistics_and_regions_say(run, statistics, tmp_path):
    claims = claims_of(run, ANALYSIS, tmp_path)
    assert set(claims.index) == {
        "imagenet.inputs",
        "imagenet.lift",
        "imagenet.spearman",
        "imagenet.cost_gpu_hours",
    }
    cell = statistics[(statistics.kernel == "loss kernel") & (statistics.statistic == "lift")]
    cell = cell[(cell.k == 5) & (cell.depth == 4)].iloc[0]
    assert claims.reproduced["imagenet.lift"] == cell.value
    assert claims.spread["imagenet.lift"] == cell.standard_error
    assert claims.null["imagenet.lift"] == cell.null_high


def test_the_claim_of_neighbors_tells_of_opposed_inputs(run, statistics, tmp_path):
    opposed = statistics[(statistics.statistic == "opposed_lift") & (statistics.depth == 4)]
    k = int(opposed.k.iloc[0])
    settings = ANALYSIS | {"claim_neighbors": k}
    beside = claims_of(run, settings, tmp_path).beside["imagenet.lift"]
    value = opposed.set_index("kernel").value["loss kernel"]
    assert f"most opposed inputs, loss kernel {value:.3g}; " in beside


@pytest.fixture(scope="module")
def controlled(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("controls")
    controls.limit(run / "gradients", folder / "limit.npz")
    controls.measure(
        ["trained", "tiny"],
        [run / "limit.npz", folder / "limit.npz"],
        [run / "features.npz"] * 2,
        HIERARCHY,
        ANALYSIS,
        folder / "controls.csv",
    )
    return pd.read_csv(folder / "controls.csv")


def test_a_triangle_and_the_whole_matrix_are_one_limit(controlled):
    columns = ["kernel", "pairs", "statistic", "depth", "k", "value", "null_low", "null_high"]
    whole, triangle = (
        controlled[controlled.control == name][columns].reset_index(drop=True)
        for name in ("trained", "tiny")
    )
    pd.testing.assert_frame_equal(whole, triangle)


def test_images_of_a_class_are_neighbors_until_they_are_removed(controlled, sources):
    rows = controlled[(controlled.control == "tiny") & (controlled.kernel == "exact limit")]
    share = rows[(rows.statistic == "same_label_share") & (rows.k == 1)].iloc[0]
    r = sources.kernels["exact limit"].copy()
    np.fill_diagonal(r, -np.inf)
    labels = sources.labels
    assert share.value == pytest.approx((labels[r.argmax(axis=1)] == labels).mean())
    # They share a color: without removal they would be found, far above chance.
    assert share.value > share.null_high
    assert set(rows[rows.pairs == "removed"].statistic) == {"lift", "common_depth"}
    deepest = rows[(rows.statistic == "lift") & (rows.k == 1) & (rows.depth == 6)]
    deepest = deepest.set_index("pairs").value
    assert deepest["kept"] > deepest["removed"]


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
