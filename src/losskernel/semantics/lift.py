"""How well a neighbor graph or a kernel follows the hierarchy of the classes.

Several inputs a class. The functions on neighbor graphs take a depth matrix
(:attr:`losskernel.semantics.wordnet.Hierarchy.lowest_common_hypernym_depth`) and, optionally,
``labels``. Without labels the matrix has one row an input, (n, n). With labels, it has one row a
class, (C, C), input ``i`` belongs to row ``labels[i]``, and pairs of inputs with equal labels are
left out of
graph and base rate alike: they share every hypernym by construction. (To count them, expand the
matrix to ``depth[np.ix_(labels, labels)]`` and pass no labels.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from losskernel.errors import DataError


class Null(NamedTuple):
    """Distribution of a statistic when labels are permuted.

    Attributes:
        quantiles: (len(levels), ...) quantiles over permutations.
        samples: (permutations, ...) all values.
    """

    quantiles: NDArray[np.float64]
    samples: NDArray[np.float64]


def lift(
    neighbors: ArrayLike,
    depth_matrix: ArrayLike,
    depths: ArrayLike,
    labels: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Taxonomic lift: how much likelier than chance neighbors share a hypernym of some depth.

    lift(d) = P(depth(lch(i, j)) >= d : j a neighbor of i) / P(depth(lch(i, j)) >= d : i != j),

    the first over all n*k edges, the second over all ordered pairs of inputs (with ``labels``:
    all pairs of unequal label). 1 is chance. The taxonomic lift of Adam, Furman and Hoogland 2025
    (arXiv:2509.26537).

    Args:
        neighbors: (n, k) indices of the k nearest inputs of each input, itself excluded.
        depth_matrix: (n, n), or (C, C) with ``labels``: depth of the lowest common hypernym.
        depths: (D,) depths d, in steps from the root.
        labels: (n,) class of each input, see the module.

    Returns:
        (D,) lift; NaN where the base rate is 0, as then no pair at all reaches that depth and
        there is nothing to compare with.

    Raises:
        DataError: shapes or indices do not fit, an input is its own neighbor, or (with
            ``labels``) an edge joins equal labels.
    """
    edges = _edge_depths(neighbors, depth_matrix, labels)
    return lift_by_k(neighbors, depth_matrix, depths, [edges.shape[1]], labels)[0]


def lift_by_k(
    neighbors: ArrayLike,
    depth_matrix: ArrayLike,
    depths: ArrayLike,
    ks: Sequence[int],
    labels: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """`lift` for the first k neighbors of each input, for each k.

    Args:
        neighbors: (n, K) indices, nearest first.
        ks: numbers of neighbors, each in 1..K.

    Returns:
        (len(ks), D) lift.

    Raises:
        DataError: as `lift`, or a k is out of range.
    """
    edges = _edge_depths(neighbors, depth_matrix, labels)
    for k in ks:
        if not 1 <= k <= edges.shape[1]:
            raise DataError(f"k is {k}; the graph allows 1 to {edges.shape[1]} neighbors")
    pairs, weights = _pair_depths(depth_matrix, labels, len(edges))
    base = _share_at_least(pairs, depths, weights)
    shares = np.stack([_share_at_least(edges[:, :k].ravel(), depths) for k in ks])
    return np.divide(shares, base, out=np.full_like(shares, np.nan), where=base > 0)


def region_lift(
    neighbors: ArrayLike, members: ArrayLike, labels: ArrayLike | None = None
) -> NDArray[np.float64]:
    """How much likelier than chance the neighbors of a region's inputs lie in the region.

    lift = P(j in region : i in region, j a neighbor of i) / P(j in region : i in region, j != i),

    with ``labels`` over pairs of unequal label. It is `lift` for one synset in place of a depth.

    Args:
        neighbors: (n, k) indices of the nearest inputs of each input.
        members: (n,) or (n, R) boolean, whether an input lies in the region, or in each of R.
        labels: (n,) class of each input; inputs of a class are all in a region or all outside.

    Returns:
        () or (R,) lift; NaN for a region of fewer than two classes (or, without labels, inputs).

    Raises:
        DataError: shapes do not fit.
    """
    neighbors, members = np.asarray(neighbors), np.asarray(members, bool)
    if neighbors.ndim != 2 or len(members) != len(neighbors) or members.ndim not in (1, 2):
        raise DataError(
            f"members has shape {members.shape} and neighbors {neighbors.shape}; give (n, regions) "
            "and (n, k)"
        )
    n, k = neighbors.shape
    flat = members.reshape(n, -1).astype(np.float64)
    labels = np.arange(n) if labels is None else np.asarray(labels)
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    own = sizes[inverse].astype(np.float64)  # inputs of each input's label, itself included
    inside = flat.sum(axis=0)
    # Ordered pairs of unequal label that begin in the region, and those that also end there.
    begin = inside * n - own @ flat
    both = inside**2 - own @ flat
    # Edges within the region, a column of neighbors at a time: memory stays (n, regions).
    edges = sum((flat * flat[neighbors[:, column]]).sum(axis=0) for column in range(k))
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.where(both > 0, edges / (inside * k) / (both / begin), np.nan)
    return value.reshape(members.shape[1:])


def mean_pair_depth(depth_matrix: ArrayLike, labels: ArrayLike | None = None) -> float:
    """Mean depth of the lowest common hypernym over all pairs of inputs.

    Pairs i != j, with ``labels`` those of unequal label; 4.18 for the 1,000 ILSVRC classes.
    """
    n = len(np.asarray(depth_matrix)) if labels is None else len(np.asarray(labels))
    pairs, weights = _pair_depths(depth_matrix, labels, n)
    return float(np.average(pairs, weights=weights))


def shuffled_null(
    neighbors: ArrayLike,
    depth_matrix: ArrayLike,
    statistic: Callable[[NDArray, NDArray, NDArray], ArrayLike],
    *,
    permutations: int,
    seed: int | np.random.SeedSequence,
    labels: ArrayLike | None = None,
    levels: Sequence[float] = (0.025, 0.975),
) -> Null:
    """Null of a statistic of the neighbor graph: the graph stays, class names are permuted.

    Whole classes trade their places in the hierarchy (without ``labels`` each input is a class of
    its own), so that a graph without same-label edges has none after it, and the graph keeps
    whatever hubs it has.

    Args:
        neighbors, depth_matrix, labels: as `lift`.
        statistic: called as ``statistic(neighbors, depth_matrix, labels)``, for instance
            ``lambda g, m, y: lift(g, m, depths, y)``; returns a number or an array.
        permutations: number of permutations, at least 1.
        seed: of `numpy.random.default_rng`.
        levels: quantiles to report.

    Raises:
        DataError: as `lift`, or ``permutations`` is below 1.
    """
    if permutations < 1:
        raise DataError(f"permutations is {permutations}; at least 1 is needed")
    neighbors, depth_matrix = np.asarray(neighbors), np.asarray(depth_matrix)
    _edge_depths(neighbors, depth_matrix, labels)  # reject bad input before the loop
    labels = np.arange(len(neighbors)) if labels is None else np.asarray(labels)
    present, inverse = np.unique(labels, return_inverse=True)
    rng = np.random.default_rng(seed)
    samples = np.array(
        [
            statistic(neighbors, depth_matrix, rng.permutation(present)[inverse])
            for _ in range(permutations)
        ],
        np.float64,
    )
    return Null(np.quantile(samples, levels, axis=0), samples)


def _edge_depths(
    neighbors: ArrayLike, depth_matrix: ArrayLike, labels: ArrayLike | None
) -> NDArray[np.int64]:
    """(n, k) depth of the lowest common hypernym of each input and its neighbors, checked."""
    neighbors, depth_matrix = np.asarray(neighbors), np.asarray(depth_matrix)
    if neighbors.ndim != 2 or 0 in neighbors.shape or neighbors.dtype.kind not in "iu":
        raise DataError(
            f"neighbors has shape {neighbors.shape} and type {neighbors.dtype}; "
            "(n, k) integers are needed"
        )
    n = len(neighbors)
    rows = _rows(depth_matrix, labels, n)
    if neighbors.min() < 0 or neighbors.max() >= n:
        raise DataError(
            f"neighbors holds indices {neighbors.min()} to {neighbors.max()}; "
            f"{n} inputs have indices 0 to {n - 1}"
        )
    own = np.flatnonzero((neighbors == np.arange(n)[:, None]).any(axis=1))
    if own.size:
        raise DataError(f"input {own[0]} is listed as its own neighbor; leave it out of the graph")
    if labels is not None:
        same = np.flatnonzero((rows[neighbors] == rows[:, None]).any(axis=1))
        if same.size:
            raise DataError(
                f"input {same[0]} has a neighbor of its own label; build the graph without them "
                "(geometry.nearest_neighbors with exclude_labels)"
            )
    return depth_matrix[rows[:, None], rows[neighbors]]


def _rows(depth_matrix: NDArray, labels: ArrayLike | None, n: int) -> NDArray[np.int64]:
    """(n,) the row of the depth matrix that each of n inputs belongs to."""
    if depth_matrix.ndim != 2 or len(set(depth_matrix.shape)) != 1:
        raise DataError(f"depth_matrix has shape {depth_matrix.shape}; a square one is needed")
    if depth_matrix.dtype.kind not in "iu":
        raise DataError(f"depth_matrix has type {depth_matrix.dtype}; depths are integers")
    if labels is None:
        if len(depth_matrix) != n:
            raise DataError(
                f"depth_matrix has {len(depth_matrix)} rows for {n} inputs; give one row an input, "
                "or one row a class with labels"
            )
        return np.arange(n)
    labels = np.asarray(labels)
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"labels has shape {labels.shape} and type {labels.dtype}; ({n},) integers are needed"
        )
    if labels.min() < 0 or labels.max() >= len(depth_matrix):
        raise DataError(
            f"labels holds {labels.min()} to {labels.max()}; depth_matrix has rows 0 to "
            f"{len(depth_matrix) - 1}"
        )
    return labels


def _pair_depths(
    depth_matrix: ArrayLike, labels: ArrayLike | None, n: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Depth of every ordered pair of different classes and how many pairs of inputs it stands for.

    Both (C*C,); a class with itself has weight 0.
    """
    depth_matrix = np.asarray(depth_matrix)
    inputs = np.bincount(_rows(depth_matrix, labels, n), minlength=len(depth_matrix))
    weights = np.outer(inputs, inputs).astype(np.float64)
    np.fill_diagonal(weights, 0.0)
    if not weights.any():
        raise DataError(f"all {n} inputs have one label; at least two are needed to form pairs")
    return depth_matrix.ravel(), weights.ravel()


def _share_at_least(
    values: NDArray[np.int64], depths: ArrayLike, weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """(D,) weighted share of ``values`` that are at least each of ``depths``."""
    depths = np.asarray(depths)
    if depths.ndim != 1 or depths.dtype.kind not in "iu":
        raise DataError(f"depths is {depths!r}; a list of integers is needed")
    counts = np.bincount(values, weights)
    at_least = np.append(counts[::-1].cumsum()[::-1], 0.0)  # beyond the largest value: none
    return at_least[np.clip(depths, 0, len(counts))] / at_least[0]
