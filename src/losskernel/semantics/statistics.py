"""Statistics of a kernel with errors over draws and over classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from losskernel.kernel.jackknife import jackknife_error
from losskernel.kernel.neighbors import neighbors_by_distance
from losskernel.kernel.stored import StoredKernel
from losskernel.semantics.corrected import corrected_correlation
from losskernel.semantics.lift import lift_by_k
from losskernel.semantics.wordnet import Hierarchy

PARTS = 20  # of the classes, each left out once for the errors over classes


@dataclass(frozen=True)
class Statistic:
    """A number of a kernel and some of its inputs.

    Attributes:
        name: in tables.
        of: takes R, its two halves and the inputs that count, ``(kept,)``.
        corrected: whether it is of the halves, and free of noise.
    """

    name: str
    of: Callable[[NDArray, Sequence[NDArray], NDArray], float]
    corrected: bool


def correlation(
    name: str, reference: NDArray, labels: NDArray, magnitude: bool = False
) -> Statistic:
    """Correlation of R, or of its magnitude, with a similarity, as many draws would give it.

    Of pairs of unequal label; :func:`losskernel.semantics.corrected.corrected_correlation`.
    """
    pairs = labels[:, None] != labels

    def of(_: NDArray, halves: Sequence[NDArray], keep: NDArray) -> float:
        at = np.ix_(keep, keep)
        first, second = (np.abs(half[at]) if magnitude else half[at] for half in halves)
        return corrected_correlation(first, second, reference[at], pairs[at])

    return Statistic(name, of, True)


def depth_lift(
    name: str, tree: Hierarchy, labels: NDArray, k: int, depth: int, opposed: bool = False
) -> Statistic:
    """Lift of the k nearest, or most opposed, inputs at one depth; noise pulls it towards 1."""
    depths = tree.lowest_common_hypernym_depth

    def of(r: NDArray, _: Sequence[NDArray], keep: NDArray) -> float:
        part = (-r if opposed else r)[np.ix_(keep, keep)]
        graph, _ = neighbors_by_distance(part.max() - part, k, exclude_labels=labels[keep])
        return float(lift_by_k(graph, depths, [depth], [k], labels[keep])[0, 0])

    return Statistic(name, of, False)


def without_classes(labels: NDArray, seed: int) -> list[NDArray]:
    """Inputs that are left, ``(kept,)``, without one part of the classes in turn.

    Parts are random, `PARTS` or as many as there are classes.
    """
    classes = np.unique(labels)
    order = np.random.default_rng(seed).permutation(classes)
    blocks = np.array_split(order, min(PARTS, len(classes)))
    return [np.flatnonzero(~np.isin(labels, block)) for block in blocks]


def with_errors(
    statistics: Sequence[Statistic],
    r: NDArray,
    kernel: StoredKernel | None,
    labels: NDArray,
    seed: int,
) -> pd.DataFrame:
    """Statistics of a kernel with errors over draws and over classes.

    Columns statistic, value, error_draws (NaN for a kernel that is known exactly), error_classes,
    and parts, the values with a part of the classes left out, for errors of differences.

    Args:
        statistics: which.
        r: R.
        kernel: where halves and groups of draws come from; None for one that is known exactly.
        labels: class of each input, ``(input,)``.
        seed: of the parts.
    """
    everyone, kept = np.arange(len(labels)), without_classes(labels, seed)
    halves = [r, r] if kernel is None else kernel.halves
    rows = []
    for statistic in statistics:
        parts = [statistic.of(r, halves, keep) for keep in kept]
        error = np.nan
        if kernel is not None:
            # Of a part of the draws there are no halves: its noise is that of the whole, so that
            # the correction multiplies the error as it does the value.
            error = kernel.error(lambda part, s=statistic: s.of(part, [part, part], everyone))
            error /= np.sqrt(max(kernel.reliability[1], 1e-6)) if statistic.corrected else 1
        rows.append(
            {
                "statistic": statistic.name,
                "value": statistic.of(r, halves, everyone),
                "error_draws": error,
                "error_classes": jackknife_error(parts),
                "parts": parts,
            }
        )
    return pd.DataFrame(rows)
