import numpy as np
import pytest

from losskernel.errors import ConfigError
from losskernel.experiments.gain.statistics import (
    ALONE,
    WITH,
    cka_gain,
    disjoint_sets,
    draws_saved,
    gain_curve,
    limit_draws_cka,
    limit_slope,
    reference_ceiling,
)
from losskernel.kernel.control_variate import normalize

INPUTS, CHAINS, DRAWS = 30, 2, 100


@pytest.fixture(scope="module")
def problem():
    """Losses that are their linear parts and a small rest; the covariance is known."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(INPUTS, 12))
    displacement = rng.normal(size=(CHAINS, DRAWS, 12))
    linear = displacement @ gradients.T
    rest = 0.1 * rng.normal(size=linear.shape)
    return linear + rest, linear, gradients @ gradients.T


def test_sets_of_draws_share_none():
    sets = disjoint_sets(20, 6, most=9)
    assert len(sets) == 3 and len(np.unique(np.concatenate(sets))) == 18
    assert len(disjoint_sets(20, 6, most=2)) == 2
    assert [sorted(only) for only in disjoint_sets(5, 5, 4)] == [[0, 1, 2, 3, 4]]
    with pytest.raises(ConfigError, match="21 draws are asked for of 20"):
        disjoint_sets(20, 21, 1)


def test_the_curve_rises_and_the_control_variate_stays_above(problem):
    losses, linear, known = problem
    rows = gain_curve(losses, linear, known, normalize(known), [10, 50, 200], most=4)
    found = {(row["draws"], row["estimator"]): row for row in rows}
    assert len(found) == 6
    for name in (ALONE, WITH):
        curve = [found[count, name]["cka"] for count in (10, 50, 200)]
        assert curve == sorted(curve)
    for count in (10, 50, 200):
        assert found[count, WITH]["cka"] > found[count, ALONE]["cka"]
    assert found[10, ALONE]["sets"] == 4 and found[10, ALONE]["sd"] > 0
    assert found[200, ALONE]["sets"] == 1 and np.isnan(found[200, ALONE]["sd"])


def test_the_gain_is_that_of_all_draws_with_an_error(problem):
    losses, linear, known = problem
    gain, error = cka_gain(losses, linear, known, normalize(known))
    rows = gain_curve(losses, linear, known, normalize(known), [CHAINS * DRAWS], most=1)
    assert gain == pytest.approx(rows[1]["cka"] - rows[0]["cka"], abs=1e-12)
    assert 0 < error < gain / 3
    # Linear parts that have nothing to do with the losses gain nothing.
    unrelated = np.random.default_rng(1).normal(size=linear.shape)
    gain, error = cka_gain(losses, unrelated, np.eye(INPUTS), normalize(known))
    assert abs(gain) < 5 * error


def test_draws_saved_on_curves_with_a_known_shift():
    draws = np.array([10, 20, 40, 80])
    alone = np.array([0.1, 0.2, 0.3, 0.4])  # 0.1 a doubling
    saved, at_least = draws_saved(draws, alone, alone + 0.1)
    assert saved == pytest.approx(2) and not at_least
    assert draws_saved(draws, alone, alone) == (pytest.approx(1), False)
    assert draws_saved(draws, alone, alone + 0.35) == (pytest.approx(8), True)
    saved, _ = draws_saved(draws, alone, alone - 0.1)
    assert saved == pytest.approx(0.5)


def test_the_ceiling_is_what_the_exact_kernel_reaches(problem):
    """Over many reference runs the exact R reaches, on average, the CKA that their halves say."""
    _, _, known = problem
    root = np.linalg.cholesky(known + 1e-9 * np.eye(INPUTS))
    rng = np.random.default_rng(2)
    said, reached = [], []
    for _ in range(40):
        run = rng.normal(size=(1, 60, INPUTS)) @ root.T
        said.append(reference_ceiling(run[:, :30], run[:, 30:]))
        reached.append(gain_curve(run, run, known, normalize(known), [60], most=1)[0]["cka"])
    difference = np.array(said) - reached
    error = difference.std(ddof=1) / np.sqrt(40)
    assert abs(difference.mean()) < 4 * error + 0.01  # 0.01: R of few draws is slightly biased
    assert np.mean(reached) < 0.95


def test_draws_of_the_limit_come_closer_with_their_number(problem):
    _, _, known = problem
    few, many = (limit_draws_cka(known, draws, repeats=4) for draws in (20, 500))
    assert few.shape == (4,) and few.max() < many.min() < 1


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_slope_on_the_limit(problem, factor):
    losses, _, known = problem
    slope, error = limit_slope(np.sqrt(factor) * losses, known)
    assert abs(slope - factor) < 4 * error < factor


def test_draws_saved_where_a_curve_dips_at_its_end():
    """The first number of draws that reaches a level counts, not the last that fell below it."""
    found, bound = draws_saved([10, 20, 40], [0.5, 0.9, 0.89], [0.8, 0.95, 0.97])
    assert found == pytest.approx(20 / (10 * 2 ** (2 / 3))) and not bound
