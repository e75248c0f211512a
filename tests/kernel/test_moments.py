import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from losskernel.errors import TraceError
from losskernel.kernel.covariance import correlation, covariance, self_covariance
from losskernel.kernel.moments import StreamingMoments

RNG = np.random.default_rng(0)
U = 2.0**-24  # rounding of float32


def draws(samples=60, inputs=12, seed=0):
    """Correlated losses of large mean and small spread, as a trained network's may be."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((samples, 3)) @ rng.standard_normal((3, inputs))
    return 1e3 + 1e-2 * (common + rng.standard_normal((samples, inputs)))


def streamed(losses, cuts=(), **settings):
    moments = StreamingMoments(losses.shape[1], **settings)
    for part in np.split(losses, cuts):
        moments.update(part)
    return moments


def assert_kernels(moments, losses, bound):
    """Entries of K within ``bound`` standard deviations squared of the batch estimate."""
    k = covariance(losses)
    scale = np.sqrt(np.outer(np.diag(k), np.diag(k)))
    assert (np.abs(moments.covariance() - k) <= bound * scale).all()
    assert np.abs(moments.correlation() - correlation(losses)).max() <= 2 * bound
    np.testing.assert_allclose(moments.self_covariance(), self_covariance(losses), rtol=1e-9)
    np.testing.assert_allclose(moments.mean, losses.mean(axis=0), rtol=1e-14)
    assert moments.draws == len(losses)


@given(st.lists(st.integers(0, 60), max_size=8))
def test_draws_in_any_portions_give_the_batch_estimate(cuts):
    # Rounding of the mean, 1e3 2^-53, is 1e-11 of the spread.
    losses = draws()
    assert_kernels(streamed(losses, sorted(cuts)), losses, 1e-10)


def test_one_draw_at_a_time():
    losses, moments = draws(), StreamingMoments(12)
    for draw in losses:
        moments.update(draw)
    assert_kernels(moments, losses, 1e-10)


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(2, 8), st.integers(1, 5)),
        elements=st.floats(-100, 100, width=32),
    ),
    st.data(),
)
def test_any_losses(losses, data):
    cut = data.draw(st.integers(0, len(losses)))
    moments = streamed(losses, [cut])
    np.testing.assert_allclose(moments.covariance(), covariance(losses), rtol=1e-9, atol=1e-9)
    assert np.array_equal(np.diag(moments.correlation()), np.diag(correlation(losses)))


def test_chains_merge_in_any_order_and_stay_as_they_are():
    chains = [draws(size, seed=seed) + 1e-2 * seed for seed, size in enumerate((30, 7, 50))]
    for order in ([0, 1, 2], [2, 0, 1]):
        parts = [streamed(chains[i]) for i in order]
        whole = StreamingMoments(12)
        for part in parts:
            whole.merge(part)
        assert_kernels(whole, np.concatenate(chains), 1e-10)
        assert_kernels(parts[1], chains[order[1]], 1e-10)
        whole.merge(StreamingMoments(12))
        assert whole.draws == 87


@pytest.mark.parametrize("updates", [1, 6, 60])
def test_float32_comoments_err_within_the_stated_bound(updates):
    losses = draws()
    moments = streamed(losses, np.arange(1, updates) * 60 // updates, dtype=np.float32)
    assert moments.covariance().dtype == np.float32
    assert_kernels(moments, losses, (60 + 2 * updates + 4) * U)
    # What the bound is for: sums of squares in float32 lose all of it.
    low = losses.astype(np.float32)
    naive = (low.T @ low - 60 * np.outer(low.mean(0), low.mean(0))) / 59
    assert np.abs(naive - covariance(losses)).max() > 100 * np.diag(covariance(losses)).max()


def test_without_pairs_the_self_covariances_are_known():
    losses = draws()
    moments = streamed(losses, [20], pairs=False)
    moments.merge(streamed(losses, pairs=False))
    twice = np.concatenate([losses, losses])
    np.testing.assert_allclose(moments.self_covariance(), self_covariance(twice), rtol=1e-9)
    with pytest.raises(TraceError, match="pairs=True"):
        moments.covariance()
    with pytest.raises(TraceError, match="do not merge"):
        moments.merge(streamed(losses))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_loss_that_never_changes_has_no_kernel(dtype):
    losses = draws()
    losses[:, 4] = 0.1
    moments = streamed(losses, [7, 8, 30], dtype=dtype)
    for matrix in (moments.covariance(), moments.correlation()):
        assert (matrix[4] == 0).all() and (matrix[:, 4] == 0).all()
    assert np.trace(moments.correlation()) == 11
    assert moments.self_covariance()[4] == 0


def test_what_cannot_be_taken_is_refused_and_leaves_no_trace():
    losses, moments = draws(), StreamingMoments(12)
    with pytest.raises(TraceError, match="0 draws are too few"):
        moments.covariance()
    moments.update(losses)
    for wrong, message in (
        (losses[:, :5], r"shape \(60, 5\) is not \(sample, 12\)"),
        (np.where(losses > 1e3, np.nan, losses), "not finite"),
    ):
        with pytest.raises(TraceError, match=message):
            moments.update(wrong)
    moments.update(losses[:0])
    with pytest.raises(TraceError, match="12 and 3 inputs"):
        moments.merge(StreamingMoments(3))
    assert_kernels(moments, losses, 1e-10)
