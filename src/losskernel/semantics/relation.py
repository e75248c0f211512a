"""A kernel against a relation between its inputs: same color, a common hypernym of some depth.

A relation is a symmetric boolean matrix ``(input, input)``. Which pairs of inputs count is up
to the caller: images of one class share every hypernym by construction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from losskernel.errors import DataError


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
