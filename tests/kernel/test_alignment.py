import tracemalloc

import numpy as np
import pytest

from losskernel.errors import TraceError
from losskernel.kernel.alignment import cka, corrected_cka, pair_correlation
from losskernel.kernel.covariance import CENTERINGS, correlation
from losskernel.kernel.noise import noise_floor
from series import independent, structured

KERNEL, OTHER = (correlation(independent(inputs=20, draws=10, seed=seed)) for seed in (1, 2))


def test_cka_of_a_kernel_with_itself_is_1_whatever_its_scale():
    assert cka(KERNEL, KERNEL) == pytest.approx(1)
    assert cka(KERNEL, 7 * KERNEL) == pytest.approx(1)
    assert cka(KERNEL, -KERNEL) == pytest.approx(-1)


def test_cka_is_symmetric_bounded_and_blind_to_scale_shift_and_rotation():
    value = cka(KERNEL, OTHER)
    assert 0 < value < 1
    assert cka(OTHER, KERNEL) == pytest.approx(value)
    assert cka(3 * KERNEL + 5, 0.1 * OTHER - 2) == pytest.approx(value)
    order = np.random.default_rng(0).permutation(20)
    assert cka(KERNEL[order][:, order], OTHER[order][:, order]) == pytest.approx(value)
    assert abs(cka(KERNEL[order][:, order], OTHER) - value) > 1e-3  # inputs must correspond


def test_cka_is_the_textbook_formula():
    h = np.eye(20) - 1 / 20
    k, other = h @ KERNEL @ h, h @ OTHER @ h
    expected = np.trace(k @ other) / np.sqrt(np.trace(k @ k) * np.trace(other @ other))
    assert cka(KERNEL, OTHER) == pytest.approx(expected)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_cka_with_a_constant_kernel_is_undefined(constant):
    with pytest.raises(TraceError, match="constant"):
        cka(np.full((20, 20), constant), KERNEL)


def test_cka_of_unequal_inputs():
    with pytest.raises(TraceError, match="differ"):
        cka(KERNEL, OTHER[:5, :5])


@pytest.mark.parametrize("center", CENTERINGS)
@pytest.mark.parametrize("draws", [5, 40], ids=["by samples", "by inputs"])
def test_pair_correlation_is_that_of_the_matrix(center, draws):
    losses = structured(draws=draws)
    losses[..., [3, 30]] = 1.0
    r = correlation(losses, center)[~np.eye(40, dtype=bool)]
    assert pair_correlation(losses, center) == pytest.approx((r.mean(), r.std()), abs=1e-13)
    with pytest.raises(TraceError, match="one input makes no pairs"):
        pair_correlation(losses[..., :1])


def test_diagnostics_of_many_inputs_take_no_memory_of_their_square():
    """3,000 inputs and 60 samples: R would take 72 MB, the losses take 1.4 in float64."""
    losses = independent(1, 60, 3000)
    for function in (noise_floor, pair_correlation):
        tracemalloc.start()
        function(losses)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10e6


def test_corrected_cka_is_not_moved_by_independent_noise():
    """Two kernels of CKA 0.5, each estimated twice with noise as large as itself."""
    rng = np.random.default_rng(0)

    def symmetric():
        matrix = rng.standard_normal((100, 100))
        return (matrix + matrix.T) / 2

    common = symmetric()
    first, second = common + symmetric(), common + symmetric()
    exact = corrected_cka((first, first), (second, second))
    found = []
    for _ in range(40):
        halves = [tuple(k + 1.4 * symmetric() for _ in range(2)) for k in (first, second)]
        found.append((cka(*(sum(pair) / 2 for pair in halves)), corrected_cka(*halves)))
    plain, corrected = np.transpose(found)
    assert exact == pytest.approx(0.5, abs=0.1)
    assert plain.max() < exact - 0.1
    assert abs(corrected.mean() - exact) < 4 * corrected.std(ddof=1) / np.sqrt(40)


def test_corrected_cka_of_exact_kernels_is_their_cka_without_diagonals():
    rng = np.random.default_rng(3)
    a, b = (np.cov(rng.standard_normal((9, 30))) for _ in range(2))
    without = [m - np.diag(np.diag(m)) for m in (a, b)]
    assert corrected_cka((a, a), (b, b)) == pytest.approx(cka(*without))
    assert corrected_cka((a, a), (2 * a, 2 * a)) == pytest.approx(1)
    assert np.isnan(corrected_cka((a, -a), (b, b)))
    with pytest.raises(TraceError, match="take the same inputs"):
        corrected_cka((a, a), (b[:5, :5], b[:5, :5]))


def test_similarity_of_checkpoints_is_not_moved_by_noise_that_they_share():
    n, rng = 150, np.random.default_rng(0)

    def noisy(noise):
        values = noise * rng.standard_normal((n, n))
        return (values + values.T) / 2

    signals = [noisy(1.0) for _ in range(2)]
    first = signals[0]
    second = 0.6 * signals[0] + 0.8 * signals[1]  # correlates 0.6 with the first
    shared = [noisy(3.0) for _ in range(2)]  # of each half
    halves = [tuple(kernel + part for part in shared) for kernel in (first, second)]
    assert corrected_cka((first, first), (first, first)) == pytest.approx(1)
    exact = corrected_cka((first, first), (second, second))
    assert exact == pytest.approx(0.6, abs=0.03)
    # 11,000 pairs and 9 times as much noise as signal: a standard error of some 0.1.
    assert corrected_cka(*halves) == pytest.approx(exact, abs=0.35)
    plain = np.corrcoef(
        sum(halves[0])[np.triu_indices(n, 1)], sum(halves[1])[np.triu_indices(n, 1)]
    )
    assert plain[0, 1] > 0.9  # what the shared noise would make of it
