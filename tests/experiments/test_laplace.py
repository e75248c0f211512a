"""The Laplace form against chains: the table is made, and shown as it is."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from losskernel.experiments.comparison import stack
from losskernel.experiments.laplace import compare, page

ROOT = Path(__file__).parents[2]


def test_the_table_of_the_page_is_that_of_the_file(tmp_path):
    copy, original = tmp_path / "estimators.md", ROOT / "docs/estimators.md"
    copy.write_text(original.read_text())
    page(ROOT / "results/reference/laplace.csv", copy)
    assert copy.read_text() == original.read_text()


@pytest.mark.slow
def test_a_small_comparison(tmp_path):
    settings = {
        "seed": 0,
        "stiffness": [1],
        "fisher_repeats": 1,
        "chains": 4,
        "burn_in": 1,
        "relaxations": 3,
        "draws_per_relaxation": 4,
        "draws": 600,
        "pairs": 4,
        "digits": {
            "inputs": 40,
            "probe_inputs": 12,
            "hidden_widths": [4],
            "training": {"steps": 100, "warmup": 0, "batch_size": 40, "learning_rate": 0.02},
        },
    }
    compare(settings, "digits", 0.01, tmp_path / "digits.csv")
    stack([tmp_path / "digits.csv"] * 2, tmp_path / "all.csv")
    table = pd.read_csv(tmp_path / "all.csv")
    assert len(table) == 2 and np.isfinite(table.select_dtypes("number")).all(axis=None)
    assert not table["believed"].any()  # three relaxations are too few
    # The data hold the weights: chains and Laplace form rise less than the probe without them.
    assert (table["rise_direct"] < table["rise_isotropic"]).all()
    assert (table["rise_chains"] < table["rise_isotropic"]).all()
