"""Clusters of a neighbor graph, and how far they agree with groups of the inputs."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from losskernel.errors import DataError, needs


def spectral_clusters(graph: scipy.sparse.spmatrix, clusters: int, seed: int = 0) -> NDArray:
    """Spectral clustering of a weighted graph (normalized Laplacian; Ng, Jordan and Weiss 2002).

    Clusters are read off the eigenvectors by a pivoted QR factorization (Damle, Minden and Ying
    2019), which has no random start.

    Args:
        graph: (n, n) symmetric, weights >= 0, as :func:`losskernel.kernel.maps.umap_graph` gives
            it.
        clusters: number of clusters, 2 to n - 1.
        seed: of the eigensolver's starting vector.

    Returns:
        (n,) cluster of each input, from 0.

    Raises:
        DataError: the number of clusters is out of range.
    """
    with needs("maps"):
        from sklearn.cluster import SpectralClustering  # here, as it loads for a second

    n = graph.shape[0]
    if not 2 <= clusters < n:
        raise DataError(f"clusters = {clusters} must be from 2 to {n - 1}, the inputs less one")
    model = SpectralClustering(
        clusters, affinity="precomputed", assign_labels="cluster_qr", random_state=seed
    )
    with warnings.catch_warnings():
        # A graph in several pieces is no mistake here: its pieces are clusters.
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        return model.fit_predict(graph)


def adjusted_agreement(clusters: ArrayLike, groups: ArrayLike) -> float:
    """Adjusted mutual information of (n,) clusters and groups of the same inputs.

    1 where they are the same partition; 0 is what random clusters of the same sizes reach on
    average (Vinh, Epps and Bailey 2010; scikit-learn's).

    Raises:
        DataError: the lengths differ.
    """
    with needs("maps"):
        from sklearn.metrics import adjusted_mutual_info_score

    shapes = np.shape(clusters), np.shape(groups)
    if shapes[0] != shapes[1] or len(shapes[0]) != 1:
        raise DataError(f"clusters {shapes[0]} and groups {shapes[1]}: give one label an input")
    return float(adjusted_mutual_info_score(groups, clusters))
