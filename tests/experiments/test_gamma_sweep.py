"""The localization sweep, on kernels whose structure along gamma is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from losskernel.errors import DataError
from losskernel.experiments.claims import BY_ID, verdict
from losskernel.experiments.gamma_sweep import analyze as gamma_sweep
from losskernel.experiments.gamma_sweep import claims as gamma_claims
from losskernel.experiments.gamma_sweep import figures
from losskernel.semantics.color import color_differences
from losskernel.semantics.wordnet import Hierarchy
from series import stored_kernel

HIERARCHY = Path(__file__).parents[2] / "results/reference/imagenet/hierarchy.json"
INPUTS, DRAWS = 60, 60
GAMMAS = (1e5, 1e4, 1e3)
SETTINGS = {"neighbors": 5, "depth": 6, "depth_bins": [0, 5, 8], "alike_quantile": 0.1, "seed": 0}
SHARES = {1e5: 0.0, 1e4: 0.3, 1e3: 0.6}  # of R that is the hierarchy's, the rest is the colors'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Kernels of losses that fluctuate with the hierarchy where gamma is low, else with colors."""
    folder = tmp_path_factory.mktemp("sweep")
    rng = np.random.default_rng(0)
    tree = Hierarchy.from_file(HIERARCHY)
    labels = rng.choice(1000, INPUTS, replace=False)
    names = np.array([f"image-{i}" for i in range(INPUTS)])
    colors = pd.DataFrame(rng.uniform(0, 80, (INPUTS, 3)), columns=["L", "a", "b"])
    colors[["texture_0", "texture_1"]] = colors[["L", "a"]]  # textures that go with the color
    colors.insert(0, "name", names)
    colors.to_csv(folder / "colors.csv", index=False)
    by_tree = tree.wu_palmer[np.ix_(labels, labels)]
    by_color = np.exp(-color_differences(colors[["L", "a", "b"]]) / 20)
    for number, gamma in enumerate(GAMMAS):
        share = SHARES[gamma]
        mixed = share * by_tree + (1 - share) * by_color + 1e-6 * np.eye(INPUTS)
        draws = rng.standard_normal((2 * DRAWS, INPUTS)) @ np.linalg.cholesky(mixed).T
        values = 1 + 0.1 * draws + 1 / gamma**0.5
        attributes = {"gamma": gamma, "linear_share": 1.0}
        inputs = {"label": labels, "name": names}
        kernel = stored_kernel(values, np.ones(INPUTS), inputs, attributes, groups=6)
        kernel.save(folder / f"{number}.npz")
    np.savez(folder / "limit.npz", gram=by_color)
    return folder


def analyze(folder, output, gammas=GAMMAS):
    gamma_sweep.analyze(
        colors=folder / "colors.csv",
        hierarchy=HIERARCHY,
        settings=SETTINGS,
        output=output,
        kernels=[folder / f"{GAMMAS.index(gamma)}.npz" for gamma in gammas],
        limit=folder / "limit.npz",
    )
    return pd.read_csv(output)


@pytest.fixture(scope="module")
def metrics(folder):
    return analyze(folder, folder / "metrics.csv")


def along(metrics, statistic):
    return metrics[metrics.statistic == statistic].set_index("gamma").value


def test_the_hierarchy_comes_in_where_it_was_put_in(metrics):
    hierarchy, color = along(metrics, "hierarchy"), along(metrics, "color")
    assert hierarchy[1e3] > hierarchy[1e4] > hierarchy[1e5]
    assert color[1e5] > color[1e4] > color[1e3]
    texture = along(metrics, "texture")
    assert texture[1e5] > texture[1e4] > texture[1e3]
    deep = along(metrics, "mean R at depth 8 or deeper")
    shallow = along(metrics, "mean R at depth 0 to 4")
    assert deep[1e3] > shallow[1e3]
    assert set(hierarchy.index) == {*GAMMAS, np.inf}


def test_a_correlation_is_that_without_noise(metrics, folder):
    """Of R by the colors alone it is that of the exact limit, which has the same structure."""
    color = metrics[metrics.statistic == "color"].set_index("gamma")
    apart = color.value[1e5] - color.value[np.inf]
    assert abs(apart) < 3 * np.hypot(color.error_draws[1e5], color.error_classes[1e5])


def test_a_change_is_that_of_the_ends_with_an_error(metrics):
    row = metrics[metrics.statistic == "change of hierarchy"].iloc[0]
    hierarchy = along(metrics, "hierarchy")
    assert row.value == pytest.approx(hierarchy[1e5] - hierarchy[1e3])
    assert row.error_draws > 0 and row.error_classes > 0


def test_the_rise_is_that_of_the_mean_loss(metrics):
    rise = metrics[metrics.statistic == "rise"].set_index("gamma")
    for gamma in GAMMAS:
        expected = gamma**-0.5
        assert abs(rise.value[gamma] - expected) < 4 * rise.error_draws[gamma]


def test_a_single_gamma_is_no_sweep(folder, tmp_path):
    with pytest.raises(DataError, match="needs at least two gammas"):
        analyze(folder, tmp_path / "m.csv", GAMMAS[:1])


def test_claims_tell_what_was_reached(metrics, folder, tmp_path):
    gamma_claims.claims(folder / "metrics.csv", {"model": "m"}, tmp_path / "claims.csv")
    claims = pd.read_csv(tmp_path / "claims.csv").set_index("id")
    assert claims.reproduced["gamma.effective_minimum"] == 1e3
    assert claims.reproduced["gamma.effective_maximum"] == 1e5
    low, high = (claims.loc[f"gamma.{end}"] for end in ("minimum", "maximum"))
    assert verdict(BY_ID["gamma.minimum"], low) == "not tested"  # the paper's 100 was not reached
    assert verdict(BY_ID["gamma.maximum"], high) == ""
    change = metrics[metrics.statistic == "change of hierarchy lift"].iloc[0]
    row = claims.loc["gamma.hierarchy_lift"]
    assert row.reproduced == pytest.approx(change.value)
    assert row.spread == pytest.approx(np.hypot(change.error_draws, change.error_classes))
    assert "hierarchy at the exact limit" in row.beside
    assert verdict(BY_ID["gamma.convergence"], claims.loc["gamma.convergence"]) == "not tested"


def test_the_mean_of_networks_has_the_error_that_they_show(metrics, tmp_path):
    paths = [tmp_path / f"{number}.csv" for number in range(2)]
    for path, moved in zip(paths, (-0.1, 0.1), strict=True):
        metrics.assign(value=metrics.value + moved).to_csv(path, index=False)
    gamma_sweep.mean_of_networks(paths, tmp_path / "mean.csv")
    mean = pd.read_csv(tmp_path / "mean.csv")
    assert len(mean) == len(metrics)
    np.testing.assert_allclose(mean.value, metrics.value)
    # Half of the difference of two; errors over draws fall, those over the same classes do not.
    np.testing.assert_allclose(mean.error_networks, 0.1)
    one, both = (table.set_index(["gamma", "statistic"]) for table in (metrics, mean))
    key = (1e3, "hierarchy")
    assert both.error_draws[key] == pytest.approx(one.error_draws[key] / 2**0.5)
    assert both.error_classes[key] == pytest.approx(one.error_classes[key])
    settings = {"training_seeds": [1, 2], "pairs": 8}
    gamma_claims.small(tmp_path / "mean.csv", settings, tmp_path / "claims.csv")
    claims = pd.read_csv(tmp_path / "claims.csv").set_index("id")
    assert list(claims.index) == ["gamma.small_hierarchy", "gamma.small_colour"]
    row = claims.loc["gamma.small_colour"]
    assert "networks 1, 2" in row.setting and "error over networks" in row.setting
    assert row.spread > 0.1 and row.n == 2


def test_a_single_network_has_no_error_over_networks(metrics, folder, tmp_path):
    gamma_sweep.mean_of_networks([folder / "metrics.csv"], tmp_path / "mean.csv")
    mean = pd.read_csv(tmp_path / "mean.csv")
    assert mean.error_networks.isna().all()
    change = mean[mean.statistic == "change of hierarchy lift"].iloc[0]
    expected = np.hypot(change.error_draws, change.error_classes)
    assert gamma_sweep.all_errors(change) == pytest.approx(expected)


def test_the_figure_shows_every_gamma(folder, metrics, tmp_path):
    figures.sweep(folder / "metrics.csv", tmp_path / "f.pdf", tmp_path / "f.png")
    with Image.open(tmp_path / "f.png") as image:
        assert min(image.size) > 800
    assert (tmp_path / "f.pdf").stat().st_size > 5000
