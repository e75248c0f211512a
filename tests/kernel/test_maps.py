import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from losskernel.errors import DataError
from losskernel.kernel.maps import kernel_distances, nearest_neighbors, umap_embedding, umap_graph


def euclidean(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


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
        indices, nearest = nearest_neighbors(distances, k, labels if removal else None)
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
        without, _ = nearest_neighbors(distances, 3)
        assert (labels[without] == labels[:, None]).all()
        indices, nearest = nearest_neighbors(distances, 3, labels)
        assert indices.shape == (12, 3)
        assert (labels[indices] != labels[:, None]).all()
        assert (labels[indices[:4]] == 1).all()  # the next label, at 10, not the one at 11
        np.testing.assert_array_equal(nearest, np.take_along_axis(distances, indices, axis=1))

    def test_labels_may_be_words(self):
        indices, _ = nearest_neighbors(euclidean(np.arange(4.0)[:, None]), 1, list("aabb"))
        np.testing.assert_array_equal(indices.ravel(), [2, 2, 1, 1])

    def test_too_few_eligible(self):
        distances = euclidean(np.arange(5.0)[:, None])
        assert nearest_neighbors(distances, 2, [0, 0, 0, 1, 2])[0].shape == (5, 2)
        with pytest.raises(DataError, match=r"k = 3 must be from 1 to 2.*label .*0"):
            nearest_neighbors(distances, 3, [0, 0, 0, 1, 2])
        with pytest.raises(DataError, match="k = 5 must be from 1 to 4"):
            nearest_neighbors(distances, 5)
        with pytest.raises(DataError, match="k = 0 must be"):
            nearest_neighbors(distances, 0)

    def test_one_label_an_input(self):
        with pytest.raises(DataError, match=r"exclude_labels: shape \(4,\) does not fit 5"):
            nearest_neighbors(euclidean(np.arange(5.0)[:, None]), 1, [0, 1, 2, 3])


def classes_within_superclasses() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalized kernel, label and superclass of 4 x 5 labels with 8 inputs each.

    R is about 0.8 for equal labels, 0.3 within a superclass and 0 across.
    """
    superclass, label = np.repeat(np.arange(4), 40), np.repeat(np.arange(20), 8)
    rng = np.random.default_rng(0)
    shared, own, noise = (rng.standard_normal((2000, size)) for size in (4, 20, 160))
    losses = (
        np.sqrt(0.3) * shared[:, superclass] + np.sqrt(0.5) * own[:, label] + np.sqrt(0.2) * noise
    )
    return np.corrcoef(losses.T), label, superclass


@pytest.mark.slow
class TestUmap:
    def test_edges_are_those_of_the_given_graph(self):
        # A graph that no distance between data points would give.
        rng = np.random.default_rng(0)
        indices = np.stack([rng.permutation(np.delete(np.arange(60), i))[:4] for i in range(60)])
        distances = np.sort(rng.uniform(0.5, 1, (60, 4)), axis=1)
        given = np.zeros((60, 60), bool)
        given[np.arange(60)[:, None], indices] = True
        graph = umap_graph(indices, distances).toarray()
        np.testing.assert_array_equal(graph > 0, given | given.T)
        np.testing.assert_allclose(graph, graph.T)

    def test_the_nearest_neighbor_is_not_mistaken_for_the_point_itself(self):
        # On a ring where i points to i+1..i+7 no edge is reciprocated, so the weights are those of
        # one direction: 1 for the nearest and log2(n_neighbors) = log2(8) in all. UMAP leaves its
        # first column out of that sum; were it the nearest, the total would be 1 + log2(7).
        n, k = 40, 7
        indices = (np.arange(n)[:, None] + np.arange(1, k + 1)) % n
        distances = np.tile(np.linspace(1, 2, k), (n, 1))
        weights = umap_graph(indices, distances).toarray()[np.arange(n)[:, None], indices]
        np.testing.assert_allclose(weights[:, 0], 1, atol=1e-6)
        np.testing.assert_allclose(weights.sum(axis=1), np.log2(k + 1), atol=1e-4)
        assert (np.diff(weights, axis=1) < 0).all()

    def test_same_label_clusters_vanish_when_removed_before_the_graph(self):
        correlation, label, superclass = classes_within_superclasses()
        distances = kernel_distances(correlation)

        def shares(exclude):
            indices, nearest = nearest_neighbors(distances, 5, exclude)
            rows, columns = umap_graph(indices, nearest).nonzero()
            embedding = euclidean(umap_embedding(indices, nearest, seed=1))
            return {
                "neighbors": (label[indices] == label[:, None]).mean(),
                "edges": (label[rows] == label[columns]).mean(),
                "map, label": (label[nearest_neighbors(embedding, 7)[0]] == label[:, None]).mean(),
                "map, superclass": (
                    superclass[nearest_neighbors(embedding, 39)[0]] == superclass[:, None]
                ).mean(),
            }

        kept = shares(None)
        assert kept["neighbors"] == kept["edges"] == 1
        assert kept["map, label"] == 1  # 20 clumps of one label each,
        assert kept["map, superclass"] < 0.6  # which say nothing of superclasses
        removed = shares(label)
        assert removed["neighbors"] == removed["edges"] == 0
        assert removed["map, label"] < 0.5  # 7/39 = 0.18 if labels were mixed at random
        assert removed["map, superclass"] > 0.95  # 4 clumps

    def test_same_seed_same_embedding(self):
        indices, nearest = nearest_neighbors(
            euclidean(np.random.default_rng(0).standard_normal((50, 3))), 6
        )
        before = indices.copy(), nearest.copy()
        first = umap_embedding(indices, nearest, seed=5, n_epochs=30)
        np.random.seed(123)  # the global generator must not matter
        np.testing.assert_array_equal(first, umap_embedding(indices, nearest, seed=5, n_epochs=30))
        assert not np.array_equal(first, umap_embedding(indices, nearest, seed=6, n_epochs=30))
        np.testing.assert_array_equal(indices, before[0])
        np.testing.assert_array_equal(nearest, before[1])

    def test_it_begins_where_it_is_told(self):
        rng = np.random.default_rng(0)
        indices, nearest = nearest_neighbors(euclidean(rng.standard_normal((60, 3))), 6)
        start = rng.standard_normal((60, 2))
        moved = [umap_embedding(indices, nearest, n_epochs=1, init=to) for to in (start, -start)]
        for embedding, begin in zip(moved, (start, -start), strict=True):
            for axis in (0, 1):  # UMAP rescales each axis; one epoch moves points little
                assert np.corrcoef(embedding[:, axis], begin[:, axis])[0, 1] > 0.9
        with pytest.raises(DataError, match=r"init of shape \(59, 2\) is not \(60, 2\)"):
            umap_embedding(indices, nearest, init=start[1:])

    def test_shapes(self):
        indices, nearest = nearest_neighbors(euclidean(np.arange(9.0)[:, None]), 8)
        embedding = umap_embedding(indices, nearest, n_components=3, n_epochs=10)
        assert embedding.shape == (9, 3)
        assert np.isfinite(embedding).all()

    def test_a_graph_in_many_pieces(self):
        points = (
            np.random.default_rng(1).standard_normal((72, 2))
            + 100 * np.arange(6).repeat(12)[:, None]
        )
        indices, nearest = nearest_neighbors(euclidean(points), 5)
        embedding = umap_embedding(indices, nearest, n_epochs=100)
        found, _ = nearest_neighbors(euclidean(embedding), 5)
        assert (found // 12 == np.arange(72)[:, None] // 12).mean() > 0.95

    def test_inputs_at_distance_0(self):
        indices, nearest = nearest_neighbors(euclidean(np.repeat(np.arange(5.0), 4)[:, None]), 5)
        assert (nearest[:, 0] == 0).all()
        assert np.isfinite(umap_embedding(indices, nearest, n_epochs=10)).all()


@pytest.mark.parametrize(
    ("indices", "distances", "message"),
    [
        ([[1], [0], [0], [9]], np.ones((4, 1)), "indices from 0 to 9; 4 inputs"),
        ([[1], [0], [2], [0]], np.ones((4, 1)), "input 2 is its own neighbor"),
        ([[1.0], [0], [0], [0]], np.ones((4, 1)), "integers"),
        ([[1], [0], [0], [0]], np.ones((4, 2)), "do not fit"),
        ([[1, 2], [0, 2], [0, 1], [0, 1]], [[1, 2], [2, 1], [1, 1], [1, 1]], "rising"),
        ([[1], [0], [0], [0]], [[1], [-1], [1], [1]], "not negative"),
        ([[1], [0], [0], [0]], [[1], [np.inf], [1], [1]], "not finite"),
        ([[1], [0], [0]], np.ones((3, 1)), "3 inputs are too few for 2 dimensions"),
    ],
)
def test_a_graph_that_umap_would_misread(indices, distances, message):
    with pytest.raises(DataError, match=message):
        umap_embedding(np.array(indices), np.array(distances, float))
