import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from losskernel.errors import TraceError
from losskernel.semantics.separation import pair_auc, pair_blocks

groups_and_scores = st.integers(3, 8).flatmap(
    lambda n: st.tuples(
        arrays(int, n, elements=st.integers(0, 2)),
        # few distinct values, so that ties occur
        arrays(float, (n, n), elements=st.sampled_from([-1.0, 0.0, 0.1, 0.5, 2.0])),
    )
)


@given(groups_and_scores)
def test_auc_is_the_share_of_correctly_ordered_pairs_of_pairs(drawn):
    groups, scores = drawn
    scores = np.triu(scores) + np.triu(scores, 1).T
    pairs = list(itertools.combinations(range(len(groups)), 2))
    same = [scores[i, j] for i, j in pairs if groups[i] == groups[j]]
    cross = [scores[i, j] for i, j in pairs if groups[i] != groups[j]]
    assume(same and cross)
    wins = [(a > b) + 0.5 * (a == b) for a in same for b in cross]
    assert pair_auc(scores, groups) == pytest.approx(np.mean(wins), abs=1e-12)


def test_auc_extremes():
    groups = np.array(["add", "add", "divide", "divide"])
    same = (groups[:, None] == groups).astype(float)
    assert pair_auc(same, groups) == 1
    assert pair_auc(-same, groups) == 0
    assert pair_auc(np.zeros((4, 4)), groups) == 0.5


@given(groups_and_scores)
def test_blocks_hold_every_pair_once(drawn):
    groups, scores = drawn
    scores = np.triu(scores) + np.triu(scores, 1).T
    blocks = pair_blocks(scores, groups)
    expected: dict = {}
    for i, j in itertools.combinations(range(len(groups)), 2):
        expected.setdefault(tuple(sorted((groups[i], groups[j]))), []).append(scores[i, j])
    assert {key: sorted(values) for key, values in blocks.items()} == {
        key: sorted(values) for key, values in expected.items()
    }


@pytest.mark.parametrize("groups", [[0, 0, 0], [0, 1, 2]])
def test_needs_both_kinds_of_pairs(groups):
    with pytest.raises(TraceError, match="same-group and cross-group"):
        pair_auc(np.eye(3), groups)


def test_shapes_must_fit():
    with pytest.raises(TraceError, match="do not fit 2 groups"):
        pair_auc(np.eye(3), [0, 1])
