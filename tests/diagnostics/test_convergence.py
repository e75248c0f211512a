import numpy as np
import pytest
from arviz_stats.base import array_stats

from losskernel.diagnostics.convergence import convergence
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
