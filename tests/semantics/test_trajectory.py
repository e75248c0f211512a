"""Statistics of a hierarchy along training against libraries, and the order of the depths."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from losskernel.kernel.neighbors import kernel_distances, neighbors_by_distance
from losskernel.semantics.lift import lift
from losskernel.semantics.trajectory import Ranking, crossing_step, growth

RNG = np.random.default_rng(0)
# Classes 0..7 in a binary tree: depth 3 is shared by pairs, 2 by fours, 1 by all.
CLASSES = np.arange(8)
TREE = 1 + (CLASSES[:, None] // 4 == CLASSES // 4) + (CLASSES[:, None] // 2 == CLASSES // 2)
TREE[CLASSES, CLASSES] = 4
LABELS = np.repeat(CLASSES, 3)


def noisy(kernel, noise):
    values = kernel + noise * RNG.standard_normal(kernel.shape)
    return (values + values.T) / 2


def similarity(scale=1.0) -> np.ndarray:
    """R that follows the tree, with noise and ties."""
    noise = RNG.normal(0, 0.3, (24, 24))
    values = 0.2 * scale * TREE[np.ix_(LABELS, LABELS)] + noise + noise.T
    values = np.round(np.clip(values / 4, -1, 1), 2)
    np.fill_diagonal(values, 1)
    return values


def test_statistics_are_those_of_the_libraries():
    r = similarity()
    found = Ranking.of(r, LABELS, 4).profile(TREE, LABELS, [2, 3])
    first, second = np.triu_indices(24, 1)
    unequal = LABELS[first] != LABELS[second]
    first, second = first[unequal], second[unequal]
    depth = TREE[LABELS[first], LABELS[second]]
    graph, _ = neighbors_by_distance(kernel_distances(r), 4, exclude_labels=LABELS)
    np.testing.assert_allclose(found["lift"], lift(graph, TREE, np.array([2, 3]), LABELS))
    for at, cut in enumerate((2, 3)):
        assert found["auc"][at] == pytest.approx(roc_auc_score(depth >= cut, r[first, second]))
        inside = depth >= cut - 1
        assert found["conditional_auc"][at] == pytest.approx(
            roc_auc_score(depth[inside] >= cut, r[first, second][inside])
        )
        expected = spearmanr(np.minimum(depth, cut), r[first, second]).statistic
        assert found["spearman"][at] == pytest.approx(expected)


def test_many_pairs_are_ranked_in_bins_of_no_matter():
    labels = np.repeat(CLASSES, 30)
    r = 0.1 * TREE[np.ix_(labels, labels)] / 4 + 0.2 * noisy(np.zeros((240, 240)), 1.0)
    r = np.clip(r, -1, 1)
    ranking = Ranking.of(r, labels, 4)
    first, second = np.triu_indices(240, 1)
    unequal = labels[first] != labels[second]
    depth, values = (m[first[unequal], second[unequal]] for m in (TREE[np.ix_(labels, labels)], r))
    assert len(np.unique(values)) > 2**14 == ranking.bins.max() + 1
    found = ranking.profile(TREE, labels, [2])
    assert found["auc"][0] == pytest.approx(roc_auc_score(depth >= 2, values), abs=2**-14)
    expected = spearmanr(np.minimum(depth, 2), values).statistic
    assert found["spearman"][0] == pytest.approx(expected, abs=2**-14)


def test_coarse_structure_raises_the_auc_of_fine_depths_but_not_the_conditional_one():
    halves = np.where(TREE >= 2, 0.5, 0.0)[np.ix_(LABELS, LABELS)]
    r = np.clip(halves + 0.1 * noisy(np.zeros((24, 24)), 1.0), -1, 1)
    found = Ranking.of(r, LABELS, 4).profile(TREE, LABELS, [2, 3])
    assert found["auc"][0] == found["conditional_auc"][0] > 0.99
    assert found["auc"][1] > 0.7 and found["lift"][1] > 1.5
    assert abs(found["conditional_auc"][1] - 0.5) < 0.1


def test_a_depth_that_divides_no_pairs_is_not_told():
    found = Ranking.of(similarity(), LABELS, 4).profile(TREE, LABELS, [1, 4])
    # All pairs share depth 1; none of unequal label shares depth 4.
    assert np.isnan(found["auc"]).all() and np.isnan(found["spearman"][0])
    assert found["lift"][0] == 1 and np.isnan(found["lift"][1])


def test_renamed_classes_are_a_null():
    ranking = Ranking.of(similarity(3), LABELS, 4)
    value = ranking.profile(TREE, LABELS, [2])["auc"][0]
    null = [
        ranking.profile(TREE, RNG.permutation(CLASSES)[LABELS], [2])["auc"][0] for _ in range(200)
    ]
    # One renaming in 35 leaves the two halves of the tree as they are.
    assert value > np.quantile(null, 0.95) and abs(np.mean(null) - 0.5) < 0.05


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
    last = Ranking.of(r, LABELS, 4).profile(TREE, LABELS, depths)["lift"]
    # A curve in which depth 3 alone grows at first: growth of all depths together is not that.
    seen = np.array([[1.0, 1.0], [1.0, 0.5 * (1 + last[1])], last, 2 * last])
    found = growth(r, LABELS, 4, TREE, depths, {"lift": seen}, 3, np.random.default_rng(0))["lift"]
    assert found.shape == (4, 3, 2)
    np.testing.assert_allclose(found[3], np.tile(last, (3, 1)))  # amplitude 1, and no more
    means = found.mean(axis=2)
    np.testing.assert_allclose(means[2], last.mean())
    np.testing.assert_allclose(means[1], seen[1].mean(), atol=0.05)
    assert (found[1, :, 0] > seen[1, 0]).all() and (found[1, :, 1] < seen[1, 1]).all()
    assert (means[0] < means[1]).all()
