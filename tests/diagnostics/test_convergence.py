import tracemalloc

import arviz as az
import numpy as np
import pytest

from losskernel.diagnostics.convergence import (
    autocorrelation_time,
    cka,
    cka_curve,
    convergence,
    corrected_cka,
    effective_rank,
    noise_floor,
    pair_correlation,
    sample_cka,
    settled_at,
    shifted,
    split_half_cka,
)
from losskernel.errors import TraceError
from losskernel.kernel.covariance import CENTERINGS, correlation


def independent(chains=4, draws=100, inputs=80, seed=0):
    return np.random.default_rng(seed).standard_normal((chains, draws, inputs))


def autoregressive(memory, chains=4, draws=400, inputs=30, seed=0):
    rng = np.random.default_rng(seed)
    losses = np.empty((chains, draws, inputs))
    losses[:, 0] = rng.standard_normal((chains, inputs))
    for draw in range(1, draws):
        fresh = rng.standard_normal((chains, inputs))
        losses[:, draw] = memory * losses[:, draw - 1] + np.sqrt(1 - memory**2) * fresh
    return losses


def structured(seed=0, draws=200):
    """Four chains of 40 inputs in two groups that move together, and noise."""
    rng = np.random.default_rng(seed)
    common = np.repeat(rng.standard_normal((4, draws, 2)), 20, axis=2)
    return common + 0.5 * rng.standard_normal((4, draws, 40))


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


@pytest.mark.parametrize("draws", [(2, 10), (10, 25)], ids=["by samples", "by inputs"])
@pytest.mark.parametrize("center", CENTERINGS)
def test_sample_cka_is_the_cka_of_the_kernels(center, draws):
    """40 inputs: products are summed over samples if there are fewer of these, else over inputs."""
    a, b = structured(0, draws=draws[0]), structured(1, draws=draws[1])
    a[..., 7] = 1.0  # does not vary
    expected = cka(correlation(a, center), correlation(b, center))
    assert sample_cka(a, b, center) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_cka_with_a_constant_kernel_is_undefined(constant):
    with pytest.raises(TraceError, match="constant"):
        cka(np.full((20, 20), constant), KERNEL)


def test_cka_of_unequal_inputs():
    with pytest.raises(TraceError, match="differ"):
        cka(KERNEL, OTHER[:5, :5])
    with pytest.raises(TraceError, match="5 and 80 inputs"):
        sample_cka(independent(inputs=5), independent())
    with pytest.raises(TraceError, match="no loss varies"):
        sample_cka(np.ones((2, 5, 80)), independent())
    for inputs in (5, 800):  # losses that differ by a factor have R = 1 everywhere
        alike = independent(inputs=1) * np.arange(1, inputs + 1)
        with pytest.raises(TraceError, match="all vary alike"):
            sample_cka(alike, independent(inputs=inputs))


def test_cka_curve_ends_at_1():
    losses = structured()
    curve = cka_curve(losses, [5, 20, 200])
    assert curve[-1] == pytest.approx(1)
    assert curve[0] == pytest.approx(sample_cka(losses[:, :5], losses))
    assert curve[0] < curve[1] < curve[2]


def test_split_halves_tell_structure_from_noise():
    """For S independent draws of n inputs, R = I + noise of variance 1/S off the diagonal.

    Only the diagonals agree between halves: CKA = n / (n + n^2 / S), up to 1/n.
    """
    draws, inputs = 40, 80
    noise = independent(draws=2 * draws, inputs=inputs)
    samples = 4 * draws
    expected = 1 / (1 + inputs / samples)
    assert split_half_cka(noise, [draws])[0] == pytest.approx(expected, abs=3 / inputs)
    assert cka_curve(noise, [2 * draws])[0] == pytest.approx(1)  # what the curve cannot see
    assert split_half_cka(structured(), [100])[0] > 0.97


def test_split_halves_use_each_draw_once():
    losses = np.arange(30.0)[None, :, None] * np.ones((1, 30, 2))
    seen = []

    def record(even, odd, center):
        seen.extend([even[0, :, 0], odd[0, :, 0]])
        return 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("losskernel.diagnostics.convergence.sample_cka", record)
        split_half_cka(losses, [15])
    assert sorted(np.concatenate(seen)) == list(range(30))
    assert len(seen[0]) == len(seen[1]) == 15


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
    for function in (noise_floor, pair_correlation, lambda x: sample_cka(x, x + losses[::-1])):
        tracemalloc.start()
        function(losses)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10e6


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


def test_effective_sample_size_and_rhat_are_arvizs_input_by_input():
    losses = autoregressive(0.7, inputs=5)
    losses[0, :, 2] += 3  # one chain elsewhere
    found = convergence(losses)
    assert found.ess.shape == found.rhat.shape == (5,)
    for item in range(5):
        assert found.ess[item] == pytest.approx(az.ess(losses[:, :, item]))
        assert found.rhat[item] == pytest.approx(az.rhat(losses[:, :, item]))
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


@pytest.mark.parametrize("chains", [1, 4, 16, 64])
def test_the_noise_floor_does_not_depend_on_how_draws_are_shared_out(chains):
    """64 draws of losses with much in common; without it R would have a spread of 1 / sqrt(63)."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(chains, 64 // chains, 1))
    losses = common / 2 + rng.normal(size=(chains, 64 // chains, 200))  # R of 0.2
    assert noise_floor(losses) == pytest.approx(63**-0.5, rel=0.05)
