"""Which inputs a kernel puts next to each other, and against each other.

A wrong label is memorized *against* the inputs that look alike: weights that raise the loss of
those lower its own. So the inputs of most negative R, not the nearest ones, carry its right label.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from losskernel.errors import DataError, TraceError
from losskernel.kernel.covariance import slices, standardized


def nearest_neighbors(
    losses: ArrayLike,
    k: int,
    labels: ArrayLike | None = None,
    center: str = "pooled",
    block: int = 2048,
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` inputs of largest R for each input, exactly, in blocks.

    R is symmetric, so each square of ``block x block`` of it is computed once, in float32, and
    serves both the inputs of its rows and those of its columns.

    Args:
        losses: as for :func:`losskernel.kernel.covariance.deviations`.
        k: neighbors an input; the input itself is never one.
        labels: if given, ``(input,)``; inputs with an equal label are not neighbors.
        center: as for :func:`losskernel.kernel.covariance.deviations`.
        block: inputs handled at once; memory is the standardized losses in float32 and some
            ``block x block``.

    Returns:
        Indices and values of R, each ``(input, k)``, nearest first. A value errs by at most
        ``(samples + 3) u``, ``u = 2^-24``, from rounding: ``samples u`` in a product of vectors of
        unit length (Higham 2002, section 3.1), ``u`` in storing each of them, ``u`` for the terms
        of second order.

    Raises:
        TraceError: an input has fewer than ``k`` others to choose from.
    """
    unit = standardized(losses, center, np.float32)
    inputs = unit.shape[1]
    fewest, group = inputs - 1, None
    if labels is not None:
        _, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        fewest = inputs - int(sizes.max())
    if not 1 <= k <= fewest:
        raise TraceError(
            f"neighbors: k = {k} must be from 1 to {fewest}, the fewest eligible inputs"
        )
    indices = np.full((inputs, k), -1)
    values = np.full((inputs, k), -np.inf, np.float32)
    for rows in slices(inputs, block):
        for columns in slices(rows.stop, block):
            similarity = unit[:, rows].T @ unit[:, columns]
            if group is not None:
                similarity[group[rows, None] == group[columns]] = -np.inf
            if rows == columns:
                np.fill_diagonal(similarity, -np.inf)
            else:
                _keep_largest(similarity.T, rows.start, values[columns], indices[columns])
            _keep_largest(similarity, columns.start, values[rows], indices[rows])
    order = np.argsort(-values, axis=1, kind="stable")
    values = np.clip(np.take_along_axis(values, order, axis=1), -1, 1)
    return np.take_along_axis(indices, order, axis=1), values


def _keep_largest(tile: np.ndarray, start: int, values: np.ndarray, indices: np.ndarray) -> None:
    """Update in place the largest values of each row, and their columns, from further columns.

    Args:
        tile: ``(row, column)`` new values.
        start: number of the tile's first column.
        values, indices: ``(row, k)``, the largest so far in no order.
    """
    columns, k = _candidates(tile, values.shape[1]), values.shape[1]
    found = np.concatenate([values, np.take_along_axis(tile, columns, axis=1)], axis=1)
    where = np.concatenate([indices, columns + start], axis=1)
    largest = np.argpartition(found, found.shape[1] - k, axis=1)[:, -k:]
    values[:] = np.take_along_axis(found, largest, axis=1)
    indices[:] = np.take_along_axis(where, largest, axis=1)


def _candidates(tile: np.ndarray, k: int) -> np.ndarray:
    """Some columns of each row, ``(row, some)``, the ``k`` largest values among them.

    The columns are dealt into groups. The k largest values lie in the k groups with the largest
    maxima: a value outside of them is no larger than k maxima. So one pass over the tile, at the
    speed of memory, leaves little to partition.
    """
    rows, columns = tile.shape
    size = max(1, math.isqrt(columns // k))  # of a group: as many groups as candidates in k of them
    groups = columns // size
    if groups <= k:
        return np.broadcast_to(np.arange(columns), (rows, columns))
    grouped = tile[:, : size * groups].reshape(rows, size, groups)
    largest = np.argpartition(grouped.max(axis=1), groups - k, axis=1)[:, -k:]
    members = largest[:, None] + groups * np.arange(size)[:, None]
    over = np.broadcast_to(np.arange(size * groups, columns), (rows, columns - size * groups))
    return np.concatenate([members.reshape(rows, -1), over], axis=1)


def extremes(
    blocks: Iterable[tuple[slice, np.ndarray]], count: int, labels: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The largest and the smallest R of each input, without inputs of its own label.

    Args:
        blocks: rows of R, as :func:`losskernel.kernel.covariance.correlation_blocks` yields them.
        count: how many of each kind.
        labels: ``(input,)``; distinct ones leave out only the input itself.

    Returns:
        Indices and values of the largest, the largest first; indices and values of the smallest,
        the smallest first; each ``(input, count)``.

    Raises:
        DataError: an input has fewer than ``count`` others of another label.
    """
    _, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    fewest = len(group) - int(sizes.max())
    if not 1 <= count <= fewest:
        raise DataError(
            f"neighbors: k = {count} must be from 1 to {fewest}, the fewest inputs of another "
            "label; ask for fewer, or keep pairs of equal label"
        )
    found: list[list[np.ndarray]] = [[], [], [], []]
    for rows, r in blocks:
        same = group[rows, None] == group[None]
        for kind, sign in enumerate((-1.0, 1.0)):
            key = np.where(same, np.inf, sign * r)
            some = np.argpartition(key, count - 1, axis=1)[:, :count]
            values = np.take_along_axis(key, some, axis=1)
            order = np.argsort(values, axis=1, kind="stable")
            found[2 * kind].append(np.take_along_axis(some, order, axis=1))
            found[2 * kind + 1].append(sign * np.take_along_axis(values, order, axis=1))
    nearest, nearest_r, opposed, opposed_r = (np.concatenate(part) for part in found)
    return nearest, nearest_r, opposed, opposed_r


def vote(
    indices: ArrayLike, weights: ArrayLike, labels: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """The label with the largest weight among some inputs, for each input.

    Args:
        indices: which inputs vote, ``(input, k)``.
        weights: of their votes, ``(input, k)``; those of 0 or less do not count.
        labels: of all inputs, ``(input,)``.

    Returns:
        The chosen labels ``(input,)``, and their share of the weight in [0, 1], 0 where nobody
        votes (the label is then the first of all). Of labels with equal weight the first is chosen.
    """
    names, group = np.unique(labels, return_inverse=True)
    weights = np.maximum(np.asarray(weights, float), 0)
    total = np.zeros((len(weights), len(names)))
    voters = np.broadcast_to(np.arange(len(weights))[:, None], weights.shape)
    np.add.at(total, (voters, group[np.asarray(indices)]), weights)
    chosen, all_votes = total.argmax(axis=1), total.sum(axis=1)
    share = np.divide(total.max(axis=1), all_votes, out=np.zeros(len(total)), where=all_votes > 0)
    return names[chosen], share


def kernel_distances(correlation: ArrayLike) -> NDArray[np.float64]:
    """Distances ``d = sqrt(2 (1 - R))`` of the normalized kernel.

    With loss traces centered and scaled to unit length, ``x_i``, ``R_ij = x_i . x_j`` and
    ``d_ij = |x_i - x_j|``: the Euclidean distance of the standardized traces. It is 0 for inputs
    whose losses rise and fall together, sqrt(2) for uncorrelated ones, 2 for opposite ones. An
    input of zero variance, whose R is 0 by definition, is at sqrt(2) from all others.

    Args:
        correlation: ``R``, ``(input, input)``, within [-1, 1] up to rounding; its diagonal is not
            used.

    Returns:
        ``(input, input)``, zero on the diagonal.

    Raises:
        DataError: not a square matrix of finite values in [-1, 1].
    """
    correlation = _square(correlation, "correlation")
    lowest, highest = correlation.min(), correlation.max()
    if lowest < -1 - 1e-5 or highest > 1 + 1e-5:
        raise DataError(
            f"correlation: values from {lowest:g} to {highest:g} are not within [-1, 1]; "
            "give the normalized kernel R, not the covariance K"
        )
    distances = 1 - correlation  # then in place: 10,000 inputs make 800 MB
    np.clip(distances, 0, 2, out=distances)
    distances *= 2
    np.sqrt(distances, out=distances)
    np.fill_diagonal(distances, 0)
    return distances


def neighbors_by_distance(
    distances: ArrayLike, k: int, exclude_labels: ArrayLike | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The exact ``k`` nearest inputs of each input, the input itself excluded.

    With ``exclude_labels``, inputs of equal label are removed before neighbors are chosen, so that
    each input still has ``k`` neighbors: removed afterwards, an input whose nearest are all of its
    own label would be left with none.

    Args:
        distances: ``(input, input)``, finite. Row ``i`` holds the distances from input ``i``.
        k: neighbors an input.
        exclude_labels: ``(input,)``; inputs with an equal label are not neighbors.

    Returns:
        Indices and distances, each ``(input, k)``, nearest first, the smaller index first among
        equals.

    Raises:
        DataError: ``distances`` is not square and finite, labels do not fit, or an input has fewer
            than ``k`` others to choose from.
    """
    distances = _square(distances, "distances")
    n = len(distances)
    if exclude_labels is None:
        labels = np.arange(n)
    else:
        labels = np.asarray(exclude_labels)
        if labels.shape != (n,):
            raise DataError(
                f"exclude_labels: shape {labels.shape} does not fit {n} inputs; give one label each"
            )
    values, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    fewest = n - sizes.max()
    if not 1 <= k <= fewest:
        of = "" if exclude_labels is None else f" (those of label {values[sizes.argmax()]!r})"
        raise DataError(
            f"neighbors: k = {k} must be from 1 to {fewest}, the fewest eligible inputs{of}"
        )
    return nearest_of_rows(distances, group, group, k)


def nearest_of_rows(
    distances: NDArray, own: NDArray, groups: NDArray, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The same of some rows of the distances alone.

    Args:
        distances: ``(row, input)``.
        own: group of each row; inputs of its group are not its neighbors.
        groups: of all inputs, of which ``k`` or more are in other groups.
        k: neighbors a row.
    """
    indices = np.empty((len(distances), k), np.int64)
    nearest = np.empty((len(distances), k))
    for i, row in enumerate(distances):
        eligible = np.flatnonzero(groups != own[i])
        row = row[eligible]
        # Sorting only what is as near as the k-th keeps ties in the order of their index.
        near = np.flatnonzero(row <= np.partition(row, k - 1)[k - 1])
        near = near[np.argsort(row[near], kind="stable")[:k]]
        indices[i], nearest[i] = eligible[near], row[near]
    return indices, nearest


def _square(matrix: ArrayLike, name: str) -> NDArray[np.float64]:
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] < 2:
        raise DataError(f"{name}: shape {matrix.shape} is not (input, input) with 2 inputs or more")
    if not np.isfinite(matrix).all():
        raise DataError(f"{name}: not finite; drop the inputs whose losses are not")
    return matrix
