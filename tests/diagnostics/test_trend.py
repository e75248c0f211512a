"""Rank correlation with the order of settings."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from losskernel.diagnostics.trend import rank_trend


def test_it_is_spearmans_correlation():
    values = np.random.default_rng(0).normal(size=9)
    assert rank_trend(values) == pytest.approx(spearmanr(np.arange(9), values).statistic)
    assert rank_trend([1, 2, 2, 7]) == pytest.approx(spearmanr(range(4), [1, 2, 2, 7]).statistic)
    assert rank_trend([3, 3, 3]) == 0
