import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from losskernel.errors import TraceError
from losskernel.kernel.covariance import (
    CENTERINGS,
    correlation,
    correlation_blocks,
    covariance,
    deviation_blocks,
    deviations,
    nearest_neighbors,
    self_covariance,
    standardized,
    standardized_blocks,
)

RNG = np.random.default_rng(0)
LOSSES = RNG.standard_normal((3, 8, 10)) + RNG.standard_normal((3, 1, 10))
small_losses = arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(1, 6)),
    elements=st.floats(-100, 100, width=32),
)
centerings = pytest.mark.parametrize("center", CENTERINGS)


@given(small_losses)
def test_covariance_is_numpys(losses):
    pooled = losses.reshape(-1, losses.shape[2]).astype(float)
    expected = np.cov(pooled, rowvar=False).reshape(losses.shape[2], -1)
    np.testing.assert_allclose(covariance(losses), expected, rtol=1e-9, atol=1e-9)


@centerings
@given(small_losses)
def test_k_is_symmetric_and_positive_semidefinite(center, losses):
    if center == "draw":
        losses = np.concatenate([losses, losses[:, ::-1]])
    k = covariance(losses, center)
    assert np.array_equal(k, k.T)
    assert np.linalg.eigvalsh(k).min() >= -1e-12 * max(np.trace(k), 1e-300)
    np.testing.assert_allclose(np.diag(k), self_covariance(losses, center), rtol=1e-10)


@centerings
@given(small_losses)
def test_r_is_k_over_the_standard_deviations(center, losses):
    if center == "draw":
        losses = np.concatenate([losses, losses[:, ::-1]])
    k, r = covariance(losses, center), correlation(losses, center)
    scale = np.sqrt(np.outer(np.diag(k), np.diag(k)))
    expected = np.divide(k, scale, out=np.zeros_like(k), where=scale > 0)
    np.testing.assert_allclose(r, expected, atol=1e-9)
    assert np.abs(r).max() <= 1
    assert np.array_equal(np.diag(r), (np.diag(k) > 0).astype(float))


@centerings
@given(
    scale=arrays(float, 10, elements=st.floats(1e-3, 1e3)),
    offset=arrays(float, 10, elements=st.floats(-1e3, 1e3)),
)
def test_r_does_not_change_with_affine_changes_of_each_loss(center, scale, offset):
    changed = correlation(scale * LOSSES + offset, center)
    np.testing.assert_allclose(changed, correlation(LOSSES, center), atol=1e-7)
    flipped = correlation(LOSSES * np.where(np.arange(10) == 3, -1, 1), center)
    np.testing.assert_allclose(flipped[3, :3], -correlation(LOSSES, center)[3, :3], atol=1e-12)


@centerings
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, -1 / 3, 1e6 + 0.1, 1e-30])
def test_a_constant_loss_has_r_zero(center, dtype, constant):
    losses = LOSSES.astype(dtype)
    losses[..., 4] = constant  # its mean over 24 draws may differ from it by rounding
    r = correlation(losses, center)
    assert (r[4] == 0).all() and (r[:, 4] == 0).all()
    assert self_covariance(losses, center)[4] == 0
    assert (standardized(losses, center)[:, 4] == 0).all()
    assert np.diag(r).sum() == 9


def test_the_smallest_float32_variation_is_not_taken_for_a_constant():
    losses = np.full((1, 6, 2), 1e6, np.float32)
    losses[0, 2, 0] = np.nextafter(losses[0, 2, 0], np.float32(np.inf))
    assert np.array_equal(correlation(losses), [[1, 0], [0, 0]])


def test_centerings():
    drift = np.arange(8.0)[None, :, None] * np.ones((3, 8, 2))  # shared by chains and inputs
    places = np.arange(3.0)[:, None, None] * np.ones((3, 8, 2))  # where each chain settled
    noise = RNG.standard_normal((3, 8, 2))
    for center, added in (("chain", places), ("draw", drift)):
        reference = covariance(noise, center)
        np.testing.assert_allclose(covariance(noise + added, center), reference, atol=1e-12)
        assert covariance(noise + added, "pooled")[0, 1] > covariance(noise, "pooled")[0, 1] + 0.5
    for center, freedom in (("pooled", 23), ("chain", 21), ("draw", 16)):
        values, found = deviations(noise, center)
        assert (found, values.shape) == (freedom, (24, 2))


@centerings
def test_covariance_is_unbiased(center):
    """Divisor: the mean of 4,000 estimates from 2 chains x 3 draws within 4.5 standard errors."""
    losses = np.random.default_rng(1).standard_normal((2, 3, 4000))
    variances = self_covariance(losses, center)
    assert abs(variances.mean() - 1) < 4.5 * variances.std() / np.sqrt(4000)


@centerings
@pytest.mark.parametrize("block", [1, 3, 10, 99])
def test_blocks_are_the_columns_of_the_whole(center, block):
    for blocks, whole in (
        (deviation_blocks, deviations(LOSSES, center)[0]),
        (standardized_blocks, standardized(LOSSES, center)),
    ):
        parts = list(blocks(LOSSES, center, block))
        assert all(part.shape[1] <= block for _, part in parts)
        joined = np.concatenate([part for _, part in parts], axis=1)
        np.testing.assert_allclose(joined, whole, atol=1e-14)  # sums run in another order
        assert [i for rows, _ in parts for i in range(rows.start, rows.stop)] == list(range(10))
    r = np.concatenate([part for _, part in correlation_blocks(LOSSES, center, block)])
    np.testing.assert_allclose(r, correlation(LOSSES, center), atol=1e-14)
    assert np.array_equal(np.diag(r), np.ones(10))


def test_one_chain_may_come_without_its_axis():
    assert np.array_equal(covariance(LOSSES[0]), covariance(LOSSES[:1]))


def brute_force(losses, labels):
    r = standardized(losses).astype(np.float32)
    r = r.T @ r
    r[np.eye(len(r), dtype=bool) | (labels[:, None] == labels)] = -np.inf
    return r


@given(
    losses=arrays(
        np.float32,
        st.tuples(st.integers(3, 6), st.integers(4, 12)),
        elements=st.floats(-9, 9, width=32),
    ),
    block=st.integers(1, 13),
    data=st.data(),
)
def test_blocked_neighbors_are_those_of_the_whole_matrix(losses, block, data):
    inputs = losses.shape[1]
    labels = np.array(data.draw(st.lists(st.integers(0, 3), min_size=inputs, max_size=inputs)))
    use_labels = data.draw(st.booleans())
    fewest = inputs - (np.bincount(labels).max() if use_labels else 1)
    if fewest < 1:
        with pytest.raises(TraceError, match="k = 1"):
            nearest_neighbors(losses, 1, labels, block=block)
        return
    k = data.draw(st.integers(1, fewest))
    indices, values = nearest_neighbors(losses, k, labels if use_labels else None, block=block)
    r = brute_force(losses, labels if use_labels else np.arange(inputs))
    assert indices.shape == values.shape == (inputs, k)
    # Ties may come in any order; the values may not.
    np.testing.assert_allclose(values, -np.sort(-r, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(values, np.take_along_axis(r, indices, axis=1), atol=1e-6)
    assert (np.diff(values, axis=1) <= 0).all()
    assert all(len(set(row)) == k for row in indices)
    assert not (indices == np.arange(inputs)[:, None]).any()
    if use_labels:
        assert not (labels[indices] == labels[:, None]).any()


@pytest.mark.parametrize("block", [7, 64, 2048])
def test_neighbors_where_values_are_grouped_before_they_are_sorted(block):
    """More inputs than the properties above try, so that groups of inputs are passed over."""
    losses = np.random.default_rng(2).standard_normal((1, 9, 331)).astype(np.float32)
    losses[..., 17] = 3.0  # R = 0 with all others
    labels = np.arange(331) % 5
    for excluded in (None, labels):
        _, values = nearest_neighbors(losses, 4, excluded, block=block)
        r = brute_force(losses, np.arange(331) if excluded is None else labels)
        np.testing.assert_allclose(values, -np.sort(-r, axis=1)[:, :4], atol=12 * 2.0**-24)


def test_float32_products_err_within_the_stated_bound():
    """Losses of a large mean and a tiny spread are what float32 must not center."""
    rng = np.random.default_rng(0)
    losses = (1e3 + 0.01 * rng.standard_normal((2, 100, 50))).astype(np.float32)
    indices, values = nearest_neighbors(losses, 10)
    r = np.take_along_axis(correlation(losses), indices, axis=1)
    bound = (200 + 3) * 2.0**-24
    assert np.abs(values - r).max() <= bound
    # The spread is 160 units in the last place of a loss. A float32 mean errs by a few of them.
    flat = losses.reshape(200, 50)
    low = flat - flat.sum(axis=0, dtype=np.float32) / np.float32(200)
    low /= np.sqrt((low**2).sum(axis=0))
    assert np.abs(np.take_along_axis(low.T @ low, indices, axis=1) - r).max() > 10 * bound


@pytest.fixture
def peak():
    """Most bytes that arrays take while a function runs, beyond those that were there before."""

    def measured(function, *arguments):
        tracemalloc.start()
        try:
            function(*arguments)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measured


def test_memory_is_bounded_by_the_block(peak):
    """4,000 inputs: R would take 64 MB in float32, a block of 256 x 256 takes 0.26."""
    losses = np.random.default_rng(0).standard_normal((2, 16, 4000)).astype(np.float32)
    assert peak(nearest_neighbors, losses, 15, None, "pooled", 256) < 8e6
    assert peak(self_covariance, losses) < 4e6
    half = peak(nearest_neighbors, losses[..., :2000], 15, None, "pooled", 256)
    assert peak(nearest_neighbors, losses, 15, None, "pooled", 256) < 2.2 * half  # not 4


@pytest.mark.parametrize("k", [0, 10])
def test_impossible_numbers_of_neighbors(k):
    with pytest.raises(TraceError, match=f"k = {k} must be from 1 to 9"):
        nearest_neighbors(LOSSES, k)


@pytest.mark.parametrize(
    ("losses", "center", "message"),
    [
        (np.where(LOSSES > 2, np.nan, LOSSES), "pooled", "not finite"),
        (LOSSES, "median", "'median' is not one of pooled, chain, draw"),
        (LOSSES[:1], "draw", "1 chains x 8 draws are too few"),
        (LOSSES[:, :1], "chain", "too few"),
        (LOSSES[0, 0], "pooled", "shape"),
    ],
)
def test_unusable_losses(losses, center, message):
    with pytest.raises(TraceError, match=message):
        covariance(losses, center)
