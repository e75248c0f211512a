"""Draws with and without a control variate."""

import numpy as np
import pytest

from losskernel.kernel.control_variate import normalize
from losskernel.kernel.covariance import correlation, covariance
from losskernel.kernel.estimate import Draws


def draws_of(chains=1, inputs=6, parameters=50):
    """Losses that are linear in displacements of variance 1."""
    rng = np.random.default_rng(9)
    gradients = rng.normal(size=(inputs, parameters))
    linear = rng.normal(size=(chains, 10, parameters)) @ gradients.T
    return Draws(linear, linear, gradients @ gradients.T)


def test_linear_losses_have_the_kernel_of_their_gradients_without_noise():
    draws = draws_of()
    for part in (draws, draws.at(slice(5)), *draws.halves()):
        np.testing.assert_allclose(part.r, normalize(draws.known), atol=1e-9)
    assert draws.linear_share == pytest.approx(1)
    assert np.abs(Draws(draws.losses).r - draws.r).max() > 0.1


def test_without_a_linear_part_it_is_the_plain_kernel():
    losses = np.random.default_rng(5).normal(size=(2, 9, 4))
    draws = Draws(losses)
    np.testing.assert_array_equal(draws.kernel, covariance(losses))
    np.testing.assert_allclose(draws.r, correlation(losses), atol=1e-12)
    assert np.isnan(draws.linear_share)
    mask = np.arange(9) % 2 == 0
    np.testing.assert_array_equal(draws.at(mask).losses, losses[:, mask])


def test_halves_of_one_chain_are_disjoint_and_alternate():
    losses = np.arange(40.0)[None, :, None] * np.ones((1, 1, 2))
    first, second = Draws(losses).halves(parts=10)
    assert first.losses[0, :, 0].tolist()[:8] == [0, 1, 2, 3, 8, 9, 10, 11]
    assert sorted([*first.losses[0, :, 0], *second.losses[0, :, 0]]) == list(range(40))


def test_independent_halves_are_whole_chains():
    draws = draws_of(chains=3)
    first, second = draws.independent_halves()
    np.testing.assert_array_equal(first.losses, draws.losses[[0, 2]])
    np.testing.assert_array_equal(second.linear, draws.linear[[1]])
    assert second.known is draws.known
