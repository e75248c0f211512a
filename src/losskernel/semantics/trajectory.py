"""How a kernel's agreement with the hierarchy grows along training, and in which order of depths.

Pairs of inputs of equal label are left out throughout: they share every hypernym by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from losskernel.kernel.neighbors import kernel_distances, neighbors_by_distance
from losskernel.semantics.lift import lift

STATISTICS = ("lift", "auc", "conditional_auc", "spearman")
CHANCE = {"lift": 1.0, "auc": 0.5, "conditional_auc": 0.5, "spearman": 0.0}

_AMPLITUDES = 21  # of a growing kernel, between which its statistics are interpolated
_MOST_BINS = 2**14  # of similarity; an AUC of more distinct values errs by less than their inverse


@dataclass(frozen=True)
class Ranking:
    """Neighbors and ranks of a similarity, from which statistics on any hierarchy are read.

    Attributes:
        neighbors: ``(input, k)`` most similar inputs of another label.
        bins: ``(pair,)`` rank of each pair's similarity among all pairs of unequal label, in up to
            16,384 bins of equal size; equal similarities have equal bins.
        first, second: ``(pair,)`` the inputs of each pair.
    """

    neighbors: NDArray[np.int64]
    bins: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]

    @classmethod
    def of(cls, similarity: ArrayLike, labels: ArrayLike, k: int) -> Ranking:
        """Rank a similarity such as R.

        Args:
            similarity: ``(input, input)``, symmetric, within [-1, 1].
            labels: ``(input,)``.
            k: neighbors an input.
        """
        from scipy.stats import rankdata  # here, as it is slow to import

        similarity, labels = np.asarray(similarity), np.asarray(labels)
        neighbors, _ = neighbors_by_distance(kernel_distances(similarity), k, exclude_labels=labels)
        first, second = np.triu_indices(len(labels), 1)
        unequal = labels[first] != labels[second]
        first, second = first[unequal], second[unequal]
        bins = rankdata(similarity[first, second], method="dense").astype(np.int64) - 1
        if bins.max() >= _MOST_BINS:
            bins = bins * _MOST_BINS // (bins.max() + 1)
        return cls(neighbors, bins, first, second)

    def profile(
        self, depth_matrix: ArrayLike, labels: ArrayLike, depths: Sequence[int]
    ) -> dict[str, NDArray[np.float64]]:
        """Agreement with a hierarchy at each of several depths, ``(depth,)`` by statistic.

        - ``lift``: of the nearest neighbors, see :func:`losskernel.semantics.lift.lift`.
        - ``auc``: ROC-AUC of the similarity for "the pair shares a hypernym of depth d or deeper".
        - ``conditional_auc``: the same among the pairs that share one of depth d - 1 or deeper.
          Structure of coarser depths raises lift and AUC of all finer ones; it does not raise this.
        - ``spearman``: rank correlation of the similarity with the depth of the lowest common
          hypernym in the hierarchy cut off below d, ``min(depth(lch), d)``.

        NaN where a depth divides no pairs.

        Args:
            depth_matrix: ``(class, class)`` depth of the lowest common hypernym.
            labels: ``(input,)`` classes; permuted, they make a null.
            depths: in steps from the root, 1 or more.
        """
        depth_matrix, labels = np.asarray(depth_matrix), np.asarray(labels)
        size, deepest = int(self.bins.max()) + 1, int(max(depth_matrix.max(), *depths))
        # Where the histogram's row of each pair of classes begins; then of each pair of inputs.
        begins = depth_matrix.astype(np.int64) * size
        at = begins.ravel().take(labels[self.first] * len(depth_matrix) + labels[self.second])
        at += self.bins
        # How many pairs of each depth have each rank: all that follows is read from it.
        pairs = np.bincount(at, minlength=(deepest + 1) * size)
        pairs = pairs.reshape(deepest + 1, size).astype(float)
        return {
            "lift": lift(self.neighbors, depth_matrix, np.asarray(depths), labels),
            **_rank_statistics(pairs, depths),
        }


def _rank_statistics(pairs: NDArray, depths: Sequence[int]) -> dict[str, NDArray]:
    """Of counts ``(depth of the pair, rank)``: both AUC and the rank correlation, at each depth."""
    count = pairs.sum(axis=1)
    below = pairs.cumsum(axis=1) - pairs / 2  # ties count half
    # How often a pair of one depth (row) ranks above one of another (column).
    above = pairs @ below.T
    rank = _centered_ranks(pairs.sum(axis=0))
    rank_sums, rank_spread = pairs @ rank, pairs.sum(axis=0) @ rank**2
    found: dict[str, list[float]] = {"auc": [], "conditional_auc": [], "spearman": []}
    for d in depths:
        inside = count[d:].sum()
        found["auc"].append(_share(above[d:, :d].sum(), inside * count[:d].sum()))
        found["conditional_auc"].append(_share(above[d:, d - 1].sum(), inside * count[d - 1]))
        depth_rank = _centered_ranks(np.append(count[:d], inside))
        product = depth_rank @ np.append(rank_sums[:d], rank_sums[d:].sum())
        spread = np.append(count[:d], inside) @ depth_rank**2 * rank_spread
        found["spearman"].append(_share(product, np.sqrt(spread)))
    return {name: np.array(values) for name, values in found.items()}


def _centered_ranks(count: NDArray) -> NDArray:
    """Mean rank of each of several groups of ties, less the mean of all."""
    return np.cumsum(count) - (count + count.sum()) / 2


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else np.nan


def growth(
    similarity: NDArray,
    labels: NDArray,
    k: int,
    depth_matrix: NDArray,
    depths: Sequence[int],
    seen: dict[str, NDArray],
    draws: int,
    rng: np.random.Generator,
) -> dict[str, NDArray[np.float64]]:
    """Curves of one fixed kernel whose amplitude alone grows: the null for an order of depths.

    Lifts of nested depths depend on each other, and deeper ones are of fewer pairs, so that depths
    may cross in an order though nothing but an amplitude changes. The kernel is
    ``a R + (1 - a) P R P^T``, R the similarity and P a random permutation of all inputs, which has
    R's own spread and knows of no label. At every checkpoint a is such that the statistic, averaged
    over depths, is the one that was seen, or 1 where that is above R's own.

    Args:
        similarity: R, ``(input, input)``.
        labels: ``(input,)`` rows of the depth matrix.
        k: neighbors an input.
        depth_matrix, depths: as for :meth:`Ranking.profile`.
        seen: by statistic, ``(step, depth)``.
        draws: permutations.
        rng: of them.

    Returns:
        By statistic, ``(step, draw, depth)``.
    """
    shares = np.linspace(0, 1, _AMPLITUDES)
    found: dict[str, list[NDArray]] = {name: [] for name in seen}
    for _ in range(draws):
        order = rng.permutation(len(labels))
        rest = similarity[np.ix_(order, order)]
        profiles = [
            Ranking.of(a * similarity + (1 - a) * rest, labels, k).profile(
                depth_matrix, labels, depths
            )
            for a in shares
        ]
        for name, values in seen.items():
            grid = np.array([profile[name] for profile in profiles])
            # Noise may lower a mean on the way up; interpolation needs it to rise.
            rising = np.maximum.accumulate(grid.mean(axis=1))
            amplitude = np.interp(np.mean(values, axis=1), rising, shares)
            found[name].append(np.stack([np.interp(amplitude, shares, of) for of in grid.T], 1))
    return {name: np.stack(curves, axis=1) for name, curves in found.items()}


def crossing_step(
    steps: ArrayLike, values: ArrayLike, baseline: float, share: float = 0.5, of: str = "final"
) -> float:
    """The training step at which a growing quantity first reaches a share of its final value.

    The level is ``baseline + share (values[-1] - baseline)``, or with the largest value in place of
    the last. Between two checkpoints the quantity is taken to be linear in ``log(1 + step)``; step
    0 is initialization.

    Args:
        steps: ``(checkpoint,)``, rising from 0 or more.
        values: ``(checkpoint,)``.
        baseline: value that counts as none.
        share: in (0, 1).
        of: ``"final"`` or ``"maximum"`` value.

    Returns:
        The step: ``steps[0]`` if it is reached there; NaN if that value is not above the baseline,
        or a value is NaN.
    """
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    top = values.max() if of == "maximum" else values[-1]
    if not np.isfinite(values).all() or top <= baseline:
        return float("nan")
    level = baseline + share * (top - baseline)
    at = int(np.argmax(values >= level))
    if at == 0:
        return float(steps[0])
    low, high = values[at - 1], values[at]
    start, stop = np.log1p(steps[at - 1 : at + 1])
    return float(np.expm1(start + (level - low) / (high - low) * (stop - start)))
