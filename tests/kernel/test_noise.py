import numpy as np
import pytest

from losskernel.kernel.covariance import correlation
from losskernel.kernel.noise import noise_floor, shifted
from series import autoregressive, independent, structured


@pytest.mark.parametrize("draws", [25, 100, 400])
def test_noise_floor_of_independent_draws(draws):
    """1/sqrt(S - 1); the standard deviation of 3,160 nearly independent values errs by 1.3 %."""
    floor = noise_floor(independent(draws=draws))
    assert floor == pytest.approx(1 / np.sqrt(4 * draws - 1), rel=4 * 0.0126)


def test_noise_floor_rises_with_autocorrelation_and_ignores_structure():
    """Correlation of two AR(1) series: variance (1 + a^2) / (1 - a^2) / S (Bartlett)."""
    losses = autoregressive(0.8, chains=8, inputs=60)
    expected = np.sqrt((1 + 0.64) / (1 - 0.64) / (8 * 400))
    assert noise_floor(losses) == pytest.approx(expected, rel=0.1)
    assert correlation(structured())[0, 1] > 0.7
    # Shifts of two inputs agree by chance in 1 of 200 draws; then R is 0.8 in that chain.
    assert noise_floor(structured()) == pytest.approx(1 / np.sqrt(800), rel=0.2)


def test_shifting_keeps_each_inputs_values_and_their_order_in_time():
    losses = independent(chains=3, draws=7, inputs=5)
    null = shifted(losses, seed=3)
    orders = set()
    for item in range(5):
        rotations = {
            tuple(np.roll(losses[chain, :, item], shift)): chain
            for chain in range(3)
            for shift in range(7)
        }
        order = tuple(rotations[tuple(series)] for series in null[:, :, item])
        assert sorted(order) == [0, 1, 2]  # every chain once
        orders.add(order)
    assert len(orders) > 1
    assert not np.array_equal(null, losses)
    assert np.array_equal(null, shifted(losses, seed=3))


@pytest.mark.parametrize("chains", [1, 4, 16, 64])
def test_the_noise_floor_does_not_depend_on_how_draws_are_shared_out(chains):
    """64 draws of losses with much in common; without it R would have a spread of 1 / sqrt(63)."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(chains, 64 // chains, 1))
    losses = common / 2 + rng.normal(size=(chains, 64 // chains, 200))  # R of 0.2
    assert noise_floor(losses) == pytest.approx(63**-0.5, rel=0.05)
