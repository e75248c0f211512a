"""The analysis on traces in which every depth of a hierarchy appears at a step that is known."""

import json

import numpy as np
import pandas as pd
import pytest

from losskernel.errors import DataError, TraceError
from losskernel.experiments.claims import BY_ID, verdict
from losskernel.experiments.development import analyze as analysis
from losskernel.experiments.development import measure
from losskernel.experiments.development.kernels import FEATURES, GRADIENTS, SAMPLED
from losskernel.semantics.wordnet import Hierarchy
from losskernel.trace import LossTrace, settings_attribute

LEVELS = 6  # 64 classes, the leaves of a binary tree; depths 1 to 5 divide their pairs
WNIDS = [f"n{number:08d}" for number in range(2**LEVELS)]
STEPS = [0, 10, 30, 100, 300, 1000, 3000]
SETTINGS = {
    "headline": {"rule": "fixed", "statistic": "conditional_auc", "from": "chance"},
    "neighbors": 3,
    "class_pairs": 8,
    "map_neighbors": 5,
    "map_epochs": 10,
    "permutations": 39,
    "jackknife_blocks": 3,
    "class_groups": 4,
    "seed": 0,
}


def node(leaf: int, depth: int) -> str:
    return f"node{depth}_{leaf >> (LEVELS - depth)}"


def tree() -> Hierarchy:
    leaves = range(2**LEVELS)
    above = {node(0, 0): ()}
    for depth in range(1, LEVELS + 1):
        above |= {node(leaf, depth): (node(leaf, depth - 1),) for leaf in leaves}
    classes = tuple(node(leaf, LEVELS) for leaf in leaves)
    return Hierarchy(tuple(WNIDS), classes, classes, above)


def losses(shown: set[int], rng) -> np.ndarray:
    """Losses (2, 60, input), shared below a hypernym of each of the depths that appear."""
    leaves = np.arange(2**LEVELS)
    values = 0.7 * rng.standard_normal((2, 60, len(leaves)))
    for depth in shown:
        of_node = rng.standard_normal((2, 60, 2**depth))
        values += of_node[..., leaves >> (LEVELS - depth)]
    return values + 5


def write(folder, network: str, step: int, shown: set[int], names=None, weights=None):
    rng = np.random.default_rng([step, network.startswith("shuffled"), network == "2"])
    coordinates = {"wnid": np.array(WNIDS), "name": np.array(names or WNIDS)}
    values = losses(shown, rng)
    features = values[0].T - values[0].T.mean(axis=1, keepdims=True)
    n = len(WNIDS)
    np.savez(
        folder / f"{network}-{step}.npz",
        network=network,
        step=step,
        accuracy=json.dumps({"top1": step / 10000}),
        features=features.astype(np.float16),
        cosine=np.eye(n)[np.tril_indices(n)].astype(np.float16),
        norms=np.ones(n, np.float32),
        weights_sha256=f"{network}-{step}",
    )
    for rule in SAMPLED:
        values = losses(shown, rng)
        attributes = {
            "probe": settings_attribute({"n_beta": 1, "gamma": 100, "step_size": 0.01}),
            "weights_sha256": weights or f"{network}-{step}",
            "network": network,
            "step": step,
            "rule": rule,
        }
        trace = LossTrace.build(
            values, np.full(n, 5.0), values.mean(2), None, coordinates, attributes
        )
        linear = 0.1 * rng.standard_normal(values.shape).astype(np.float32)  # tells nothing
        LossTrace(trace.dataset.assign(linear=(trace.dataset["loss"].dims, linear))).save(
            folder / f"{network}-{step}-{rule}.nc"
        )


def measured(folder, network: str, **changes):
    files = [sorted(folder.glob(f"{network}-{kind}")) for kind in ("*[0-9].npz", "*.nc")]
    tree().to_file(folder / "hierarchy.json")
    output = folder / "measured" / f"{network}.npz"
    output.parent.mkdir(exist_ok=True)
    measure.measure(*files, folder / "hierarchy.json", SETTINGS | changes, output)
    return output


def analyze(folder, *networks: str, **changes):
    outputs = {
        "output": folder / "metrics.csv",
        "output_crossings": folder / "crossings.csv",
        "output_order": folder / "order.csv",
    }
    curves = [measured(folder, network, **changes) for network in networks]
    analysis.analyze(curves, SETTINGS | changes, **outputs)
    return [pd.read_csv(path, dtype={"network": str}) for path in outputs.values()]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Depth d appears at checkpoint d; a shuffled network knows nothing of the classes."""
    folder = tmp_path_factory.mktemp("development")
    for at, step in enumerate(STEPS):
        write(folder, "1", step, set(range(1, at + 1)) - {LEVELS})
    write(folder, "shuffled-1", 50, set())
    return folder, *analyze(folder, "shuffled-1", "1")


def test_each_depth_crosses_where_it_appears(found):
    _, _, crossings, _ = found
    chosen = crossings[
        (crossings["kernel"] == SAMPLED["fixed"])
        & (crossings["statistic"] == "conditional_auc")
        & (crossings["from"] == "chance")
    ].set_index("depth")
    assert list(chosen.index) == [1, 2, 3, 4, 5] and chosen["resolved"].all()
    for depth in chosen.index:
        assert STEPS[depth - 1] < chosen.loc[depth, "step"] < STEPS[depth]
        assert 0 < chosen.loc[depth, "log_error_classes"] < 1


def test_coarse_comes_before_fine(found):
    _, _, _, order = found
    rows = order.set_index(["kernel", "statistic", "from"])
    for kernel in (*SAMPLED.values(), FEATURES):
        row = rows.loc[(kernel, "conditional_auc", "chance")]
        assert row["spearman"] == pytest.approx(1) and row["depths"] == 5 and row["network"] == "1"
        assert row["p"] == pytest.approx(2 / 120)  # all orders of five
        # Lift also rises with what is coarser; so planted, its order is nearly the same.
        assert rows.loc[(kernel, "lift", "chance"), "spearman"] > 0.7
    nothing = rows.loc[(GRADIENTS, "auc", "chance")]
    assert nothing["depths"] == 0 and np.isnan(nothing["spearman"])


def test_metrics_have_errors_and_a_null(found):
    _, metrics, _, _ = found
    rows = metrics[metrics["statistic"] == "auc"].set_index(["network", "kernel", "step", "depth"])
    last = rows.loc[("1", SAMPLED["fixed"], STEPS[-1], 3)]
    assert last["value"] > 0.8 > last["null_high"] > 0.5 > last["null_low"]
    assert 0 < last["error_draws"] < 0.1 and 0 < last["error_classes"] < 0.2
    assert np.isnan(rows.loc[("1", FEATURES, STEPS[-1], 3), "error_draws"])
    start = rows.loc[("1", SAMPLED["fixed"], 0, 3)]
    assert start["null_low"] - 0.05 < start["value"] < start["null_high"] + 0.05
    control = rows.loc[("shuffled-1", SAMPLED["fixed"], 50, 3)]
    assert abs(control["value"] - 0.5) < 0.1


def test_a_control_variate_that_tells_nothing_does_no_harm(found):
    _, metrics, _, _ = found
    facts = metrics[metrics["kernel"] == SAMPLED["fixed"]]
    coefficients = facts[facts["statistic"] == "coefficient"]["value"]
    # An amplitude of 0.1 against losses of 0.7 and more, 120 draws of 64 inputs.
    assert coefficients.abs().max() < 0.7
    assert facts[facts["statistic"] == "linear_share"]["value"].max() < 0.05


def test_similar_checkpoints_and_maps(found):
    folder = found[0]
    files = [sorted(folder.glob(f"1-{kind}")) for kind in ("*[0-9].npz", "*.nc")]
    measure.maps(*files, folder / "hierarchy.json", SETTINGS, folder / "maps.npz")
    with np.load(folder / "maps.npz") as stored:
        arrays = dict(stored)
    assert arrays["steps"].tolist() == STEPS
    similarity = arrays["similarity"][list(arrays["kernels"]).index(SAMPLED["fixed"])]
    np.testing.assert_allclose(similarity, similarity.T)
    np.testing.assert_allclose(np.diag(similarity)[1:], 1)
    assert similarity[-1, -2] > 0.9  # nothing new appears at the last step
    assert similarity[-1, 1] < similarity[-1, 3] < similarity[-1, -2]
    assert arrays["maps"].shape == (2, len(STEPS), len(WNIDS), 2)


def claimed_from(folder):
    return [folder / f"{name}.csv" for name in ("order", "crossings", "metrics")]


def test_the_claim(found):
    folder = found[0]
    analysis.claims(*claimed_from(folder), SETTINGS, folder / "claims.csv")
    row = pd.read_csv(folder / "claims.csv").set_index("id").loc["development.coarse_to_fine"]
    assert row["reproduced"] == pytest.approx(1) and row["n"] == 1 and np.isfinite(row["spread"])
    assert verdict(BY_ID["development.coarse_to_fine"], row) == "not resolved"
    assert row["beside"].startswith("permutation p 0.0167; network 1 1")
    assert "top-1 30.0%" in row["setting"] and "5 depths above shuffled classes" in row["setting"]


@pytest.mark.parametrize(
    ("spearman", "p", "error", "words"),
    [
        (0.9, 0.01, 0.1, "not resolved"),  # no null of what growth alone gives
        (-0.9, 0.01, 0.1, "does not hold"),
        (0.9, 0.2, 0.1, "not resolved"),
        (0.9, 0.01, 0.6, "not resolved"),
        (np.nan, np.nan, np.nan, "not tested"),
    ],
)
def test_the_verdict_is_the_datas(tmp_path, spearman, p, error, words):
    row = {"network": "1", "kernel": SAMPLED["fixed"]}
    row["statistic"] = "conditional_auc"
    row |= {"from": "chance", "depths": 2, "spearman": spearman, "p": p}
    row |= {"error_draws": error, "error_classes": 0.0, "error_networks": np.nan}
    pd.DataFrame([row]).to_csv(tmp_path / "order.csv", index=False)
    curve = {name: row[name] for name in ("network", "kernel", "statistic", "from")}
    crossings = pd.DataFrame({"depth": [1, 2, 3, 4], "step": [6, 30, 60, 70], "resolved": True})
    crossings.loc[3, "resolved"] = False
    crossings.assign(**curve).to_csv(tmp_path / "crossings.csv", index=False)
    metric = {"network": "1", "kernel": "network", "statistic": "top1", "value": 0.2}
    pd.DataFrame({"step": [5, 50, 500]}).assign(**metric).to_csv(
        tmp_path / "metrics.csv", index=False
    )
    analysis.claims(*claimed_from(tmp_path), SETTINGS, tmp_path / "claims.csv")
    row = pd.read_csv(tmp_path / "claims.csv").iloc[0]
    assert verdict(BY_ID["development.coarse_to_fine"], row) == words
    assert "depths of 3 that cross between the checkpoints at steps 5 and 50 2" in row["beside"]


def test_several_networks_have_a_mean_and_a_spread(tmp_path):
    for network in ("1", "2"):
        for at, step in enumerate(STEPS):
            write(tmp_path, network, step, set(range(1, at + 1)) - {LEVELS})
    metrics, _, order = analyze(tmp_path, "1", "2")
    assert set(order["network"]) == {"1", "2", analysis.ALL}
    rows = metrics[metrics["statistic"] == "auc"].set_index(["kernel", "step", "depth", "network"])
    one, two, mean = (
        rows.loc[(SAMPLED["fixed"], STEPS[-1], 3, network)] for network in ("1", "2", "all")
    )
    assert mean["value"] == pytest.approx((one["value"] + two["value"]) / 2)
    # The standard error of a mean of two: half of their difference.
    assert mean["error_networks"] == pytest.approx(abs(one["value"] - two["value"]) / 2)
    assert np.isnan(one["error_networks"])
    analysis.claims(*claimed_from(tmp_path), SETTINGS, tmp_path / "claims.csv")
    row = pd.read_csv(tmp_path / "claims.csv").iloc[0]
    assert row["n"] == 2
    assert "spread: jackknife over draws and classes and networks" in row["setting"]
    assert "network 1 1; network 2 1" in row["beside"]


def test_files_that_do_not_belong_together(tmp_path):
    write(tmp_path, "1", 0, set(), weights="others")
    with pytest.raises(TraceError, match="of other weights than the trace of rule 'fixed'"):
        measured(tmp_path, "1")
    write(tmp_path, "1", 0, set())
    (tmp_path / "1-0-rise.nc").unlink()
    with pytest.raises(TraceError, match="there is no trace of rule 'rise' beside it"):
        measured(tmp_path, "1")
    write(tmp_path, "1", 0, set())
    write(tmp_path, "1", 10, set(), names=WNIDS[::-1])
    with pytest.raises(TraceError, match="step 10: other probe inputs than those of 1, 0"):
        measured(tmp_path, "1")
    write(tmp_path, "2", 0, set())
    with pytest.raises(TraceError, match="checkpoints of two networks, [12] and [12]"):
        measured(tmp_path, "[12]")


def test_networks_measured_on_other_inputs_are_not_compared(tmp_path):
    write(tmp_path, "1", 0, {1})
    write(tmp_path, "2", 0, {1}, names=WNIDS[::-1])
    with pytest.raises(TraceError, match="network 2: other probe inputs or depths than those of 1"):
        analyze(tmp_path, "1", "2")


def test_networks_measured_with_other_settings_are_not_compared(tmp_path):
    for network in "12":
        write(tmp_path, network, 0, {1})
    curves = [measured(tmp_path, "1"), measured(tmp_path, "2", neighbors=4)]
    outputs = [tmp_path / name for name in ("metrics.csv", "crossings.csv", "order.csv")]
    with pytest.raises(TraceError, match="network 2: measured with neighbors = 4, not 3 as 1"):
        analysis.analyze(curves, SETTINGS, *outputs)
    assert not any(path.exists() for path in outputs)


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "b.npz", steps=[1])
    for name in "ab":
        with pytest.raises(TraceError, match=f"{name}.npz: not the measured curves"):
            measure.Measured.load(tmp_path / f"{name}.npz")


def test_depths_need_pairs_on_either_side(tmp_path):
    write(tmp_path, "1", 0, set())
    with pytest.raises(DataError, match="no depth has 2000 pairs of classes on either side"):
        measured(tmp_path, "1", class_pairs=2000)
