"""Maps of neighbor graphs by UMAP."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from losskernel.errors import DataError, needs


def umap_graph(indices: ArrayLike, distances: ArrayLike) -> scipy.sparse.csr_matrix:
    """UMAP's weighted graph of a neighbor graph: the fuzzy union of both directions of each edge.

    Args and errors as for :func:`umap_embedding`.

    Returns:
        ``(input, input)`` sparse and symmetric, weights in (0, 1], an edge where either input is a
        neighbor of the other.
    """
    return _fit(indices, distances, transform_mode="graph", random_state=0).graph_.tocsr()


def umap_embedding(
    indices: ArrayLike,
    distances: ArrayLike,
    n_components: int = 2,
    min_dist: float = 0.1,
    seed: int = 0,
    n_epochs: int | None = None,
    init: ArrayLike | None = None,
) -> NDArray[np.float32]:
    """UMAP of a given neighbor graph (McInnes, Healy and Melville 2018, arXiv:1802.03426).

    UMAP sees the graph and nothing else, so pairs that were kept out of it (equal labels) do not
    attract each other. Where the graph falls into more than ``2 * n_components`` pieces, their
    positions relative to each other start at random and mean little.

    Args:
        indices: ``(input, k)`` neighbors of each input, itself not among them, nearest first, as
            :func:`losskernel.kernel.neighbors.neighbors_by_distance` gives them.
        distances: ``(input, k)`` distances to them, finite, not negative, not falling along a row.
        n_components: dimensions of the embedding.
        min_dist: smallest distance between embedded points, in units of the embedding; smaller
            gives tighter clumps.
        seed: the same seed gives the same embedding on the same machine.
        n_epochs: optimization epochs; None leaves UMAP's choice, 500 up to 10,000 inputs.
        init: ``(input, n_components)`` where the optimization begins, up to scale and position: the
            embedding of an earlier graph of the same inputs, to compare the two; None begins with
            the graph's own spectral embedding.

    Returns:
        ``(input, n_components)`` coordinates.

    Raises:
        DataError: indices or distances are not as above, or there are too few inputs.
    """
    if len(np.asarray(indices)) <= n_components + 1:
        raise DataError(
            f"umap: {len(np.asarray(indices))} inputs are too few for {n_components} dimensions; "
            f"give at least {n_components + 2}"
        )
    shape = (len(np.asarray(indices)), n_components)
    if init is not None and (np.shape(init) != shape or not np.isfinite(init).all()):
        raise DataError(
            f"umap: init of shape {np.shape(init)} is not {shape} and finite; give one point an "
            "input"
        )
    return _fit(
        indices,
        distances,
        n_components=n_components,
        min_dist=min_dist,
        random_state=seed,
        n_epochs=n_epochs,
        init="spectral" if init is None else np.array(init, np.float32),
    ).embedding_


def _fit(indices: ArrayLike, distances: ArrayLike, *, random_state: int, **settings):
    """A UMAP estimator fitted to a precomputed neighbor graph."""
    with needs("maps"):
        # Here, as they take seconds to import, and the rest is light.
        import torch
        import umap

    indices, distances = np.asarray(indices), np.asarray(distances, np.float64)
    _check_graph(indices, distances)
    n, k = indices.shape
    # UMAP expects each point as its own first neighbor: it skips the first column when it fits the
    # bandwidths, and would otherwise skip the real nearest neighbor. n_neighbors counts the point.
    indices = np.column_stack([np.arange(n), indices])
    distances = np.column_stack([np.zeros(n), distances])
    # With a precomputed graph the data only place the pieces of a graph in many pieces, by their
    # centroids. Row numbers would lay the pieces out in the order of the inputs, a pattern that is
    # not in the kernel; noise has none.
    data = np.random.default_rng(random_state).standard_normal((n, 2))
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            # UMAP only warns when it drops a graph that it dislikes and computes another from the
            # data.
            warnings.filterwarnings("error", message="precomputed_knn has")
            # Harmless here: new data cannot be transformed, and a graph of k = n - 1 stays as it
            # is.
            warnings.filterwarnings("ignore", message=r"precomputed_knn\[2\]")
            warnings.filterwarnings("ignore", message="n_neighbors is larger than the dataset")
            return umap.UMAP(
                n_neighbors=k + 1,
                precomputed_knn=(indices, distances),
                random_state=random_state,
                n_jobs=1,
                **settings,
            ).fit(data)
    finally:
        # Numba sets the number of threads of the OpenMP that torch uses too: to all cores.
        torch.set_num_threads(threads)


def _check_graph(indices: NDArray, distances: NDArray) -> None:
    if indices.ndim != 2 or 0 in indices.shape or indices.dtype.kind not in "iu":
        raise DataError(
            f"umap: indices of shape {indices.shape} and type {indices.dtype} are not "
            "(input, k) integers"
        )
    if distances.shape != indices.shape:
        raise DataError(
            f"umap: distances of shape {distances.shape} do not fit indices of shape "
            f"{indices.shape}; give one distance a neighbor"
        )
    n = len(indices)
    if indices.min() < 0 or indices.max() >= n:
        raise DataError(
            f"umap: indices from {indices.min()} to {indices.max()}; {n} inputs have 0 to {n - 1}"
        )
    own = np.flatnonzero((indices == np.arange(n)[:, None]).any(axis=1))
    if own.size:
        raise DataError(f"umap: input {own[0]} is its own neighbor; leave it out of the graph")
    if not np.isfinite(distances).all() or distances.min() < 0 or (np.diff(distances) < 0).any():
        raise DataError(
            "umap: distances are not finite, not negative and rising along each row; "
            "sort each row's neighbors by distance"
        )
