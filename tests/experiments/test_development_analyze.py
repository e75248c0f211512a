"""The analysis on kernels in which every depth of a hierarchy appears at a step that is known."""

import json

import numpy as np
import pandas as pd
import pytest

from losskernel.errors import DataError, TraceError
from losskernel.experiments.claims import BY_ID, verdict
from losskernel.experiments.development import analyze as analysis
from losskernel.experiments.development import figures, measure
from losskernel.experiments.development.kernels import FEATURES, GRADIENTS, SAMPLED
from losskernel.semantics.wordnet import Hierarchy
from series import stored_kernel

LEVELS = 6  # 64 classes, the leaves of a binary tree; depths 1 to 5 divide their pairs
WNIDS = [f"n{number:08d}" for number in range(2**LEVELS)]
STEPS = [0, 10, 30, 100, 300, 1000, 3000]
APPEAR = {1: 10, 2: 30, 3: 100, 4: 300, 5: 1000}  # depth -> step
SETTINGS = {
    "headline": "fixed",
    "neighbors": 1,
    "class_pairs": 8,
    "map_neighbors": 5,
    "map_epochs": 10,
    "permutations": 39,
    "class_groups": 4,
    "growth_draws": 39,  # the fewest that place a bound
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


def losses(depths: set[int], rng) -> np.ndarray:
    """Losses (2, 60, input), shared below a hypernym of each of the depths that appear."""
    leaves = np.arange(2**LEVELS)
    values = 0.7 * rng.standard_normal((2, 60, len(leaves)))
    for depth in depths:
        of_node = rng.standard_normal((2, 60, 2**depth))
        values += of_node[..., leaves >> (LEVELS - depth)]
    return values + 5


def shown(step: int) -> set[int]:
    return {depth for depth, first in APPEAR.items() if first <= step}


def write(folder, network: str, step: int, depths: set[int], names=None, weights=None):
    rng = np.random.default_rng([step, network.startswith("shuffled"), network == "2"])
    coordinates = {"wnid": np.array(WNIDS), "name": np.array(names or WNIDS)}
    values = losses(depths, rng)
    features = values[0].T - values[0].T.mean(axis=1, keepdims=True)
    n = len(WNIDS)
    np.savez(
        folder / f"{network}-{step}.npz",
        network=network,
        step=step,
        accuracy=json.dumps({"top1": step / 10000}),
        features=features.astype(np.float16),
        cosine=rng.uniform(-0.1, 0.1, n * (n - 1) // 2).astype(np.float16),
        weights_sha256=f"{network}-{step}",
    )
    for rule in SAMPLED:
        attributes = {
            "gamma": 100.0,
            "linear_share": 0.5,
            "weights_sha256": weights or f"{network}-{step}",
            "network": network,
            "step": step,
            "rule": rule,
        }
        values = losses(depths, rng).reshape(-1, n)
        kernel = stored_kernel(values, np.full(n, 5.0), coordinates, attributes)
        kernel.save(folder / f"{network}-{step}-{rule}.npz")


def files_of(folder, network: str) -> list[list]:
    """States and kernels of a network."""
    paths = sorted(folder.glob(f"{network}-*.npz"))
    kernels = [path for path in paths if path.stem.endswith(tuple(SAMPLED))]
    return [[path for path in paths if path not in kernels], kernels]


def measured(folder, network: str, **changes):
    files = files_of(folder, network)
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
    """Depths appear as planted; a shuffled network knows nothing of the classes."""
    folder = tmp_path_factory.mktemp("development")
    for step in STEPS:
        write(folder, "1", step, shown(step))
    write(folder, "shuffled-1", 50, set())
    return folder, *analyze(folder, "shuffled-1", "1")


def headline(crossings):
    """Of the sampled kernel at half of the final value, by depth."""
    curve = {"kernel": SAMPLED["fixed"], "share": 0.5, "of": "final"}
    return crossings[(crossings[list(curve)] == list(curve.values())).all(axis=1)].set_index(
        "depth"
    )


def test_each_depth_crosses_where_it_appears(found):
    _, _, crossings, _ = found
    chosen = headline(crossings)
    assert list(chosen.index) == [1, 2, 3, 4, 5] and chosen["resolved"].all()
    for depth in chosen.index:
        before = STEPS[STEPS.index(APPEAR[depth]) - 1]
        assert before < chosen.loc[depth, "step"] < APPEAR[depth]
        assert 0 < chosen.loc[depth, "log_error_classes"] < 1


def test_coarse_comes_before_fine(found):
    _, _, _, order = found
    rows = order.set_index(["kernel", "share", "of"])
    for kernel in (*SAMPLED.values(), FEATURES):
        row = rows.loc[(kernel, 0.5, "final")]
        assert row["spearman"] == pytest.approx(1) and row["depths"] == 5 and row["network"] == "1"
    nothing = rows.loc[(GRADIENTS, 0.5, "final")]
    assert nothing["depths"] < 2 and np.isnan(nothing["spearman"])


def test_later_shares_are_crossed_later(found):
    _, _, crossings, _ = found
    rows = crossings[crossings["kernel"] == SAMPLED["fixed"]]
    wide = rows.pivot_table("step", ["of", "depth"], "share")
    assert (wide[0.25] < wide[0.5]).all() and (wide[0.5] < wide[0.75]).all()
    assert (wide.loc["final"] <= wide.loc["maximum"] * (1 + 1e-9)).all(axis=None)


def test_a_depth_is_later_than_growth_alone_by_two_errors():
    """Depth 1 crosses half way to step 9, depth 2 to step 999; growth alone between 9 and 99."""
    steps, early, late = [0, 9, 99, 999], [1, 3, 3, 3], [1, 1, 1, 3]
    values = np.transpose([early, late]).astype(float)
    grown = np.repeat([[1, 1], [1.9, 1.9], [3, 3], [3, 3]], 5, axis=1).reshape(4, 2, 5)
    curve = measure.Curves(
        steps=steps,
        values=list(values),
        high=list(np.full((4, 2), 1.5)),
        final=list(grown.swapaxes(1, 2).astype(float)),
        classes=list(values[:, None] + np.array([[0.1, 0.1], [-0.1, -0.1]])),
    )
    first, second = analysis._Crossings.of(curve, 0.5, "final").rows([1, 2])
    assert first["resolved"] and not first["later"] and first["log_delay"] < 0
    assert second["later"] and second["step"] == pytest.approx(10**2.5 - 1)
    middle = np.log(10) + np.log(10) * 0.1 / 1.1  # where growth crosses 2, in log(1 + step)
    assert second["log_delay"] == pytest.approx(2.5 * np.log(10) - middle)
    # As late, but by fewer than two of its errors, where leaving out classes moves it.
    blocks = [np.transpose([early, [1, 3, 3, 3]]), np.transpose([early, [1, 1, 1, 3]])]
    curve.classes = list(np.stack(blocks, axis=1).astype(float))
    _, second = analysis._Crossings.of(curve, 0.5, "final").rows([1, 2])
    assert second["log_delay_error"] > second["log_delay"] / 2 and not second["later"]


def test_metrics_have_errors_and_a_null(found):
    _, metrics, _, _ = found
    rows = metrics[metrics["statistic"] == "lift"].set_index(["network", "kernel", "step", "depth"])
    last = rows.loc[("1", SAMPLED["fixed"], STEPS[-1], 3)]
    assert last["value"] > 4 > last["null_high"] > 1 > last["null_low"]
    early = rows.loc[("1", SAMPLED["fixed"], 30, 3)]  # still in doubt
    assert 0 < early["error_draws"] < 2 and 0 < early["error_classes"] < 2
    assert np.isnan(rows.loc[("1", FEATURES, STEPS[-1], 3), "error_draws"])
    start = rows.loc[("1", SAMPLED["fixed"], 0, 3)]
    assert start["null_low"] - 0.2 < start["value"] < start["null_high"] + 0.2
    control = rows.loc[("shuffled-1", SAMPLED["fixed"], 50, 3)]
    assert control["null_low"] - 0.2 < control["value"] < control["null_high"] + 0.2


def test_maps(found):
    folder = found[0]
    measure.maps(*files_of(folder, "1"), folder / "hierarchy.json", SETTINGS, folder / "maps.npz")
    with np.load(folder / "maps.npz") as stored:
        arrays = dict(stored)
    assert arrays["steps"].tolist() == STEPS and str(arrays["kernel"]) == SAMPLED["fixed"]
    assert arrays["maps"].shape == (len(STEPS), len(WNIDS), 2)
    outputs = [folder / f"figure.{kind}" for kind in ("pdf", "png")]
    tables = (folder / "metrics.csv", folder / "crossings.csv", folder / "maps.npz")
    figures.trajectory(*tables, SETTINGS, *outputs)
    assert all(path.stat().st_size > 5000 for path in outputs)


def claimed_from(folder):
    return [folder / f"{name}.csv" for name in ("order", "crossings", "metrics")]


def test_the_claim(found):
    folder = found[0]
    analysis.claims(*claimed_from(folder), SETTINGS, folder / "claims.csv")
    row = pd.read_csv(folder / "claims.csv").set_index("id").loc["development.coarse_to_fine"]
    assert row["reproduced"] == pytest.approx(1) and row["n"] == 1 and np.isfinite(row["spread"])
    assert row["null"] <= 1 and "growth alone" in row["beside"] and "network 1 1" in row["beside"]
    assert "top-1 30.0%" in row["setting"] and "5 depths above shuffled classes" in row["setting"]


@pytest.mark.parametrize(
    ("spearman", "null", "error", "words"),
    [
        (0.9, 0.5, 0.1, "holds"),
        (0.9, 0.95, 0.1, "not resolved"),  # growth alone orders them as well
        (0.9, np.nan, 0.1, "not resolved"),
        (-0.9, 0.5, 0.1, "does not hold"),
        (0.9, 0.5, 0.6, "not resolved"),
        (np.nan, np.nan, np.nan, "not tested"),
    ],
)
def test_the_verdict_is_the_datas(tmp_path, spearman, null, error, words):
    row = {"network": "1", "kernel": SAMPLED["fixed"]}
    row |= {"share": 0.5, "of": "final", "depths": 2, "spearman": spearman}
    row |= {"grown": 0.3, "grown_high": null}
    row |= {"error_draws": error, "error_classes": 0.0, "error_networks": np.nan}
    pd.DataFrame([row]).to_csv(tmp_path / "order.csv", index=False)
    curve = {name: row[name] for name in ("network", "kernel", "share", "of")}
    crossings = pd.DataFrame({"depth": [1, 2, 3, 4], "step": [6, 30, 60, 70], "resolved": True})
    crossings = crossings.assign(later=[False, True, False, True], log_delay=0.5)
    crossings.loc[3, "resolved"] = False
    crossings.assign(**curve).to_csv(tmp_path / "crossings.csv", index=False)
    metric = {"network": "1", "kernel": "network", "statistic": "top1", "value": 0.2}
    pd.DataFrame({"step": [5, 50, 500]}).assign(**metric).to_csv(
        tmp_path / "metrics.csv", index=False
    )
    analysis.claims(*claimed_from(tmp_path), SETTINGS, tmp_path / "claims.csv")
    row = pd.read_csv(tmp_path / "claims.csv").iloc[0]
    assert verdict(BY_ID["development.coarse_to_fine"], row) == words
    # Depth 4 is late as well, but not told from permuted classes.
    assert (
        "depths later than growth alone 1; depth 2 later than growth alone by 0.5" in row["beside"]
    )
    assert "depths of 3 that cross between the checkpoints at steps 5 and 50 2" in row["beside"]


def test_several_networks_have_a_mean_and_a_spread(tmp_path):
    for network in ("1", "2"):
        for step in STEPS:
            write(tmp_path, network, step, shown(step))
    metrics, _, order = analyze(tmp_path, "1", "2")
    assert set(order["network"]) == {"1", "2", analysis.ALL}
    rows = metrics[metrics["statistic"] == "lift"].set_index(["kernel", "step", "depth", "network"])
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
    with pytest.raises(TraceError, match="of other weights than the kernel of rule 'fixed'"):
        measured(tmp_path, "1")
    write(tmp_path, "1", 0, set())
    (tmp_path / "1-0-rise.npz").unlink()
    with pytest.raises(TraceError, match="there is no kernel of rule 'rise' beside it"):
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
    curves = [measured(tmp_path, "1"), measured(tmp_path, "2", neighbors=2)]
    outputs = [tmp_path / name for name in ("metrics.csv", "crossings.csv", "order.csv")]
    with pytest.raises(TraceError, match="network 2: measured with neighbors = 2, not 1 as 1"):
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
