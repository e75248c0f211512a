import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from losskernel.errors import DataError, TraceError
from losskernel.kernel.covariance import (
    correlation,
    correlation_blocks,
    self_covariance,
    standardized,
)
from losskernel.kernel.neighbors import (
    extremes,
    kernel_distances,
    nearest_neighbors,
    neighbors_by_distance,
    vote,
)
from series import euclidean


def brute_force(losses, labels):
    r = standardized(losses).astype(np.float32)
    r = r.T @ r
    r[np.eye(len(r), dtype=bool) | (labels[:, None] == labels)] = -np.inf
    return r


@given(
    losses=arrays(
        np.float32,
        st.tuples(st.integers(3, 6), st.integers(4, 12)),
        elements=st.floats(-9, 9, width=32),
    ),
    block=st.integers(1, 13),
    data=st.data(),
)
def test_blocked_neighbors_are_those_of_the_whole_matrix(losses, block, data):
    inputs = losses.shape[1]
    labels = np.array(data.draw(st.lists(st.integers(0, 3), min_size=inputs, max_size=inputs)))
    use_labels = data.draw(st.booleans())
    fewest = inputs - (np.bincount(labels).max() if use_labels else 1)
    if fewest < 1:
        with pytest.raises(TraceError, match="k = 1"):
            nearest_neighbors(losses, 1, labels, block=block)
        return
    k = data.draw(st.integers(1, fewest))
    indices, values = nearest_neighbors(losses, k, labels if use_labels else None, block=block)
    r = brute_force(losses, labels if use_labels else np.arange(inputs))
    assert indices.shape == values.shape == (inputs, k)
    # Ties may come in any order; the values may not.
    np.testing.assert_allclose(values, -np.sort(-r, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(values, np.take_along_axis(r, indices, axis=1), atol=1e-6)
    assert (np.diff(values, axis=1) <= 0).all()
    assert all(len(set(row)) == k for row in indices)
    assert not (indices == np.arange(inputs)[:, None]).any()
    if use_labels:
        assert not (labels[indices] == labels[:, None]).any()


@pytest.mark.parametrize("block", [7, 64, 2048])
def test_neighbors_where_values_are_grouped_before_they_are_sorted(block):
    """More inputs than the properties above try, so that groups of inputs are passed over."""
    losses = np.random.default_rng(2).standard_normal((1, 9, 331)).astype(np.float32)
    losses[..., 17] = 3.0  # R = 0 with all others
    labels = np.arange(331) % 5
    for excluded in (None, labels):
        _, values = nearest_neighbors(losses, 4, excluded, block=block)
        r = brute_force(losses, np.arange(331) if excluded is None else labels)
        np.testing.assert_allclose(values, -np.sort(-r, axis=1)[:, :4], atol=12 * 2.0**-24)


def test_float32_products_err_within_the_stated_bound():
    """Losses of a large mean and a tiny spread are what float32 must not center."""
    rng = np.random.default_rng(0)
    losses = (1e3 + 0.01 * rng.standard_normal((2, 100, 50))).astype(np.float32)
    indices, values = nearest_neighbors(losses, 10)
    r = np.take_along_axis(correlation(losses), indices, axis=1)
    bound = (200 + 3) * 2.0**-24
    assert np.abs(values - r).max() <= bound
    # The spread is 160 units in the last place of a loss. A float32 mean errs by a few of them.
    flat = losses.reshape(200, 50)
    low = flat - flat.sum(axis=0, dtype=np.float32) / np.float32(200)
    low /= np.sqrt((low**2).sum(axis=0))
    assert np.abs(np.take_along_axis(low.T @ low, indices, axis=1) - r).max() > 10 * bound


@pytest.fixture
def peak():
    """Most bytes that arrays take while a function runs, beyond those that were there before."""

    def measured(function, *arguments):
        tracemalloc.start()
        try:
            function(*arguments)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measured


def test_memory_is_bounded_by_the_block(peak):
    """4,000 inputs: R would take 64 MB in float32, a block of 256 x 256 takes 0.26."""
    losses = np.random.default_rng(0).standard_normal((2, 16, 4000)).astype(np.float32)
    assert peak(nearest_neighbors, losses, 15, None, "pooled", 256) < 8e6
    assert peak(self_covariance, losses) < 4e6
    half = peak(nearest_neighbors, losses[..., :2000], 15, None, "pooled", 256)
    assert peak(nearest_neighbors, losses, 15, None, "pooled", 256) < 2.2 * half  # not 4


@pytest.mark.parametrize("k", [0, 10])
def test_impossible_numbers_of_neighbors(k):
    with pytest.raises(TraceError, match=f"k = {k} must be from 1 to 9"):
        nearest_neighbors(np.random.default_rng(0).standard_normal((3, 8, 10)), k)


def test_extremes_are_those_of_the_sorted_rows():
    losses = np.random.default_rng(1).standard_normal((2, 20, 30))
    labels, r = np.array(list("abca"))[np.arange(30) % 4], correlation(losses)
    found = extremes(correlation_blocks(losses, block=7), 3, labels)
    ends = found[:2], found[2:]
    for i in range(30):
        others = sorted(np.flatnonzero(labels != labels[i]), key=lambda j: r[i, j])
        for (indices, values), ranked in zip(ends, (others[::-1], others), strict=True):
            assert indices[i].tolist() == ranked[:3]
            np.testing.assert_allclose(values[i], r[i, ranked[:3]], rtol=1e-12)
    with pytest.raises(DataError, match="k = 16 must be from 1 to 15, the fewest"):
        extremes(correlation_blocks(losses), 16, labels)


def test_votes_are_weighed_and_negative_ones_do_not_count():
    labels = np.array(["cat", "dog", "dog", "eel"])
    indices = [[0, 1, 2], [3, 1, 2], [3, 1, 0]]
    weights = [[0.5, 0.2, 0.2], [0.5, 0.3, 0.3], [-1, -2, 0]]
    chosen, share = vote(indices, weights, labels)
    assert chosen.tolist()[:2] == ["cat", "dog"]
    np.testing.assert_allclose(share, [0.5 / 0.9, 0.6 / 1.1, 0])


class TestDistances:
    def test_euclidean_distance_of_standardized_traces(self):
        losses = np.random.default_rng(0).standard_normal((50, 8)) @ np.diag(np.arange(1, 9.0))
        traces = (losses - losses.mean(axis=0)).T
        traces /= np.linalg.norm(traces, axis=1, keepdims=True)
        distances = kernel_distances(np.corrcoef(losses.T))
        np.testing.assert_allclose(distances, euclidean(traces), atol=1e-7)

    def test_landmarks(self):
        # together, opposite, and an input of zero variance, whose own R is 0
        correlation = np.array([[1, 1, -1, 0], [1, 1, -1, 0], [-1, -1, 1, 0], [0, 0, 0, 0.0]])
        root = np.sqrt(2)
        np.testing.assert_allclose(
            kernel_distances(correlation),
            [[0, 0, 2, root], [0, 0, 2, root], [2, 2, 0, root], [root, root, root, 0]],
        )

    def test_rounding_beyond_1_gives_0_and_the_input_is_unchanged(self):
        correlation = np.array([[1, 1 + 1e-7], [1 + 1e-7, 1]])
        before = correlation.copy()
        np.testing.assert_array_equal(kernel_distances(correlation), np.zeros((2, 2)))
        np.testing.assert_array_equal(correlation, before)

    @pytest.mark.parametrize(
        ("matrix", "message"),
        [
            (np.array([[1, 4.0], [4.0, 1]]), r"from 1 to 4 .* not the covariance"),
            (np.array([[1, np.nan], [np.nan, 1]]), "not finite"),
            (np.ones((2, 3)), r"shape \(2, 3\)"),
            (np.ones((1, 1)), "2 inputs or more"),
        ],
    )
    def test_what_is_no_normalized_kernel(self, matrix, message):
        with pytest.raises(DataError, match=message):
            kernel_distances(matrix)


class TestNeighbors:
    @given(st.integers(0, 2**32 - 1), st.booleans())
    @settings(max_examples=60)
    def test_equal_a_full_sort(self, seed, removal):
        rng = np.random.default_rng(seed)
        n, k = 14, 4
        distances = rng.integers(0, 6, (n, n)).astype(float)  # many ties
        labels = np.concatenate([np.arange(5), rng.integers(0, 3, n - 5)])
        if np.bincount(labels).max() > n - k:
            labels = np.arange(n)
        indices, nearest = neighbors_by_distance(distances, k, labels if removal else None)
        for i in range(n):
            ranked = sorted(
                (distances[i, j], j)
                for j in range(n)
                if j != i and not (removal and labels[i] == labels[j])
            )
            assert [(d, j) for d, j in zip(nearest[i], indices[i], strict=True)] == ranked[:k]

    def test_removal_comes_before_the_graph(self):
        # Three nearest of each input are all of its own label: removal afterwards leaves nothing.
        points = (
            np.repeat([[0.0], [10.0], [11.0]], 4, axis=0)
            + np.tile([[0], [1], [2], [3]], (3, 1)) * 0.01
        )
        labels = np.repeat([0, 1, 2], 4)
        distances = euclidean(points)
        without, _ = neighbors_by_distance(distances, 3)
        assert (labels[without] == labels[:, None]).all()
        indices, nearest = neighbors_by_distance(distances, 3, labels)
        assert indices.shape == (12, 3)
        assert (labels[indices] != labels[:, None]).all()
        assert (labels[indices[:4]] == 1).all()  # the next label, at 10, not the one at 11
        np.testing.assert_array_equal(nearest, np.take_along_axis(distances, indices, axis=1))

    def test_labels_may_be_words(self):
        indices, _ = neighbors_by_distance(euclidean(np.arange(4.0)[:, None]), 1, list("aabb"))
        np.testing.assert_array_equal(indices.ravel(), [2, 2, 1, 1])

    def test_too_few_eligible(self):
        distances = euclidean(np.arange(5.0)[:, None])
        assert neighbors_by_distance(distances, 2, [0, 0, 0, 1, 2])[0].shape == (5, 2)
        with pytest.raises(DataError, match=r"k = 3 must be from 1 to 2.*label .*0"):
            neighbors_by_distance(distances, 3, [0, 0, 0, 1, 2])
        with pytest.raises(DataError, match="k = 5 must be from 1 to 4"):
            neighbors_by_distance(distances, 5)
        with pytest.raises(DataError, match="k = 0 must be"):
            neighbors_by_distance(distances, 0)

    def test_one_label_an_input(self):
        with pytest.raises(DataError, match=r"exclude_labels: shape \(4,\) does not fit 5"):
            neighbors_by_distance(euclidean(np.arange(5.0)[:, None]), 1, [0, 1, 2, 3])
