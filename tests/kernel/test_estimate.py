"""Draws with a control variate whose law is that of the run itself, stationary or not."""

import numpy as np
import pytest

from losskernel.kernel.control_variate import coupled_law, normalize, run_variance
from losskernel.kernel.covariance import correlation, covariance
from losskernel.kernel.estimate import Draws
from losskernel.sampling.probe import FreeChain

PROBES = [FreeChain(100, 1e-3), FreeChain(1.0, 1e-3), FreeChain(0, 1e-3), FreeChain(3000, 1e-3)]


def walk(probe, steps, rng, dimensions):
    """Coupled displacements at some steps, ``(draw, dimension)``."""
    x, kept = np.zeros(dimensions), []
    for step in range(1, steps[-1] + 1):
        noise = rng.normal(size=dimensions) * np.sqrt(probe.step_size)
        x = (1 - probe.step_size * probe.gamma / 2) * x + noise
        if step in steps:
            kept.append(x)
    return np.array(kept)


@pytest.mark.parametrize("probe", PROBES)
def test_the_law_of_the_run_is_that_of_its_steps(probe):
    steps, dimensions = [2, 3, 7, 12], 40_000
    moved = walk(probe, steps, np.random.default_rng(0), dimensions)
    law = coupled_law(probe, steps)
    found = moved @ moved.T / dimensions
    # Wishart: the variance of an entry is (law_ij^2 + law_ii law_jj) / dimensions.
    error = np.sqrt((law**2 + np.outer(np.diag(law), np.diag(law))) / dimensions)
    assert np.all(np.abs(found - law) < 5 * error)


def test_a_long_run_has_the_stationary_variance():
    probe = FreeChain(2000, 1e-4)
    law = coupled_law(probe, 1000 + 200 * np.arange(1, 30))  # relaxes in 10 steps
    assert run_variance(law) == pytest.approx(probe.localization_variance, rel=1e-6)


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("chains", [1, 3])
def test_run_variance_is_the_expected_sample_variance(probe, chains):
    steps, dimensions = [1, 4, 5], 20_000
    rng = np.random.default_rng(1)
    moved = np.concatenate([walk(probe, steps, rng, dimensions) for _ in range(chains)])
    found = moved.var(axis=0, ddof=1)
    error = found.std(ddof=1) / np.sqrt(dimensions)
    assert abs(found.mean() - run_variance(coupled_law(probe, steps), chains)) < 5 * error


def draws_of(probe, seed, inputs=6, parameters=50, curvature=0.0):
    """Losses that are linear in the displacement, and a curved part of a given size."""
    gradients = np.random.default_rng(9).normal(size=(inputs, parameters))
    steps = list(range(3, 33, 3))
    moved = walk(probe, steps, np.random.default_rng(seed), parameters)
    linear = (moved @ gradients.T)[None]
    losses = linear + curvature * (moved**2) @ np.abs(gradients.T)
    variance = probe.localization_variance
    law = coupled_law(probe, steps) / variance
    return Draws(losses, linear, gradients @ gradients.T * variance, law)


def test_linear_losses_have_the_kernel_of_their_gradients_without_noise():
    draws = draws_of(FreeChain(1.0, 1e-3), 0)
    for part in (draws, draws.at(slice(5)), *draws.halves()):
        np.testing.assert_allclose(part.r, normalize(draws.known), atol=1e-9)
    assert draws.linear_share == pytest.approx(1)
    assert np.abs(draws.alone.r - draws.r).max() > 0.1


def test_the_control_variate_leaves_the_expectation_of_a_run_that_is_far_from_stationary():
    probe = FreeChain(1.0, 1e-3)  # reaches 3 % of its stationary variance
    found = [draws_of(probe, seed, curvature=1.0) for seed in range(400)]
    difference = np.array([d.kernel - d.alone.kernel for d in found])
    error = difference.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert np.all(np.abs(difference.mean(axis=0)) < 4.5 * error)


def test_without_a_law_the_run_is_taken_to_be_stationary():
    draws = draws_of(FreeChain(1.0, 1e-3), 0)
    stationary = Draws(draws.losses, draws.linear, draws.known)
    np.testing.assert_allclose(stationary.kernel, draws.known, rtol=1e-9, atol=1e-9)
    assert np.trace(draws.kernel) < 0.05 * np.trace(stationary.kernel)


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
    probe = FreeChain(1.0, 1e-3)
    runs = [draws_of(probe, seed) for seed in range(3)]
    joined = Draws(
        np.concatenate([run.losses for run in runs]),
        np.concatenate([run.linear for run in runs]),
        runs[0].known,
        runs[0].law,
    )
    first, second = joined.independent_halves()
    np.testing.assert_array_equal(first.losses, joined.losses[[0, 2]])
    np.testing.assert_array_equal(second.linear, runs[1].linear)
    np.testing.assert_allclose(second.kernel, runs[1].kernel)
