"""A kernel against a relation between its inputs: same color, a common hypernym of some depth.

A relation is a symmetric boolean matrix ``(input, input)``. Pairs are ``i != j``, with ``labels``
those of unequal label: images of one class share every hypernym by construction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from losskernel.errors import DataError


def pairs(labels: ArrayLike) -> NDArray[np.bool_]:
    """Pairs of unequal label, ``(input, input)``."""
    labels = np.asarray(labels)
    return labels[:, None] != labels


@dataclass(frozen=True)
class Relation:
    """Which of the pairs are related.

    Attributes:
        related: ``(input, input)`` boolean, symmetric; what it says of non-pairs is not used.
        pairs: ``(input, input)`` boolean, symmetric, which ordered pairs of inputs count.

    Raises:
        DataError: on construction, if shapes differ or either all pairs are related or none.
    """

    related: NDArray[np.bool_]
    pairs: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.related.shape != self.pairs.shape or self.related.ndim != 2:
            raise DataError(
                f"relation: shapes {self.related.shape} and {self.pairs.shape} are not one square"
            )
        if not 0 < self.chance < 1:
            raise DataError(
                f"relation: a share of {self.chance:g} of the pairs is related, which leaves "
                "nothing to tell apart; choose another depth or quantile, or more inputs"
            )

    @property
    def chance(self) -> float:
        """Share of related pairs among all pairs."""
        return float(self.related[self.pairs].mean())

    def lift(self, neighbors: ArrayLike) -> float:
        """Share of related pairs among neighbors, over their share among all pairs; 1 is chance.

        Args:
            neighbors: ``(input, k)`` indices of the nearest inputs of each, none of its own label.
        """
        neighbors = np.asarray(neighbors)
        return float(np.take_along_axis(self.related, neighbors, axis=1).mean() / self.chance)

    def contrast(self, similarity: ArrayLike) -> float:
        """Mean similarity of related pairs less that of all pairs, in units of the similarity.

        Linear in the similarity: unlike a lift of nearest neighbors, noise of mean zero in an
        estimated kernel does not move its expectation, so that kernels of unlike noise floors can
        be compared.
        """
        similarity = np.asarray(similarity)
        chosen = self.related & self.pairs
        return float(similarity[chosen].mean() - similarity[self.pairs].mean())

    def squared_lift(self, first: ArrayLike, second: ArrayLike) -> float:
        """Mean squared R of related pairs over that of all pairs, without noise; 1 is chance.

        ``<R1 R2>_related / <R1 R2>_all`` with two estimates of one R. Where their noise is
        independent, and of mean zero, it leaves both means unchanged in expectation: like
        :meth:`contrast`, and unlike :meth:`lift`, this compares kernels of unlike noise floors. As
        the lift, and unlike the contrast, it does not depend on the scale of R and follows the few
        strongly correlated pairs.

        Args:
            first, second: estimates from disjoint draws, ``(input, input)``; of a kernel that is
                known exactly, twice the same.

        Returns:
            NaN where the two do not agree at all: R does not stand above its noise.
        """
        product = np.asarray(first) * np.asarray(second)
        everything = product[self.pairs].mean()
        if everything <= 0:
            return float("nan")
        return float(product[self.related & self.pairs].mean() / everything)

    def permuted(self, order: ArrayLike) -> Relation:
        """The relation with its inputs renamed: a null, as nothing else ties it to the kernel."""
        return Relation(self.related[np.ix_(order, order)], self.pairs)


def renamings(labels: ArrayLike, permutations: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Random orders of the inputs that keep inputs of equal label together where they can.

    With one input a label, all permutations are equally likely. With several, whole labels trade
    places, the inputs of the shorter one repeated: what is related is then still never of one label
    with itself.

    Returns:
        ``(permutations, input)`` indices.
    """
    _, inverse = np.unique(labels, return_inverse=True)
    members = [np.flatnonzero(inverse == label) for label in range(inverse.max() + 1)]
    place = np.empty(len(inverse), np.int64)
    for rows in members:
        place[rows] = np.arange(len(rows))
    orders = np.empty((permutations, len(inverse)), np.int64)
    for row in orders:
        other = rng.permutation(len(members))[inverse]
        row[:] = [members[o][p % len(members[o])] for o, p in zip(other, place, strict=True)]
    return orders
