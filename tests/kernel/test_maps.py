import numpy as np
import pytest
import torch

from losskernel.errors import DataError
from losskernel.kernel.maps import umap_embedding, umap_graph
from losskernel.kernel.neighbors import kernel_distances, neighbors_by_distance
from series import euclidean


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
            indices, nearest = neighbors_by_distance(distances, 5, exclude)
            rows, columns = umap_graph(indices, nearest).nonzero()
            embedding = euclidean(umap_embedding(indices, nearest, seed=1))
            return {
                "neighbors": (label[indices] == label[:, None]).mean(),
                "edges": (label[rows] == label[columns]).mean(),
                "map, label": (
                    label[neighbors_by_distance(embedding, 7)[0]] == label[:, None]
                ).mean(),
                "map, superclass": (
                    superclass[neighbors_by_distance(embedding, 39)[0]] == superclass[:, None]
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
        indices, nearest = neighbors_by_distance(
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
        indices, nearest = neighbors_by_distance(euclidean(rng.standard_normal((60, 3))), 6)
        start = rng.standard_normal((60, 2))
        moved = [umap_embedding(indices, nearest, n_epochs=1, init=to) for to in (start, -start)]
        for embedding, begin in zip(moved, (start, -start), strict=True):
            for axis in (0, 1):  # UMAP rescales each axis; one epoch moves points little
                assert np.corrcoef(embedding[:, axis], begin[:, axis])[0, 1] > 0.9
        with pytest.raises(DataError, match=r"init of shape \(59, 2\) is not \(60, 2\)"):
            umap_embedding(indices, nearest, init=start[1:])

    def test_shapes(self):
        indices, nearest = neighbors_by_distance(euclidean(np.arange(9.0)[:, None]), 8)
        embedding = umap_embedding(indices, nearest, n_components=3, n_epochs=10)
        assert embedding.shape == (9, 3)
        assert np.isfinite(embedding).all()

    @pytest.mark.parametrize("count", [1, 3])
    def test_torch_keeps_its_number_of_threads(self, count):
        """Which Numba, through the OpenMP of both, makes that of the cores."""
        indices = (np.arange(12)[:, None] + [1, 2]) % 12
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            umap_graph(indices, np.full((12, 2), 0.5))
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(before)

    def test_a_graph_in_many_pieces(self):
        points = (
            np.random.default_rng(1).standard_normal((72, 2))
            + 100 * np.arange(6).repeat(12)[:, None]
        )
        indices, nearest = neighbors_by_distance(euclidean(points), 5)
        embedding = umap_embedding(indices, nearest, n_epochs=100)
        found, _ = neighbors_by_distance(euclidean(embedding), 5)
        assert (found // 12 == np.arange(72)[:, None] // 12).mean() > 0.95

    def test_inputs_at_distance_0(self):
        indices, nearest = neighbors_by_distance(
            euclidean(np.repeat(np.arange(5.0), 4)[:, None]), 5
        )
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
