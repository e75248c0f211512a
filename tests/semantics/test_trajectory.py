"""Lift along training by hand, and the order of the depths."""

import numpy as np
import pytest

from losskernel.semantics.trajectory import crossing_step, growth, nearest_lift

RNG = np.random.default_rng(0)
# Classes 0..7 in a binary tree: depth 3 is shared by pairs, 2 by fours, 1 by all.
CLASSES = np.arange(8)
TREE = 1 + (CLASSES[:, None] // 4 == CLASSES // 4) + (CLASSES[:, None] // 2 == CLASSES // 2)
TREE[CLASSES, CLASSES] = 4
LABELS = np.repeat(CLASSES, 3)


def similarity(scale=1.0) -> np.ndarray:
    """R that follows the tree, with noise and ties."""
    noise = RNG.normal(0, 0.3, (24, 24))
    values = 0.2 * scale * TREE[np.ix_(LABELS, LABELS)] + noise + noise.T
    values = np.round(np.clip(values / 4, -1, 1), 2)
    np.fill_diagonal(values, 1)
    return values


def test_the_lift_is_of_the_nearest_inputs_of_another_label():
    r = similarity()
    found = nearest_lift(r, LABELS, 4, TREE, [2, 3])
    apart = np.where(LABELS[:, None] == LABELS, -2.0, r)
    for at, depth in enumerate((2, 3)):
        shared = TREE[np.ix_(LABELS, LABELS)] >= depth
        nearest = np.argsort(-apart, axis=1, kind="stable")[:, :4]
        share = np.take_along_axis(shared, nearest, axis=1).mean()
        expected = share / shared[LABELS[:, None] != LABELS].mean()
        assert found[at] == pytest.approx(expected)


STEPS = [0, 9, 99, 999]  # equally spaced in log(1 + step)


@pytest.mark.parametrize(
    ("values", "baseline", "expected"),
    [
        ([0, 0, 1, 1], 0, 10**1.5 - 1),  # half way between steps 9 and 99 in log(1 + step)
        ([1, 1, 2, 3], 1, 99),  # exactly at a checkpoint
        ([1, 1, 1, 2], 1, 10**2.5 - 1),
        ([0.9, 1, 1, 1], 0, 0),  # there from the beginning
        ([0, 3, 0, 1], 0, 10 ** (1 / 6) - 1),  # the first crossing counts
    ],
)
def test_crossing_step(values, baseline, expected):
    assert crossing_step(STEPS, values, baseline) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[0, 1, 2, 0], [1, 1, 1, 1 - 1e-9], [0, np.nan, 1, 2]])
def test_what_does_not_end_above_the_baseline_crosses_nothing(values):
    assert np.isnan(crossing_step(STEPS, values, 1.0))


def test_a_share_of_the_largest_value():
    assert crossing_step(STEPS, [0, 0, 2, 1], 0, 0.5, "maximum") == pytest.approx(10**1.5 - 1)
    assert crossing_step(STEPS, [0, 0, 2, 1], 0, 0.5) == pytest.approx(10**1.25 - 1)


def test_growth_of_one_kernel_keeps_the_mean_that_was_seen_and_ends_in_the_kernel():
    r, depths = similarity(3), [2, 3]
    last = nearest_lift(r, LABELS, 4, TREE, depths)
    # A curve in which depth 3 alone grows at first: growth of all depths together is not that.
    seen = np.array([[1.0, 1.0], [1.0, 0.5 * (1 + last[1])], last, 2 * last])
    found = growth(r, LABELS, 4, TREE, depths, seen, 3, np.random.default_rng(0))
    assert found.shape == (4, 3, 2)
    np.testing.assert_allclose(found[3], np.tile(last, (3, 1)))  # amplitude 1, and no more
    means = found.mean(axis=2)
    np.testing.assert_allclose(means[2], last.mean())
    np.testing.assert_allclose(means[1], seen[1].mean(), atol=0.05)
    assert (found[1, :, 0] > seen[1, 0]).all() and (found[1, :, 1] < seen[1, 1]).all()
    assert (means[0] < means[1]).all()
