"""Rank correlation with the order of settings, and its exact p."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from losskernel.diagnostics.trend import rank_trend, rank_trend_p


def test_it_is_spearmans_correlation():
    values = np.random.default_rng(0).normal(size=9)
    assert rank_trend(values) == pytest.approx(spearmanr(np.arange(9), values).statistic)
    assert rank_trend([1, 2, 2, 7]) == pytest.approx(spearmanr(range(4), [1, 2, 2, 7]).statistic)
    assert rank_trend([3, 3, 3]) == 0


def test_p_counts_the_orders_that_correlate_as_much():
    values = [0.1, 0.4, 0.2, 0.9, 0.8]
    at_least = [
        abs(rank_trend(order)) >= abs(rank_trend(values)) - 1e-12
        for order in itertools.permutations(values)
    ]
    assert rank_trend_p(values) == pytest.approx(np.mean(at_least))


def test_the_smallest_p_of_seven_settings():
    assert rank_trend_p(np.arange(7)) == pytest.approx(2 / math.factorial(7))
    assert rank_trend_p(-np.arange(7)) == pytest.approx(2 / math.factorial(7))
