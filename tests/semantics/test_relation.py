"""Lift of a relation on small graphs that can be counted by hand."""

import numpy as np
import pytest

from losskernel.errors import DataError
from losskernel.semantics.lift import lift
from losskernel.semantics.relation import Relation

TWO_BY_TWO = np.array([0, 0, 1, 1])


def by_group(groups, labels=None):
    groups = np.asarray(groups)
    labels = np.arange(len(groups)) if labels is None else labels
    return Relation(groups[:, None] == groups, np.not_equal.outer(labels, labels))


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
    relation = Relation(depth[np.ix_(labels, labels)] >= 3, np.not_equal.outer(labels, labels))
    assert relation.lift(neighbors) == pytest.approx(lift(neighbors, depth, [3], labels)[0])


@pytest.mark.parametrize("groups", [[0, 0, 0], [0, 1, 2]])
def test_a_relation_of_all_or_no_pairs_is_refused(groups):
    with pytest.raises(DataError, match="nothing to tell apart"):
        by_group(groups)
