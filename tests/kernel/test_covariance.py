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
    deviations,
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
    parts = list(standardized_blocks(LOSSES, center, block))
    assert all(part.shape[1] <= block for _, part in parts)
    joined = np.concatenate([part for _, part in parts], axis=1)
    # sums run in another order
    np.testing.assert_allclose(joined, standardized(LOSSES, center), atol=1e-14)
    assert [i for rows, _ in parts for i in range(rows.start, rows.stop)] == list(range(10))
    r = np.concatenate([part for _, part in correlation_blocks(LOSSES, center, block)])
    np.testing.assert_allclose(r, correlation(LOSSES, center), atol=1e-14)
    assert np.array_equal(np.diag(r), np.ones(10))


def test_one_chain_may_come_without_its_axis():
    assert np.array_equal(covariance(LOSSES[0]), covariance(LOSSES[:1]))


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
