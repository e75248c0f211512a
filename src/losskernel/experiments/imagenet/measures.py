"""How semantic a kernel of inputs is: every statistic of experiment 2, with its nulls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from losskernel.kernel.maps import umap_graph
from losskernel.kernel.neighbors import kernel_distances, neighbors_by_distance
from losskernel.semantics.clustering import adjusted_agreement, spectral_clusters
from losskernel.semantics.lift import lift_by_k, shuffled_null
from losskernel.semantics.wordnet import Hierarchy, groups_at_depth

LEVELS = (0.025, 0.975)
COLUMNS = ("value", "standard_error", "null_low", "null_high")
Rows = dict[tuple[str, int | None, int | None], float]  # (statistic, depth, k) -> value


def distances(similarity: np.ndarray) -> np.ndarray:
    """Those of R for a normalized kernel; else what a similarity lacks of the largest one."""
    if similarity.max() <= 1 + 1e-6 and similarity.min() >= -1 - 1e-6:
        return kernel_distances(similarity)
    return similarity.max() - similarity


@dataclass(frozen=True)
class Graphs:
    """What one similarity makes of the inputs.

    Attributes:
        nearest: (n, largest k) most similar inputs of other labels.
        opposed: (n, k) least similar ones.
        clusters: depth -> (n,) cluster of each input, as many as the hierarchy has groups there.
    """

    nearest: np.ndarray
    opposed: np.ndarray
    clusters: dict[int, np.ndarray]


@dataclass(frozen=True)
class Measures:
    """Statistics of any similarity of the same inputs.

    Neighbors never have the label of their input.

    Attributes:
        tree: the hierarchy.
        labels: (n,) class of each input.
        ks: numbers of neighbors at which the lift is taken.
        cluster_depths: depths at which clusters are compared with the hierarchy.
        graph_neighbors: neighbors in the graph that is clustered.
        seed: of permutations and of the eigensolver.
    """

    tree: Hierarchy
    labels: np.ndarray
    ks: Sequence[int]
    cluster_depths: Sequence[int]
    graph_neighbors: int
    seed: int

    @cached_property
    def depths(self) -> np.ndarray:
        return np.arange(1, self.tree.lowest_common_hypernym_depth.max() + 1)

    @cached_property
    def _groups(self) -> dict[int, np.ndarray]:
        """Depth -> (n,) group of each input, numbered from 0."""
        return {
            depth: np.unique(
                groups_at_depth(self.tree, depth)[0][self.labels], return_inverse=True
            )[1]
            for depth in self.cluster_depths
        }

    def graphs(self, similarity: np.ndarray) -> Graphs:
        """Neighbors and clusters by a similarity; at most half as many clusters as inputs."""
        near = self.graph_neighbors
        nearest, apart = neighbors_by_distance(
            distances(similarity), max(*self.ks, near), exclude_labels=self.labels
        )
        graph = umap_graph(nearest[:, :near], apart[:, :near])
        opposed, _ = neighbors_by_distance(
            similarity - similarity.min(), self._opposed_ks[-1], exclude_labels=self.labels
        )
        clusters = {
            depth: spectral_clusters(graph, self._clusters(depth), self.seed)
            for depth in self._groups
        }
        return Graphs(nearest, opposed, clusters)

    def _clusters(self, depth: int) -> int:
        return min(int(self._groups[depth].max()) + 1, len(self.labels) // 2)

    def values(self, similarity: np.ndarray, graphs: Graphs | None = None) -> Rows:
        """Every statistic of one similarity."""
        graphs = graphs or self.graphs(similarity)
        found: Rows = {}
        for prefix, ks, graph in self._prefixed(graphs):
            found |= self._neighbor_rows(prefix, ks, self._neighbors(graph, ks))
        for depth, clusters in graphs.clusters.items():
            found[self._cluster_key(depth)] = adjusted_agreement(clusters, self._groups[depth])
        return found

    def null(
        self, similarity: np.ndarray, permutations: int, graphs: Graphs | None = None
    ) -> tuple[Rows, Rows]:
        """Quantiles `LEVELS` of every statistic when whole classes trade places."""
        graphs = graphs or self.graphs(similarity)
        found: tuple[Rows, Rows] = {}, {}
        for prefix, ks, graph in self._prefixed(graphs):
            null = self._neighbor_null(graph, ks, permutations)
            for rows, values in zip(found, null, strict=True):
                rows.update(self._neighbor_rows(prefix, ks, values))
        for depth, clusters in graphs.clusters.items():
            null = self._cluster_null(clusters, self._groups[depth], permutations)
            for rows, value in zip(found, null, strict=True):
                rows[self._cluster_key(depth)] = value
        return found

    def _prefixed(self, graphs: Graphs) -> list[tuple[str, Sequence[int], np.ndarray]]:
        """What the statistics of each neighbor graph are called, and at which k they are taken."""
        return [("", self.ks, graphs.nearest), ("opposed_", self._opposed_ks, graphs.opposed)]

    def _neighbor_null(self, graph: np.ndarray, ks: Sequence[int], permutations: int):
        """(2, ks, depths) quantiles of `_neighbors`."""
        return shuffled_null(
            graph,
            self.tree.lowest_common_hypernym_depth,
            lambda graph, _, labels: self._neighbors(graph, ks, labels),
            permutations=permutations,
            seed=self.seed,
            labels=self.labels,
        ).quantiles

    @property
    def _opposed_ks(self) -> list[int]:
        """One number of neighbors: 10, or the largest below."""
        return [max(k for k in self.ks if k <= max(10, min(self.ks)))]

    def _neighbors(self, graph: np.ndarray, ks, labels: np.ndarray | None = None) -> np.ndarray:
        """(ks, depths) lift of the first k neighbors."""
        labels = self.labels if labels is None else labels
        return lift_by_k(graph, self.tree.lowest_common_hypernym_depth, self.depths, ks, labels)

    def _neighbor_rows(self, prefix: str, ks, values: np.ndarray) -> Rows:
        return {
            (f"{prefix}lift", depth, k): lift
            for k, lifts in zip(ks, values, strict=True)
            for depth, lift in zip(self.depths, lifts, strict=True)
        }

    def _cluster_key(self, depth: int) -> tuple[str, int, int]:
        return "ami", depth, self._clusters(depth)

    def _cluster_null(self, clusters, groups, permutations: int) -> np.ndarray:
        """(2,) quantiles of AMI when whole classes trade groups."""
        present, first, inverse = np.unique(self.labels, return_index=True, return_inverse=True)
        rng = np.random.default_rng(self.seed)
        samples = [
            adjusted_agreement(clusters, groups[first][rng.permutation(len(present))][inverse])
            for _ in range(permutations)
        ]
        return np.quantile(samples, LEVELS)


def table(kernel: str, value: Rows, error: Rows, low: Rows, high: Rows) -> pd.DataFrame:
    """One row a statistic of one kernel; a statistic without error or null has none there."""
    return pd.DataFrame(
        [
            (kernel, *key, number, error.get(key), low.get(key), high.get(key))
            for key, number in value.items()
        ],
        columns=["kernel", "statistic", "depth", "k", *COLUMNS],
    )
