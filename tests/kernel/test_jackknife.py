import numpy as np
import pytest

from losskernel.kernel.jackknife import jackknife, jackknife_error


def test_the_error_of_a_mean_is_the_usual_one():
    """Blocks of one draw: the jackknife of a mean is exactly the standard error."""
    values = np.random.default_rng(0).normal(size=50)
    error = jackknife(50, 50, lambda kept: values[kept].mean())[1]
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(50), rel=1e-12)


def test_blocks_allow_for_draws_that_come_in_runs():
    """Each value four times over: blocks of four give the error of the distinct ones."""
    values = np.repeat(np.random.default_rng(1).normal(size=20), 4)
    by_block = jackknife(80, 20, lambda kept: values[kept].mean())[1]
    assert by_block == pytest.approx(values[::4].std(ddof=1) / np.sqrt(20), rel=1e-12)
    assert jackknife(80, 80, lambda kept: values[kept].mean())[1] < 0.6 * by_block


def test_more_blocks_than_draws_leave_out_single_draws():
    left_out = []
    jackknife(3, 10, lambda kept: left_out.append(kept.tolist()) or 0.0)
    assert left_out == [[1, 2], [0, 2], [0, 1], [0, 1, 2]]


def test_one_part_tells_no_error():
    assert np.isnan(jackknife_error(np.ones((1, 3)))).all()


def test_the_bias_of_a_variance_is_removed_exactly():
    """Of the variance that divides by n, the jackknife makes the one that divides by n - 1."""
    values = np.random.default_rng(2).normal(size=(12, 3))
    estimate, error = jackknife(12, 12, lambda kept: values[kept].var(axis=0))
    np.testing.assert_allclose(estimate, values.var(axis=0, ddof=1), rtol=1e-12)
    assert error.shape == (3,) and (error > 0).all()
