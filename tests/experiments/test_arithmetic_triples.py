"""Third cumulants against laws that are known, and what surrogates leave of them."""

import itertools

import numpy as np
import pytest

from losskernel.experiments.arithmetic.triples import (
    pairwise_surrogate,
    third_cumulants,
    triple_excess,
    within_less_mixed,
)

GROUPS = np.repeat([0, 1], 6)


def test_third_cumulants_are_means_of_products():
    losses = np.random.default_rng(0).exponential(size=(500, 4))
    unit = (losses - losses.mean(0)) / losses.std(0)
    found = third_cumulants(losses)
    for i, j, k in itertools.product(range(4), repeat=3):
        assert found[i, j, k] == pytest.approx(
            (unit[:, i] * unit[:, j] * unit[:, k]).mean(), abs=1e-5
        )


def test_a_surrogate_keeps_marginals_and_pairs():
    rng = np.random.default_rng(1)
    normal = rng.multivariate_normal([0, 0, 0], [[1, 0.6, 0.2], [0.6, 1, 0], [0.2, 0, 1]], 20_000)
    losses = np.exp(normal)
    made = pairwise_surrogate(losses, rng)
    np.testing.assert_allclose(np.sort(made, axis=0), np.sort(losses, axis=0), rtol=1e-6)
    found = np.corrcoef(np.log(made).T.astype(float))
    np.testing.assert_allclose(found, np.corrcoef(normal.T), atol=0.03)


def shared_pairs(rng, draws):
    """Skewed losses of two groups that share a factor each, through a normal copula."""
    factor = rng.standard_normal((draws, 2))[:, GROUPS]
    return np.exp(0.5 * (np.sqrt(0.3) * factor + np.sqrt(0.7) * rng.standard_normal((draws, 12))))


def shared_triples(rng, draws):
    """Signs of three inputs of one group whose product is 1: no pair depends on each other."""
    signs = rng.choice([-1.0, 1.0], (draws, 12))
    for last in (2, 5, 8, 11):
        signs[:, last] = signs[:, last - 1] * signs[:, last - 2]
    return signs + 0.5 * rng.standard_normal((draws, 12))


@pytest.mark.parametrize(("make", "joint"), [(shared_pairs, False), (shared_triples, True)])
def test_what_pairs_explain_is_no_excess_and_a_real_triple_is(make, joint):
    found = [
        triple_excess(make(np.random.default_rng(seed), 2000), GROUPS, 8, 99, seed)
        for seed in range(20)
    ]
    values = np.array([one.value for one in found])
    passed = [one.value > max(one.sampling_null, one.permutation_null) for one in found]
    if joint:
        assert all(passed) and max(one.p for one in found) <= 0.025
    else:
        assert abs(values.mean()) < 3 * values.std(ddof=1) / np.sqrt(20)
        # Of 20 tests at 2.5 % more than 4 happen by chance once in 4,000 times.
        assert sum(passed) <= 4
        # What is seen without surrogates is no sign of joint triples.
        assert min(one.before for one in found) > 2 * np.abs(values).mean()


def test_the_difference_counts_each_kind_of_triple():
    tensor = np.zeros((5, 5, 5))
    groups = np.array([0, 0, 0, 1, 1])
    for order in itertools.permutations((0, 1, 2)):
        tensor[order] = 4
    for order in itertools.permutations((0, 1, 3)):
        tensor[order] = 9
    # Ten triples: one within (there is none in a group of two), nine mixed, of which one is 9.
    assert within_less_mixed(tensor, groups) == pytest.approx(4 - 9 / 9)
