"""Seconds of each estimator: measured on a small network, and shown as they are."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from losskernel.experiments import estimators

ROOT = Path(__file__).parents[2]


def test_the_table_of_the_page_is_that_of_the_file(tmp_path):
    copy, original = tmp_path / "estimators.md", ROOT / "docs/estimators.md"
    copy.write_text(original.read_text())
    estimators.page(ROOT / "results/reference/estimators.csv", copy)
    assert copy.read_text() == original.read_text()


def rows(*sizes: int, error: float = 0.01) -> pd.DataFrame:
    """Noise of 3 / size of the signal; 5 seconds once and 2 for each."""
    size = np.array(sizes)
    facts = {"size": size, "seconds": 5 + 2.0 * size, "cka": (1 + 3 / size) ** -0.5}
    return pd.DataFrame(facts | {"error": error, "estimates": 64 // size})


def test_seconds_to_a_level_follow_from_the_noise():
    law = estimators._Law(rows(4, 8, 16))
    for size in (8, 40):
        assert law.seconds_to((1 + 3 / size) ** -0.5, law.cka) == pytest.approx(5 + 2 * size)
    # What is paid once is not paid in proportion, and no estimate is smaller than the smallest.
    assert law.seconds_to(0.1, law.cka) == law.seconds_to(0.9, 1.0) == pytest.approx(13)
    assert law.seconds_to(0.9, -0.01) == np.inf


def test_an_interval_takes_the_freedom_of_its_estimates():
    # The two largest sizes have 8 and 4 estimates: 7 degrees of freedom.
    law = estimators._Law(rows(4, 8, 16))
    assert law.margin == pytest.approx(0.01 * 2.3646, rel=1e-3)
    best, low, high = law.interval(0.98)
    assert low < best < high < np.inf
    assert estimators._Law(rows(8, 16, error=0.5)).interval(0.98)[2] == np.inf


@pytest.mark.slow
def test_a_small_measurement(tmp_path):
    network = {"prime": 7, "width": 32, "heads": 4, "mlp_width": 64, "depth": 1}
    settings = {
        "seed": 0,
        "arithmetic": {
            "network": network | {"shared_operands": True, "shared_outputs": False},
            "training": {"steps": 200, "batch_size": 91, "learning_rate": 0.005},
            "probe_inputs": 30,
            "draws": 256,
            "batch_size": 32,
            "pairs": [4, 8],
            "reference": 32,
        },
    }
    estimators.measure(settings, "arithmetic", 1e-6, tmp_path / "found.csv")
    table = pd.read_csv(tmp_path / "found.csv")
    assert table.rise.iloc[0] == pytest.approx(1e-6, rel=0.5)
    for name in estimators.LOOKS:
        assert (np.diff(table[table.estimator == name].seconds) > 0).all()
    by = table.set_index(["estimator", "size"]).cka
    # Almost in the linear limit, where the control variate takes the noise and pairs have none.
    assert by[estimators.CONTROLLED, 128] == pytest.approx(1, abs=0.02)
    assert by[estimators.PAIRS, 4] == pytest.approx(1, abs=0.01)
    assert by[estimators.LOSSES, 8] < by[estimators.CONTROLLED, 8] - 0.4
    assert by[estimators.LOSSES, 8] < by[estimators.LOSSES, 128] < 1
    assert by[estimators.SGLD, 8] < by[estimators.SGLD, 128]
    estimators.figure(tmp_path / "found.csv", tmp_path / "e.pdf", tmp_path / "e.png")
    assert (tmp_path / "e.png").stat().st_size > 10_000
