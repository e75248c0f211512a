"""How semantic a kernel of inputs is: every statistic of experiment 2, with its nulls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from losskernel.kernel.alignment import cka
from losskernel.kernel.maps import umap_graph
from losskernel.kernel.neighbors import kernel_distances, neighbors_by_distance
from losskernel.semantics.clustering import Agreement, agreement, spectral_clusters
from losskernel.semantics.lift import (
    MirroredRanks,
    lift_by_k,
    mean_common_depth,
    rank_correlations,
    shuffled_null,
)
from losskernel.semantics.wordnet import Hierarchy, groups_at_depth

MEASURES = ("path", "wu_palmer", "lch_depth")
LEVELS = (0.025, 0.975)
COLUMNS = ("value", "standard_error", "null_low", "null_high")
Rows = dict[tuple[str, int | None, int | None], float]  # (statistic, depth, k) -> value
ALIGNMENT = ("cka_features", None, None)


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
        features: (n, n) the kernel that CKA compares with.
        ks: numbers of neighbors at which the lift is taken.
        cluster_depths: depths at which clusters are compared with the hierarchy.
        graph_neighbors: neighbors in the graph that is clustered.
        seed: of permutations and of the eigensolver.
    """

    tree: Hierarchy
    labels: np.ndarray
    features: np.ndarray
    ks: Sequence[int]
    cluster_depths: Sequence[int]
    graph_neighbors: int
    seed: int

    @cached_property
    def depths(self) -> np.ndarray:
        return np.arange(1, self.tree.lowest_common_hypernym_depth.max() + 1)

    @cached_property
    def pairs(self) -> tuple[MirroredRanks, MirroredRanks]:
        """Ranks of the similarity by each of `MEASURES`, and of that of the features.

        Inputs of one class are as similar as can be to the hierarchy: they do not count as pairs,
        and trade places together. To the features each input is its own.
        """
        own = np.ix_(self.labels, self.labels)
        tree = self.tree
        matrices = (tree.path_similarity, tree.wu_palmer, tree.lowest_common_hypernym_depth)
        by_class = MirroredRanks.of([matrix[own] for matrix in matrices], self.labels)
        return by_class, MirroredRanks.of([self.features])

    def _rank_correlations(self, variants: list[np.ndarray], permutations: int = 0):
        """`rank_correlations` with both, side by side."""
        found = [
            rank_correlations(variants, pairs, permutations=permutations, seed=self.seed)
            for pairs in self.pairs
        ]
        return tuple(np.concatenate(parts, axis=-1) for parts in zip(*found, strict=True))

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
        variants = _variants(similarity)
        ranks, _ = self._rank_correlations(list(variants.values()))
        found = {ALIGNMENT: cka(similarity, self.features)} | self._rank_rows(variants, ranks)
        for prefix, ks, graph in self._prefixed(graphs):
            found |= self._neighbor_rows(prefix, ks, self._neighbors(graph, ks))
        for depth, clusters in graphs.clusters.items():
            found |= self._agreement_rows(depth, agreement(clusters, self._groups[depth]))
        return found

    def null(
        self, similarity: np.ndarray, permutations: int, graphs: Graphs | None = None
    ) -> tuple[Rows, Rows]:
        """Quantiles `LEVELS` of every statistic when whole classes trade places in the hierarchy.

        For the alignment with the features the inputs of one of both kernels trade places.
        """
        graphs = graphs or self.graphs(similarity)
        variants = _variants(similarity)
        _, samples = self._rank_correlations(list(variants.values()), permutations)
        quantiles = np.quantile(samples, LEVELS, axis=0)
        found = [self._rank_rows(variants, ranks) for ranks in quantiles]
        for prefix, ks, graph in self._prefixed(graphs):
            null = self._neighbor_null(graph, ks, permutations)
            for rows, values in zip(found, null, strict=True):
                rows |= self._neighbor_rows(prefix, ks, values)
        for depth, clusters in graphs.clusters.items():
            null = self._cluster_null(clusters, self._groups[depth], permutations)
            for rows, values in zip(found, null, strict=True):
                rows |= self._agreement_rows(depth, values)
        alignments = self._alignment_null(similarity, permutations)
        for rows, value in zip(found, np.quantile(alignments, LEVELS), strict=True):
            rows[ALIGNMENT] = value
        low, high = found
        return low, high

    def _prefixed(self, graphs: Graphs) -> list[tuple[str, Sequence[int], np.ndarray]]:
        """What the statistics of each neighbor graph are called, and at which k they are taken."""
        return [("", self.ks, graphs.nearest), ("opposed_", self._opposed_ks, graphs.opposed)]

    def _neighbor_null(self, graph: np.ndarray, ks: Sequence[int], permutations: int):
        """(2, ks, 1 + depths) quantiles of `_neighbors`."""
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
        """(ks, 1 + depths): common depth, and lift by depth, of the first k neighbors."""
        labels = self.labels if labels is None else labels
        depth = self.tree.lowest_common_hypernym_depth
        common = [mean_common_depth(graph[:, :k], depth, labels) for k in ks]
        return np.column_stack([common, lift_by_k(graph, depth, self.depths, ks, labels)])

    def _neighbor_rows(self, prefix: str, ks, values: np.ndarray) -> Rows:
        rows: Rows = {}
        for k, (common, *lifts) in zip(ks, values, strict=True):
            rows[(f"{prefix}common_depth", None, k)] = common
            for depth, lift in zip(self.depths, lifts, strict=True):
                rows[(f"{prefix}lift", depth, k)] = lift
        return rows

    def _rank_rows(self, variants: dict[str, np.ndarray], ranks: np.ndarray) -> Rows:
        return {
            (f"{name}_{measure}", None, None): ranks[i, j]
            for i, name in enumerate(variants)
            for j, measure in enumerate((*MEASURES, "features"))
        }

    def _agreement_rows(self, depth: int, values) -> Rows:
        return {
            (name, depth, self._clusters(depth)): value
            for name, value in zip(Agreement._fields, values, strict=True)
        }

    def _cluster_null(self, clusters, groups, permutations: int) -> np.ndarray:
        """(2, 3) quantiles of purity, NMI and AMI when whole classes trade groups."""
        present, first, inverse = np.unique(self.labels, return_index=True, return_inverse=True)
        rng = np.random.default_rng(self.seed)
        samples = [
            agreement(clusters, groups[first][rng.permutation(len(present))][inverse])
            for _ in range(permutations)
        ]
        return np.quantile(samples, LEVELS, axis=0)

    def _alignment_null(self, similarity: np.ndarray, permutations: int) -> list[float]:
        """CKA with the features of other inputs."""
        first, second = (_centered(matrix) for matrix in (similarity, self.features))
        rng = np.random.default_rng(self.seed)
        orders = (rng.permutation(len(first)) for _ in range(permutations))
        return [float(np.vdot(first, second[order][:, order])) for order in orders]


def _variants(similarity: np.ndarray) -> dict[str, np.ndarray]:
    """What is ranked: the similarity, its size, and how far below 0 it is, where any is."""
    found = {"spearman": similarity, "spearman_magnitude": np.abs(similarity)}
    if (similarity < 0).any():
        found["spearman_opposed"] = np.maximum(-similarity, 0)
    return found


def _centered(matrix: np.ndarray) -> np.ndarray:
    """A matrix less its row and column means, of Frobenius norm 1."""
    centered = matrix - matrix.mean(0) - matrix.mean(1)[:, None] + matrix.mean()
    return centered / np.linalg.norm(centered)


def table(kernel: str, value: Rows, error: Rows, low: Rows, high: Rows) -> pd.DataFrame:
    """One row a statistic of one kernel; a statistic without error or null has none there."""
    return pd.DataFrame(
        [
            (kernel, *key, number, error.get(key), low.get(key), high.get(key))
            for key, number in value.items()
        ],
        columns=["kernel", "statistic", "depth", "k", *COLUMNS],
    )
