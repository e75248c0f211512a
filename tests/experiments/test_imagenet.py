"""The ImageNet experiment from images to analysis, with a timm model and three inputs a class."""

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from losskernel.commands import limit
from losskernel.errors import ConfigError, DataError, TraceError
from losskernel.experiments.claims import BY_ID, verdict
from losskernel.experiments.imagenet import analyze as semantic
from losskernel.experiments.imagenet import controls, tempered
from losskernel.experiments.imagenet import reports as semantic_reports
from losskernel.experiments.imagenet import sample as imagenet
from losskernel.experiments.imagenet.kernels import LIMIT, Sources, feature_kernel
from losskernel.experiments.mislabel import probe_time
from losskernel.files import read_npz, write_npz
from losskernel.gradients.covariance import gradient_covariance
from losskernel.kernel.stored import StoredKernel
from losskernel.semantics.wordnet import Hierarchy
from losskernel.trace import LossTrace
from networks import CLASSIFIER
from series import stored_kernel, structured

HIERARCHY = Path(__file__).parents[2] / "results/reference/imagenet/hierarchy.json"
CLASSES, PER_CLASS = 6, 3
GAMMAS = (1e5, 1e4)
SETTINGS = CLASSIFIER | {"image_size": 64, "width": 2**18}
ANALYSIS = {
    "headline": 1e4,
    "model": "timm:test_resnet",
    "lift_neighbors": [1, 5],
    "cluster_depths": [4, 6],
    "claim_neighbors": 5,
    "claim_depth": 4,
    "map_neighbors": 4,
    "regions": {"living": ["living_thing.n.01"], "rest": ["artifact.n.01", "matter.n.03"]},
    "named_neighbors": 3,
    "permutations": 19,
    "seed": 0,
}
FAR, NEAR = "γ = 10,000", "γ = 100,000"


def sources_of(folder):
    return {
        "kernels": [folder / f"{gamma:g}.npz" for gamma in GAMMAS],
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
    for gamma in GAMMAS:
        imagenet.kernel(
            settings, gamma, 4, 4, folder / f"journal-{gamma:g}", folder / f"{gamma:g}.npz"
        )
    imagenet.gradients(settings, folder / "gradients")
    limit.gram(folder / "gradients", folder / "limit.npz")
    imagenet.features(settings, folder / "features.npz")
    imagenet.evaluate(settings, folder / "accuracy.json")
    files = sources_of(folder)
    semantic.analyze(
        settings=ANALYSIS,
        output=folder / "analysis.npz",
        output_statistics=folder / "statistics.csv",
        output_headline=folder / "headline.csv",
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
def kernel(run):
    return StoredKernel.load(run / "10000.npz")


@pytest.fixture(scope="module")
def sources(run):
    files = sources_of(run)
    return Sources.load(files["kernels"], files["features"], files["limit"], 1e4)


@pytest.fixture(scope="module")
def statistics(run):
    return pd.read_csv(run / "statistics.csv")


@pytest.fixture(scope="module")
def headline(run):
    return pd.read_csv(run / "headline.csv")


def test_the_stored_kernel_is_that_of_the_estimator(run, kernel):
    settings = SETTINGS | {"image_folder": str(run / "images")}
    classifier, _, data = imagenet.load(settings)
    journal = run / "journal-10000"  # of a finished run: nothing is computed again
    found = gradient_covariance(
        classifier.model, data, gamma=1e4, pairs=4, groups=4, width=2**18, journal=journal
    )
    np.testing.assert_allclose(kernel.r, found.correlation, rtol=0, atol=1e-3)  # float16
    np.testing.assert_allclose(kernel.self_covariance, np.diag(found.kernel), rtol=1e-5)
    assert kernel.attributes["linear_share"] == pytest.approx(found.linear_share, rel=1e-5)
    np.testing.assert_allclose(kernel.rise, found.rise, rtol=1e-4)
    np.testing.assert_allclose(kernel.reliability, found.reliability, atol=2e-3)
    # A statistic's error, through changes kept in 127 steps.
    mean = found.error(lambda r: r[np.tril_indices(len(r), -1)].mean(), "correlation")
    mine = kernel.error(lambda r: r[np.tril_indices(len(r), -1)].mean())
    assert mine == pytest.approx(mean, rel=0.02)


def test_halves_are_kept_and_those_of_earlier_versions_are_read(tmp_path):
    made = stored_kernel(structured().reshape(-1, 40), np.ones(40), {}, {"gamma": 1.0})
    made.save(tmp_path / "new.npz")
    new = StoredKernel.load(tmp_path / "new.npz")
    largest = np.abs(made.halves - made.r).max()
    np.testing.assert_allclose(new.halves, made.halves, rtol=0, atol=largest / 250 + 5e-4)
    held = read_npz(tmp_path / "new.npz")
    below = np.tril_indices(40, -1)
    halves = np.array([half[below] for half in made.halves], np.float16)
    parts = {"changes": held["changes"][2:], "steps": held["steps"][2:]}
    write_npz(tmp_path / "old.npz", **held | parts, halves=halves)
    old = StoredKernel.load(tmp_path / "old.npz")
    assert np.array_equal(old.left_out, new.left_out) and len(old.left_out) == 4
    np.testing.assert_allclose(old.halves, made.halves, rtol=0, atol=5e-4)


def test_a_kernel_that_is_cut_short_or_something_else_is_refused(run, tmp_path):
    (tmp_path / "cut.npz").write_bytes((run / "10000.npz").read_bytes()[:2000])
    with pytest.raises(TraceError, match="cut.npz: unreadable as a kernel"):
        StoredKernel.load(tmp_path / "cut.npz")
    with pytest.raises(TraceError, match="features.npz: unreadable as a kernel"):
        StoredKernel.load(run / "features.npz")
    with pytest.raises(TraceError, match="no such kernel"):
        StoredKernel.load(tmp_path / "none.npz")


def test_a_limit_of_other_images_is_refused(run, tmp_path):
    with np.load(run / "limit.npz") as stored:
        changed = {**stored, "inputs_sha256": "0" * 16}
    np.savez(tmp_path / "other.npz", **changed)
    files = sources_of(run)
    with pytest.raises(TraceError, match="inputs_sha256"):
        Sources.load(files["kernels"], files["features"], tmp_path / "other.npz", 1e4)


def test_a_headline_that_no_kernel_is_at_is_refused(run):
    files = sources_of(run)
    with pytest.raises(TraceError, match="no kernel at gamma = 3000"):
        Sources.load(files["kernels"], files["features"], None, 3000)


def test_kernels_come_from_the_limit_of_high_localization_to_the_headline(sources):
    assert list(sources.kernels) == [NEAR, FAR, LIMIT, "features"]
    assert sources.main.gamma == 1e4
    exact = sources.kernels[LIMIT]
    above = np.triu_indices(len(exact), 1)
    near, far = (
        np.corrcoef(sources.kernels[name][above], exact[above])[0, 1] for name in (NEAR, FAR)
    )
    assert near > 0.99 and near > far


def test_the_kernel_of_the_features_is_centered(run, sources):
    with np.load(run / "features.npz") as stored:
        values = stored["features"].astype(float)
    values -= values.mean(0)
    i, j = values[0], values[5]
    expected = i @ j / np.linalg.norm(i) / np.linalg.norm(j)
    found = feature_kernel(
        run / "features.npz", sources.names, sources.main.attributes["inputs_sha256"]
    )
    assert found[0, 5] == pytest.approx(expected)
    assert found.min() < 0


def test_every_kernel_has_every_statistic_with_null_and_the_sampled_ones_errors(statistics):
    assert set(statistics.kernel) == {NEAR, FAR, LIMIT, "features"}
    own = statistics[statistics.value.notna()]
    assert (own.null_low <= own.null_high).all() and own.null_low.notna().all()
    exact = own.kernel.isin([LIMIT, "features"])
    assert own.standard_error[exact].isna().all()
    assert (own.standard_error[~exact & (own.statistic != "ami")] >= 0).all()
    assert set(statistics.statistic) == {"lift", "opposed_lift", "ami"}
    assert set(statistics[statistics.statistic == "lift"].k) == {1, 5}


def test_every_pair_shares_the_root_so_neighbors_are_no_likelier_to(statistics):
    lifts = statistics[(statistics.statistic == "lift") & (statistics.depth == 1)]
    np.testing.assert_allclose(lifts.value, 1)


def test_the_null_of_the_correlation_trades_whole_classes():
    tree, rng = Hierarchy.from_file(HIERARCHY), np.random.default_rng(5)
    classes, inverse = np.array([0, 3, 7, 11]), np.array([0, 0, 1, 2, 3, 3])
    labels, halves = classes[inverse], rng.standard_normal((2, 6, 6))
    halves += halves.swapaxes(1, 2)
    halves[1] += 3 * halves[0]  # the two agree
    settings = {"permutations": 400, "seed": 0}
    found = semantic.relabeled(halves.mean(0), halves, labels, tree, settings)
    pairs = np.triu(labels[:, None] != labels, 1)
    first, second = (half[pairs] for half in halves)
    exact = set()
    for order in itertools.permutations(classes):
        at = np.array(order)[inverse]
        similarity = tree.wu_palmer[np.ix_(at, at)][pairs]
        scale = np.cov(first, second)[0, 1] * similarity.var(ddof=1)
        value = np.cov((first + second) / 2, similarity)[0, 1] / np.sqrt(scale)
        exact.add(round(value, 9) + 0.0)
    # A relabeling is missed by all 400 draws with a probability of (23/24)^400 < 1e-7.
    assert {round(value, 9) + 0.0 for value in found} == exact


def test_the_headline_is_the_correlation_over_the_root_of_the_reliability(
    headline, sources, kernel
):
    tree = Hierarchy.from_file(HIERARCHY)
    labels = sources.labels
    pairs = np.triu(labels[:, None] != labels, 1)
    first, second = (half[pairs] for half in kernel.halves)
    similarity = tree.wu_palmer[np.ix_(labels, labels)][pairs]
    mean = (first + second) / 2
    covariance = np.cov(first, second)[0, 1]
    expected = np.cov(mean, similarity)[0, 1] / np.sqrt(covariance * similarity.var(ddof=1))
    own = headline[headline.kernel == FAR].set_index("statistic")
    assert own.value["correlation"] == pytest.approx(expected, rel=0.02)
    assert own.null_low["correlation"] < 0 < own.null_high["correlation"]
    assert own.error_draws["correlation"] > 0 and own.error_classes["correlation"] > 0
    exact = headline[headline.kernel == LIMIT].set_index("statistic")
    difference = own.value["correlation"] - exact.value["correlation"]
    assert own.value["signed excess"] == pytest.approx(difference, rel=1e-4)
    assert np.isnan(exact.error_draws["correlation"])


def test_maps_hold_every_kernel(run, sources):
    with np.load(run / "maps.npz") as maps:
        assert maps["kernels"].tolist() == list(sources.kernels)
        assert maps["embeddings"].shape == (4, CLASSES * PER_CLASS, 2)
        assert np.isfinite(maps["embeddings"]).all()
        assert str(maps["headline"]) == FAR


def test_regions_hold_the_classes_under_their_synsets(run, sources):
    tree = Hierarchy.from_file(HIERARCHY)
    table = pd.read_csv(run / "regions.csv")
    for region, synsets in ANALYSIS["regions"].items():
        inside = [not tree.ancestors[label].isdisjoint(synsets) for label in sources.labels]
        assert set(table[table.region == region].classes) == {sum(inside) // PER_CLASS}


def test_the_nearest_and_the_most_opposed_of_named_images_have_other_labels(run, sources, tmp_path):
    tree = Hierarchy.from_file(HIERARCHY)
    absent = next(name for i, name in enumerate(tree.names) if i not in sources.labels)
    name = tree.names[sources.labels[0]]
    settings = ANALYSIS | {"named_classes": [absent, name]}
    outputs = {"output": tmp_path / "n.csv", "output_markdown": tmp_path / "n.md"}
    semantic_reports.neighbors(settings=settings, **outputs, **sources_of(run))
    table = pd.read_csv(tmp_path / "n.csv")
    assert set(table["class"]) == {name} and len(table) == 4 * 2 * 3
    assert name not in set(table.neighbor_class)
    r = sources.kernels[FAR]
    others = np.sort(r[0, sources.labels != sources.labels[0]])
    own = table[table.kernel == FAR].set_index("direction").similarity
    np.testing.assert_allclose(own["nearest"], others[::-1][:3], rtol=1e-5)
    np.testing.assert_allclose(own["opposed"], others[:3], rtol=1e-5)
    assert f"**{name}**" in (tmp_path / "n.md").read_text()


def test_a_named_class_that_does_not_exist_is_refused(run, tmp_path):
    settings = ANALYSIS | {"named_classes": ["golden retreiver"]}
    outputs = {"output": tmp_path / "n.csv", "output_markdown": tmp_path / "n.md"}
    with pytest.raises(ConfigError, match="named_classes: 'golden retreiver' is no class"):
        semantic_reports.neighbors(settings=settings, **outputs, **sources_of(run))


def test_claims_are_those_of_the_headline(run, statistics, headline, tmp_path):
    files = [run / f"{name}.csv" for name in ("statistics", "headline", "regions")]
    semantic_reports.claims(*files, ANALYSIS, tmp_path / "claims.csv")
    claims = pd.read_csv(tmp_path / "claims.csv").set_index("id")
    own = headline[headline.kernel == FAR].set_index("statistic")
    assert claims.reproduced["imagenet.lift"] == pytest.approx(own.value["lift"])
    errors = own.loc["lift", ["error_draws", "error_classes"]].astype(float)
    assert claims.spread["imagenet.lift"] == pytest.approx(np.linalg.norm(errors))
    cell = statistics[(statistics.kernel == FAR) & (statistics.statistic == "lift")]
    cell = cell[(cell.k == 5) & (cell.depth == 4)].iloc[0]
    assert claims.null["imagenet.lift"] == cell.null_high
    assert claims.reproduced["imagenet.spearman"] == pytest.approx(own.value["correlation"])
    assert claims.reproduced["imagenet.reliability"] == pytest.approx(own.value["reliability"])
    assert claims.reproduced["imagenet.signed_excess"] == pytest.approx(own.value["signed excess"])
    assert claims.reproduced["imagenet.inputs"] == CLASSES * PER_CLASS
    cost = claims.loc["imagenet.cost_gpu_hours"]
    assert verdict(BY_ID["imagenet.cost_gpu_hours"], cost) == "not tested"
    assert "most opposed, γ = 10,000" in claims.beside["imagenet.lift"]


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
    rows = controlled[(controlled.control == "tiny") & (controlled.kernel == LIMIT)]
    share = rows[(rows.statistic == "same_label_share") & (rows.k == 1)].iloc[0]
    r = sources.kernels[LIMIT].copy()
    np.fill_diagonal(r, -np.inf)
    labels = sources.labels
    assert share.value == pytest.approx((labels[r.argmax(axis=1)] == labels).mean())
    # They share a color: without removal they would be found, far above chance.
    assert share.value > share.null_high
    assert set(rows[rows.pairs == "removed"].statistic) == {"lift"}
    deepest = rows[(rows.statistic == "lift") & (rows.k == 1) & (rows.depth == 6)]
    deepest = deepest.set_index("pairs").value
    assert deepest["kept"] > deepest["removed"]


def test_features_and_accuracy_are_of_the_same_images(run, kernel):
    with np.load(run / "features.npz") as stored:
        assert stored["name"].tolist() == kernel.coordinates["name"].tolist()
        assert stored["features"].shape[0] == CLASSES * PER_CLASS
    accuracy = json.loads((run / "accuracy.json").read_text())
    assert accuracy["images"] == CLASSES * PER_CLASS
    np.testing.assert_allclose(accuracy["cross_entropy"], kernel.initial_losses.mean(), rtol=1e-5)


def test_a_subset_of_the_images_is_drawn_by_the_seed(run):
    def names(seed):
        settings = {"image_folder": str(run / "images"), "max_inputs": 7, "seed": seed}
        return imagenet.load(SETTINGS | settings)[1].names.tolist()

    assert len(names(0)) == 7 and names(0) == names(0) != names(1)


def test_losses_of_independent_draws_show_the_kernel_by_gradients(run, tmp_path):
    settings = SETTINGS | {"image_folder": str(run / "images"), "wrong_labels": 2, "draws": 400}
    settings |= {"eval_batch_size": 18, "seed": 0}
    trace, output = tmp_path / "10000.nc", tmp_path / "direct.csv"
    probe_time.sample(settings, 1e4, tmp_path / "journal", trace)
    files = [run / f"{gamma:g}.npz" for gamma in GAMMAS]
    settings = {"jackknife_blocks": 10}
    controls.direct_draws(files, [trace], settings, output)
    found = pd.read_csv(output).set_index("statistic")
    assert found.gamma.tolist() == [1e4] * 4 and found.inputs.tolist() == [18] * 4
    assert np.isnan(found.value["variance, sure"]) and found.value["variance, unsure"] > 0.7
    for statistic in ("slope", "variance"):
        row = found.loc[statistic]
        assert 0 < row.standard_error < 0.3 and abs(row.value - 1) < 3 * row.standard_error
    other = LossTrace.load(trace)
    names = other.coordinate("name").copy()
    names[0] = "someone/else.png"
    LossTrace(other.dataset.assign_coords(name=("input", names))).save(tmp_path / "other.nc")
    with pytest.raises(DataError, match="someone/else.png is no input of the kernels"):
        controls.direct_draws(files, [tmp_path / "other.nc"], settings, output)


def test_the_data_in_the_probe_hold_the_loss_back(run, tmp_path, kernel):
    settings = SETTINGS | {"image_folder": str(run / "images"), "pairs": 4, "groups": 4}
    files = [tmp_path / f"{share}.npz" for share in (0.9, 0.2)]
    for share, file in zip((0.9, 0.2), files, strict=True):
        tempered.kernel(settings, 1e4, share, tmp_path / file.stem, file)
    tempered.measure(files, run / "10000.npz", HIERARCHY, {"seed": 0}, tmp_path / "found.csv")
    found = pd.read_csv(tmp_path / "found.csv").set_index(["statistic", "n_beta"]).value
    weak, strong = sorted(found["CKA"].index)
    assert 0 < weak < strong
    # The same normal draws, held back a little and then more.
    assert found["rise", 0] == pytest.approx(kernel.rise[0])
    assert found["rise", 0] > found["rise", weak] > found["rise", strong]
    assert 1.1 > found["CKA", weak] > found["CKA", strong]


def test_n_beta_of_a_share_of_the_predicted_rise():
    eigenvalues, gamma = np.array([5.0, 1.0, 0.01]), 30.0
    for share in (0.9, 0.5, 0.01):
        n_beta = tempered.n_beta_of(share, eigenvalues, gamma)
        rise = (eigenvalues / (gamma + n_beta * eigenvalues)).sum()
        assert rise == pytest.approx(share * (eigenvalues / gamma).sum(), rel=1e-6)


def test_the_kernel_of_some_of_the_inputs(kernel):
    chosen = [5, 1, 8]
    names = kernel.coordinates["name"]
    part = kernel.among(names[chosen])
    np.testing.assert_array_equal(part.r, kernel.r[np.ix_(chosen, chosen)])
    np.testing.assert_array_equal(part.left_out[2], kernel.left_out[2][np.ix_(chosen, chosen)])
    np.testing.assert_array_equal(part.losses, kernel.losses[:, chosen])
    np.testing.assert_array_equal(part.coordinates["label"], kernel.coordinates["label"][chosen])
    with pytest.raises(TraceError, match="no such image is no input of the kernel"):
        kernel.among(np.array([names[0], "no such image"]))
