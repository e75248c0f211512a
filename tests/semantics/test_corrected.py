"""Noise-corrected statistics against simulated kernels whose truth is known."""

import numpy as np
import pytest

from losskernel.errors import TraceError
from losskernel.kernel.covariance import correlation, half_kernels
from losskernel.semantics.corrected import (
    corrected_auc,
    corrected_correlation,
    corrected_spread,
    mean_correlations,
)
from losskernel.semantics.separation import pair_auc

INPUTS = 60
GROUPS = np.arange(INPUTS) % 2
SAME = GROUPS[:, None] == GROUPS
PAIRS = np.triu(np.ones((INPUTS, INPUTS), bool), 1)


def loadings(rng):
    """Of each input on one factor a group, shared ones of either sign, and one of its own."""
    common = rng.normal(size=(INPUTS, 6))
    common *= rng.uniform(0.3, 0.6, (INPUTS, 1)) / np.linalg.norm(common, axis=1, keepdims=True)
    group = np.eye(2)[GROUPS] * rng.uniform(0.3, 0.6, (INPUTS, 1))
    own = np.diag(np.sqrt(1 - (common**2).sum(1) - (group**2).sum(1)))
    return np.hstack([group, common, own])


LOADINGS = loadings(np.random.default_rng(0))
TRUTH = LOADINGS @ LOADINGS.T
REFERENCE = TRUTH + np.random.default_rng(1).normal(0, 0.1, (INPUTS, INPUTS))
REFERENCE = (REFERENCE + REFERENCE.T) / 2


def simulated(draws, replications):
    rng = np.random.default_rng(draws)
    for _ in range(replications):
        yield (rng.standard_normal((1, draws, LOADINGS.shape[1])) @ LOADINGS.T).astype(np.float32)


def statistics(losses):
    halves = half_kernels(losses)
    return [
        corrected_correlation(*halves, REFERENCE),
        corrected_auc(*halves, SAME),
        corrected_spread(*halves, SAME),
        corrected_spread(*halves, ~SAME),
    ]


def test_the_truth_of_the_simulation():
    losses = next(simulated(100_000, 1))
    np.testing.assert_allclose(correlation(losses), TRUTH, atol=0.02)


@pytest.mark.parametrize("draws", [50, 200, 1000])
def test_corrected_statistics_have_a_bias_below_their_error(draws):
    truth = [
        np.corrcoef(TRUTH[PAIRS], REFERENCE[PAIRS])[0, 1],
        pair_auc(TRUTH, GROUPS),
        TRUTH[PAIRS & SAME].std(),
        TRUTH[PAIRS & ~SAME].std(),
    ]
    found = np.array([statistics(losses) for losses in simulated(draws, 100)])
    bias = found.mean(axis=0) - truth
    assert (np.abs(bias) < found.std(axis=0)).all(), (bias, found.std(axis=0))
    # What noise does to the same statistics uncorrected, from the same number of draws.
    plain = np.array(
        [
            [np.corrcoef(r[PAIRS], REFERENCE[PAIRS])[0, 1], pair_auc(r, GROUPS)]
            for r in (correlation(losses) for losses in simulated(draws, 20))
        ]
    )
    assert (np.abs(plain.mean(axis=0) - truth[:2]) > 3 * np.abs(bias[:2])).all()


@pytest.mark.parametrize("draws", [50, 200, 1000])
def test_mean_correlations_are_unbiased_and_know_their_error(draws):
    relations = {"same": SAME, "other": ~SAME}
    found = [mean_correlations(losses, relations) for losses in simulated(draws, 60)]
    for name, related in relations.items():
        truth = TRUTH[PAIRS & related].mean()
        values, errors = np.array([one[name] for one in found]).T
        spread = values.std(ddof=1)
        assert abs(values.mean() - truth) < 3 * spread / np.sqrt(len(values))
        assert errors.mean() == pytest.approx(spread, rel=0.35)  # 60 values: 10 % of a spread


def test_without_noise_nothing_is_corrected():
    assert corrected_correlation(TRUTH, TRUTH, 2 * TRUTH + 1) == pytest.approx(1)
    assert corrected_auc(TRUTH, TRUTH, SAME) == pytest.approx(pair_auc(TRUTH, GROUPS))
    assert corrected_spread(TRUTH, TRUTH) == pytest.approx(TRUTH[PAIRS].std())
    few = np.zeros_like(SAME)
    few[:5, :5] = True
    assert corrected_spread(TRUTH, TRUTH, few) == pytest.approx(TRUTH[PAIRS & few].std())


def test_noise_alone_has_no_corrected_value():
    opposed = -TRUTH
    assert np.isnan(corrected_correlation(TRUTH, opposed, REFERENCE))
    assert np.isnan(corrected_auc(TRUTH, opposed, SAME))
    assert corrected_spread(TRUTH, opposed) == 0


def test_what_cannot_be_computed_is_refused():
    losses = next(simulated(50, 1))
    with pytest.raises(TraceError, match="no two inputs are related by 'none'"):
        mean_correlations(losses, {"none": np.eye(INPUTS, dtype=bool)})
    with pytest.raises(TraceError, match="4 draws"):
        half_kernels(losses[:, :3])
    with pytest.raises(TraceError, match="not one square"):
        corrected_correlation(TRUTH, TRUTH, TRUTH[:5, :5])
