"""The localization sweep on synthetic traces whose kernels, colors and times are known."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from losskernel.errors import DataError, TraceError
from losskernel.experiments.claims import BY_ID, verdict
from losskernel.experiments.gamma_sweep import analyze as gamma_sweep
from losskernel.experiments.gamma_sweep import claims as gamma_claims
from losskernel.experiments.gamma_sweep import figures as figure
from losskernel.semantics.wordnet import Hierarchy
from losskernel.trace import LossTrace

INPUTS, DRAWS, PARAMETERS = 48, 60, 400
GAMMAS = (100.0, 1000.0, 4000.0, 1e4, 1e5)
BASE = {"n_beta": 10.0, "gamma": 1e4, "step_size": 1e-5}
SETTINGS = {
    "discard": 4,
    "draws": DRAWS,
    "chains": 1,
    "neighbors": 5,
    "depths": [2],
    "color_quantile": 0.2,
    "blocks": 4,
    "permutations": 39,
    "cka_level": 0.9,
    "regimes": {"diffuse_rise": 0.5, "frozen_linear_share": 0.95},
    "base": BASE,
    "seed": 0,
}
FAMILY = np.arange(INPUTS) // 12  # four families of twelve classes, one input each
COLOR = np.arange(INPUTS) % 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Traces that follow color at low gamma and family, linearly, at high gamma."""
    folder = tmp_path_factory.mktemp("sweep")
    rng = np.random.default_rng(0)
    names = np.array([f"n{i:08d}/{i}.png" for i in range(INPUTS)])
    root = {"root": (), **{f"family{f}": ("root",) for f in range(4)}}
    classes = [f"class{i}" for i in range(INPUTS)]
    hypernyms = root | {f"genus{f}": (f"family{f}",) for f in range(4)}
    hypernyms |= {name: (f"genus{FAMILY[i]}",) for i, name in enumerate(classes)}
    wnids = [name.split("/")[0] for name in names]
    Hierarchy(tuple(wnids), tuple(classes), tuple(classes), hypernyms).to_file(folder / "h.json")
    table = pd.DataFrame(rng.normal(0, 1, (INPUTS, 3)), columns=["L", "a", "b"])
    table["L"] += 15 * COLOR
    table.insert(0, "name", names)
    table.to_csv(folder / "colors.csv", index=False)
    families = np.eye(4)[FAMILY] @ rng.normal(size=(4, PARAMETERS))
    gradients = families + 0.8 * rng.normal(size=(INPUTS, PARAMETERS))
    np.savez(
        folder / "limit.npz",
        gram=gradients @ gradients.T,
        weights_sha256="w",
        inputs_sha256="i",
    )
    shades = np.eye(6)[COLOR]
    for chain, gamma in enumerate(GAMMAS):
        _trace(folder, chain, gamma, gradients, shades, names, rng)
    return folder


def _trace(folder, chain, gamma, gradients, shades, names, rng):
    eps = BASE["step_size"]
    x, linear = np.zeros(PARAMETERS), np.empty((1, DRAWS, INPUTS))
    for draw in range(DRAWS):
        for _ in range(5):
            x = (1 - eps * gamma / 2) * x + np.sqrt(eps) * rng.normal(size=PARAMETERS)
        linear[0, draw] = x @ gradients.T
    size = linear.std() * 3 * (1e3 / gamma)
    shared = size * rng.normal(size=(1, DRAWS, 6)) @ shades.T
    rise = 2e4 / gamma * (1 - np.exp(-np.arange(1, DRAWS + 1) * 5 * eps * gamma))
    own = 1e-3 * linear.std() * rng.normal(size=linear.shape)
    trace = LossTrace.build(
        1 + linear + shared + own + rise[None, :, None],
        np.ones(INPUTS),
        np.zeros((1, DRAWS)),
        [chain],
        {"label": np.arange(INPUTS), "name": names},
        {
            "probe": json.dumps(BASE | {"gamma": gamma}),
            "weights_sha256": "w",
            "inputs_sha256": "i",
            "seed": 0,
            "burn_in": 0,
            "steps_per_draw": 5,
        },
    )
    dataset = trace.dataset.assign(linear=(trace.dataset["loss"].dims, linear.astype(np.float32)))
    LossTrace(dataset).save(folder / f"{chain}.nc")


def analyze(folder, output, limit=True, settings=SETTINGS, traces=None):
    gamma_sweep.analyze(
        traces or [folder / f"{chain}.nc" for chain in range(len(GAMMAS))],
        folder / "colors.csv",
        folder / "h.json",
        settings,
        output / "metrics.csv",
        output / "regimes.csv",
        output / "trends.csv",
        output / "cka.csv",
        folder / "limit.npz" if limit else None,
    )
    return output


@pytest.fixture(scope="module")
def analyzed(folder):
    return analyze(folder, folder / "out")


@pytest.fixture(scope="module")
def metrics(analyzed):
    table = pd.read_csv(analyzed / "metrics.csv").fillna({"estimator": ""})
    return table.set_index(["estimator", "statistic", "gamma"]).sort_index()


def value(metrics, estimator, statistic):
    return metrics.loc[(estimator, statistic)].value


def test_color_gives_way_to_the_hierarchy(metrics):
    for statistic in ("lift", "squared_lift"):
        for estimator in ("draws alone", "control variate"):
            color = value(metrics, estimator, f"color_{statistic}")
            hierarchy = value(metrics, estimator, f"hierarchy_{statistic}")
            assert color.loc[100] > color.loc[1e5] and hierarchy.loc[1e5] > hierarchy.loc[100]
    high = metrics.loc[("control variate", "hierarchy_lift", 1e5)]
    limit = metrics.loc[("exact limit", "hierarchy_lift", np.inf)]
    assert high.value > high.null_high and high.value == pytest.approx(limit.value, rel=0.1)


def test_a_run_far_from_stationary_is_not_given_the_kernel_of_the_limit(metrics):
    reached = value(metrics, "", "variance_reached")
    assert reached.loc[100] < 0.2 and reached.loc[1e5] > 0.9
    to_limit = value(metrics, "control variate", "corrected_cka_to_limit")
    assert to_limit.loc[100] < 0.5 and to_limit.loc[1e5] == pytest.approx(1, abs=0.1)


def test_regimes_follow_their_rule(analyzed, metrics):
    regimes = pd.read_csv(analyzed / "regimes.csv").set_index("gamma")
    rise, share = value(metrics, "", "mean_loss_rise"), value(metrics, "", "linear_share")
    lift = metrics.loc[("control variate", "hierarchy_lift")]
    for gamma, row in regimes.iterrows():
        if rise.loc[gamma] > 0.5:
            expected = "diffuse"
        elif share.loc[gamma] >= 0.95:
            expected = "frozen"
        else:
            above = lift.loc[gamma].value > lift.loc[gamma].null_high
            expected = "semantic" if above else "unresolved"
        assert row.regime == expected and row.reason
    assert regimes.regime.loc[100] == "diffuse" and regimes.regime.loc[1e5] == "frozen"


def test_trends_and_changes_are_those_of_the_values(analyzed, metrics):
    trends = pd.read_csv(analyzed / "trends.csv").fillna({"estimator": ""})
    row = trends.set_index(["estimator", "statistic"]).loc[("draws alone", "color_lift")]
    lift = metrics.loc[("draws alone", "color_lift")]
    assert (row.lowest, row.highest, row.settings) == (100, 1e5, 5)
    assert row.change == pytest.approx(lift.value.loc[1e5] - lift.value.loc[100], rel=1e-4)
    null = (lift.null_high - lift.null_low) / (2 * 1.96)
    uncertain = np.maximum(lift.error, null)
    assert row.change_error == pytest.approx(
        np.hypot(uncertain.loc[1e5], uncertain.loc[100]), rel=1e-4
    )
    assert row.spearman < 0 and 0 < row.p <= 1


def test_kernels_of_neighboring_settings_and_of_the_limit_are_compared(analyzed):
    table = pd.read_csv(analyzed / "cka.csv")
    assert len(table) == 2 * 15  # pairs of five settings and the limit, by two estimators
    alone = table[table.estimator == "draws alone"]
    assert alone.adjacent.sum() == 4
    adjacent = alone[alone.adjacent]
    assert set(zip(adjacent.gamma_1, adjacent.gamma_2, strict=True)) == set(
        zip(GAMMAS[:-1], GAMMAS[1:], strict=True)
    )
    ends = alone[(alone.gamma_1 == 1e5) & np.isinf(alone.gamma_2)].iloc[0]
    assert ends.cka < ends.corrected_cka == pytest.approx(1, abs=4 * ends.corrected_cka_error)


def test_convergence_is_faster_at_high_gamma(metrics):
    settled = value(metrics, "", "settled_draws")
    assert settled.loc[100] == DRAWS and settled.loc[1e5] < 10
    times = value(metrics, "", "autocorrelation_draws")
    assert times.loc[100] > 5 * times.loc[1e5]


def test_without_a_limit_the_draws_stand_alone(folder, tmp_path):
    analyze(folder, tmp_path, limit=False)
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert set(table.estimator.dropna()) == {"draws alone"}
    assert "linear_share" not in set(table.statistic)
    claims = claim(tmp_path, folder)
    assert "exact limit" not in claims.beside["gamma.hierarchy_lift"]


def claim(analyzed, folder):
    gamma_claims.claims(
        analyzed / "metrics.csv",
        analyzed / "trends.csv",
        analyzed / "regimes.csv",
        SETTINGS,
        analyzed / "claims.csv",
    )
    return pd.read_csv(analyzed / "claims.csv").set_index("id")


def test_claims_are_those_of_the_tables(analyzed, folder, metrics):
    claims = claim(analyzed, folder)
    assert claims.reproduced["gamma.minimum"] == 100 and claims.reproduced["gamma.maximum"] == 1e5
    lift = value(metrics, "draws alone", "color_lift")
    assert claims.reproduced["gamma.colour_lift"] == pytest.approx(
        lift.loc[1e5] - lift.loc[100], rel=1e-4
    )
    times = value(metrics, "", "autocorrelation_draws")
    assert claims.reproduced["gamma.convergence"] == pytest.approx(
        times.loc[100] / times.loc[1e5], rel=1e-4
    )
    assert "at 100 " in claims.beside["gamma.colour_lift"]


@pytest.mark.parametrize(
    ("change", "spearman", "p", "word"),
    [
        (1.0, 0.9, 0.01, "holds"),
        (-1.0, -0.9, 0.01, "does not hold"),
        (1.0, 0.9, 0.2, "not resolved"),
        (0.15, 0.9, 0.01, "not resolved"),
        (1.0, -0.9, 0.01, "not resolved"),
    ],
)
def test_a_verdict_needs_change_and_trend(change, spearman, p, word):
    row = {"change": change, "change_error": 0.1, "spearman": spearman, "p": p}
    index = pd.MultiIndex.from_tuples([("draws alone", "hierarchy_lift")])
    trend = pd.DataFrame([row], index=index)
    found = gamma_claims._change(trend, "hierarchy", 5, "", {}, pd.Series(dtype=float))
    assert verdict(BY_ID["gamma.hierarchy_lift"], found) == word


def test_settings_with_the_same_noise_are_refused(folder, tmp_path):
    loaded = LossTrace.load(folder / "1.nc")
    LossTrace(loaded.dataset.assign_coords(chain=[0])).save(tmp_path / "1.nc")
    traces = [folder / "0.nc", tmp_path / "1.nc", folder / "2.nc"]
    with pytest.raises(TraceError, match="chain 0 has the noise of"):
        analyze(folder, tmp_path, traces=traces)


def test_an_image_without_a_color_is_named(folder, tmp_path):
    table = pd.read_csv(folder / "colors.csv")
    for name in ("h.json", "limit.npz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    table.iloc[1:].to_csv(tmp_path / "colors.csv", index=False)
    traces = [folder / f"{chain}.nc" for chain in range(3)]
    with pytest.raises(DataError, match="lacks n00000000/0.png"):
        analyze(tmp_path, tmp_path, traces=traces)


def test_colors_are_one_row_an_image_and_no_pixels(tmp_path):
    wnids = ("n01440764", "n01443537")
    for wnid, color in zip(wnids, ("white", "black"), strict=True):
        path = tmp_path / "images" / wnid / f"{wnid}_1.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), color).save(path)
    settings = {"image_folder": str(tmp_path / "images"), "per_class": None}
    gamma_sweep.colors(settings | {"skip_unreadable": False}, tmp_path / "colors.csv")
    table = pd.read_csv(tmp_path / "colors.csv")
    assert table.columns.tolist() == ["name", "L", "a", "b"]
    assert table.name.tolist() == [f"{wnid}/{wnid}_1.png" for wnid in wnids]
    np.testing.assert_allclose(table[["L", "a", "b"]], [[100, 0, 0], [0, 0, 0]])


def test_the_figure_is_drawn_without_a_limit_too(folder, tmp_path):
    analyze(folder, tmp_path, limit=False)
    figure.sweep(
        tmp_path / "metrics.csv",
        tmp_path / "regimes.csv",
        tmp_path / "cka.csv",
        SETTINGS,
        tmp_path / "f.pdf",
        tmp_path / "f.png",
    )
    with Image.open(tmp_path / "f.png") as image:
        assert np.asarray(image.convert("L")).std() > 10


@pytest.fixture(scope="module")
def small(folder, tmp_path_factory):
    """The same traces as if of a step size of 0.5 / gamma, without linear parts."""
    output = tmp_path_factory.mktemp("small")
    for chain, gamma in enumerate(GAMMAS):
        dataset = LossTrace.load(folder / f"{chain}.nc").dataset.drop_vars("linear")
        probe = {"n_beta": 10.0, "gamma": gamma, "step_size": 0.5 / gamma}
        dataset.attrs["probe"] = json.dumps(probe)
        LossTrace(dataset).save(output / f"{chain}.nc")
    settings = SETTINGS | {"base": {"n_beta": 10.0, "gamma": 0, "step_size": 0}}
    traces = [output / f"{chain}.nc" for chain in range(len(GAMMAS))]
    return analyze(folder, output, settings=settings, traces=traces)


def test_settings_of_one_relaxation_are_a_line(small, metrics):
    table = pd.read_csv(small / "trends.csv")
    assert table.step_size.isna().all() and set(table.settings) == {len(GAMMAS)}
    row = table[(table.estimator == "draws alone") & (table.statistic == "hierarchy_lift")].iloc[0]
    lift = value(metrics, "draws alone", "hierarchy_lift").loc[list(GAMMAS)]
    # Values do not depend on the step size that is named.
    assert row.change == pytest.approx(lift.iloc[-1] - lift.iloc[0], rel=1e-4)
    estimators = set(pd.read_csv(small / "metrics.csv").estimator.dropna())
    assert estimators == {"draws alone", "exact limit"}
    pairs_of = pd.read_csv(small / "cka.csv")
    assert pairs_of.adjacent.sum() == len(GAMMAS) - 1


def test_claims_of_the_small_network(small):
    settings = {"neighbors": 5, "discard": 4, "training_seed": 1, "n_beta": 10, "relaxation": 0.5}
    tables = [small / f"{name}.csv" for name in ("metrics", "trends", "regimes")]
    gamma_claims.small(*tables, settings | {"chains": 1, "draws": DRAWS}, small / "claims.csv")
    claims = pd.read_csv(small / "claims.csv").set_index("id")
    assert list(claims.index) == ["gamma.small_hierarchy", "gamma.small_colour"]
    assert claims.reproduced["gamma.small_colour"] < 0 < claims.reproduced["gamma.small_hierarchy"]
    row = claims.loc["gamma.small_hierarchy"]
    assert verdict(BY_ID["gamma.small_hierarchy"], row) == "holds"
    assert "5 values of gamma" in claims.setting["gamma.small_colour"]


def test_the_figure_of_the_small_network(small):
    files = small / "metrics.csv", small / "regimes.csv"
    figure.small(*files, SETTINGS, small / "f.pdf", small / "f.png")
    with Image.open(small / "f.png") as image:
        assert np.asarray(image.convert("L")).std() > 10
