"""Lift and contrast of a relation on small graphs that can be counted by hand."""

import numpy as np
import pytest

from losskernel.errors import DataError
from losskernel.semantics.lift import lift
from losskernel.semantics.relation import Relation, pairs, renamings

TWO_BY_TWO = np.array([0, 0, 1, 1])


def by_group(groups, labels=None):
    groups = np.asarray(groups)
    labels = np.arange(len(groups)) if labels is None else labels
    return Relation(groups[:, None] == groups, pairs(labels))


def test_lift_is_the_share_among_neighbors_over_that_among_pairs():
    relation = by_group(TWO_BY_TWO)
    assert relation.chance == pytest.approx(1 / 3)
    assert relation.lift([[1], [0], [3], [2]]) == pytest.approx(3)
    assert relation.lift([[1], [2], [0], [2]]) == pytest.approx(1.5)
    assert relation.lift([[2], [3], [0], [1]]) == 0


def test_lift_of_a_hypernym_is_the_taxonomic_lift():
    rng = np.random.default_rng(1)
    depth = rng.integers(0, 5, (12, 12))
    depth = np.minimum(depth, depth.T)
    np.fill_diagonal(depth, 9)
    labels = np.repeat(np.arange(12), 2)
    others = [np.flatnonzero(labels != label) for label in labels]
    neighbors = np.array([rng.choice(eligible, 4, replace=False) for eligible in others])
    relation = Relation(depth[np.ix_(labels, labels)] >= 3, pairs(labels))
    assert relation.lift(neighbors) == pytest.approx(lift(neighbors, depth, [3], labels)[0])


def test_contrast_is_the_mean_of_related_pairs_less_that_of_all():
    similarity = np.array([[9, 4, 1, 1], [4, 9, 1, 1], [1, 1, 9, 2], [1, 1, 2, 9.0]])
    # Pairs: 4, 2 related, four of 1 not; the diagonal counts for nothing.
    assert by_group(TWO_BY_TWO).contrast(similarity) == pytest.approx(3 - 10 / 6)


def test_contrast_is_not_moved_by_noise_where_lift_is():
    rng = np.random.default_rng(2)
    groups = np.arange(200) // 10
    relation = by_group(groups)
    truth = 0.2 * (groups[:, None] == groups)
    noise = rng.normal(size=(40, 200, 200))
    noise = (noise + noise.swapaxes(1, 2)) / 2
    found = [relation.contrast(truth + sample) for sample in noise]
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - relation.contrast(truth)) < 4 * error
    ordered = [np.argsort(-(truth + s - 99 * np.eye(200)), axis=1)[:, :9] for s in (0, noise[0])]
    assert relation.lift(ordered[1]) < 0.5 * relation.lift(ordered[0])


def test_squared_lift_is_that_of_the_kernel_behind_the_noise():
    rng = np.random.default_rng(5)
    groups = np.arange(200) // 10
    relation = by_group(groups)
    sign = rng.choice([-1, 1], (200, 200))
    truth = np.where(groups[:, None] == groups, 0.3, 0.1) * np.triu(sign, 1)
    truth = truth + truth.T
    # 0.09 of the related against the mean over all pairs.
    exact = 0.09 / (0.09 * relation.chance + 0.01 * (1 - relation.chance))
    assert relation.squared_lift(truth, truth) == pytest.approx(exact)
    noise = rng.normal(0, 0.2, size=(40, 2, 200, 200))
    noise = (noise + noise.swapaxes(2, 3)) / 2
    found = [relation.squared_lift(truth + a, truth + b) for a, b in noise]
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - exact) < 4 * error
    assert relation.squared_lift(truth + noise[0, 0], truth + noise[0, 0]) < exact - 1
    assert np.isnan(relation.squared_lift(truth, -truth))


def test_renaming_keeps_the_number_of_related_pairs_and_unties_the_kernel():
    relation, similarity = by_group(np.arange(60) // 6), np.kron(np.eye(10), np.ones((6, 6)))
    orders = renamings(np.arange(60), 50, np.random.default_rng(3))
    renamed = [relation.permuted(order) for order in orders]
    assert {r.chance for r in renamed} == {relation.chance}
    null = np.array([r.contrast(similarity) for r in renamed])
    assert relation.contrast(similarity) > null.max()
    assert abs(null.mean()) < 4 * null.std(ddof=1) / np.sqrt(len(null))


def test_labels_trade_places_as_wholes():
    labels = np.array([5, 5, 2, 7, 7, 7])
    for order in renamings(labels, 20, np.random.default_rng(4)):
        moved = labels[order]
        for label in (2, 5, 7):
            assert len(set(moved[labels == label])) == 1
        assert len(set(moved)) == 3


@pytest.mark.parametrize("groups", [[0, 0, 0], [0, 1, 2]])
def test_a_relation_of_all_or_no_pairs_is_refused(groups):
    with pytest.raises(DataError, match="nothing to tell apart"):
        by_group(groups)
