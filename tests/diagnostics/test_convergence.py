import numpy as np
import pytest
from arviz_stats.base import array_stats

from losskernel.diagnostics.convergence import (
    autocorrelation_time,
    convergence,
    effective_rank,
    settled_at,
)
from losskernel.errors import TraceError
from series import autoregressive


def test_effective_sample_size_and_rhat_are_arvizs_input_by_input():
    losses = autoregressive(0.7, inputs=5)
    losses[0, :, 2] += 3  # one chain elsewhere
    found = convergence(losses)
    assert found.ess.shape == found.rhat.shape == (5,)
    for item in range(5):
        assert found.ess[item] == pytest.approx(array_stats.ess(losses[:, :, item]))
        assert found.rhat[item] == pytest.approx(array_stats.rhat(losses[:, :, item]))
    others = np.array([0, 1, 3, 4])
    assert found.rhat[2] > 1.3 and (found.rhat[others] < 1.1).all()
    # Bulk ESS of AR(1) is about S (1 - a) / (1 + a) = 282 of 1,600.
    assert (np.abs(np.log(found.ess[others] / 282)) < np.log(2)).all()


def test_a_choice_of_inputs_is_spread_evenly_and_leaves_the_drift():
    losses = autoregressive(0.5, draws=40, inputs=9)
    whole, some = convergence(losses), convergence(losses, most_inputs=3)
    assert np.array_equal(some.ess, whole.ess[::3]) and np.array_equal(some.rhat, whole.rhat[::3])
    assert (some.drift, some.drift_error) == (whole.drift, whole.drift_error)
    assert np.array_equal(convergence(losses, most_inputs=20).ess, whole.ess)


def test_drift_is_measured_with_its_error():
    """Drift over error has mean square 1 over 30 stationary traces (chi-squared, 99.9 %)."""
    z = []
    for seed in range(30):
        found = convergence(autoregressive(0.5, draws=200, inputs=3, seed=seed))
        z.append(found.drift / found.drift_error)
    assert 12 / 30 < np.mean(np.square(z)) < 60 / 30
    losses = autoregressive(0.5, draws=200, inputs=3)
    losses[:, 100:] += 0.5
    found = convergence(losses)
    assert found.drift == pytest.approx(0.5, abs=4 * found.drift_error)
    assert found.drift > 4 * found.drift_error


def test_effective_rank():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((50, 50)))[0]
    basis -= basis.mean(0)
    three = np.linalg.qr(basis[:, :3])[0] @ np.linalg.qr(rng.standard_normal((20, 20)))[0][:3]
    assert effective_rank(three) == pytest.approx(3, abs=1e-6)
    assert effective_rank(np.outer(rng.standard_normal(9), np.ones(4))) == pytest.approx(1)


def test_autocorrelation_time_of_an_autoregressive_chain():
    """(1 + memory) / (1 - memory), within 5 standard errors over 40 chains."""
    for memory in (0.0, 0.7):
        losses = autoregressive(memory, chains=1, draws=2000, inputs=40)
        found = np.array([autocorrelation_time(losses[..., i]) for i in range(40)])
        expected = (1 + memory) / (1 - memory)
        assert abs(found.mean() - expected) < 5 * found.std(ddof=1) / np.sqrt(40)


def test_a_chain_that_drifts_has_a_time_of_the_order_of_its_length():
    assert autocorrelation_time(np.linspace(0, 1, 50)[None]) > 10


def test_settled_at_the_end_of_the_approach():
    noise = 0.05 * np.random.default_rng(0).standard_normal((2, 200))
    approach = np.exp(-np.arange(200) / 10)
    # After five relaxation times the rest of the approach is below the noise of the mean.
    assert 20 <= settled_at(approach + noise) <= 60
    assert settled_at(np.arange(200) / 50 + noise) == 200
    step = np.where(np.arange(40) < 7, 1.0, 0.0)[None]
    assert settled_at(step) == 7


@pytest.mark.parametrize("of", [autocorrelation_time, settled_at])
@pytest.mark.parametrize("series", [np.zeros(9), np.zeros((2, 3))])
def test_a_series_too_short_or_without_chains_is_refused(of, series):
    with pytest.raises(TraceError, match="series"):
        of(series)
