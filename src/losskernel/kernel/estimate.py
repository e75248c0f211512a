"""One trace's draws and what they say of the kernel: with or without a control variate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from losskernel.kernel.control_variate import (
    control_variate_kernel,
    control_variate_null,
    normalize,
)
from losskernel.kernel.covariance import correlation, covariance
from losskernel.kernel.noise import shifted


@dataclass(frozen=True)
class Draws:
    """Losses of a trace and, where gradients are known, what makes a control variate of them.

    Attributes:
        losses: ``(chain, draw, input)``.
        linear: linear part of every loss, of the same shape, or None.
        known: exact covariance of the linear parts, ``(input, input)``, or None.
    """

    losses: np.ndarray
    linear: np.ndarray | None = None
    known: np.ndarray | None = None

    def at(self, draws) -> Draws:
        """Some draws of every chain, by an index or a mask."""
        if self.linear is None:
            return Draws(self.losses[:, draws])
        return Draws(self.losses[:, draws], self.linear[:, draws], self.known)

    @property
    def kernel(self) -> np.ndarray:
        """K, ``(input, input)``."""
        if self.linear is None:
            return covariance(self.losses)
        return control_variate_kernel(self.losses, self.linear, self.known)

    @property
    def r(self) -> np.ndarray:
        """R, ``(input, input)``."""
        return normalize(self.kernel)

    @property
    def linear_share(self) -> float:
        """Share of the losses' variance that is linear in the displacement of the weights.

        ``1 - sum_i Var(l_i - a_i) / sum_i Var(l_i)``; NaN without a linear part. Negative where the
        linear part follows the losses worse than a constant.
        """
        if self.linear is None:
            return float("nan")
        rest = (self.losses - self.linear).var(axis=(0, 1)).sum()
        return float(1 - rest / self.losses.var(axis=(0, 1), dtype=float).sum())

    def null(self, seed: int) -> np.ndarray:
        """R of inputs that have nothing in common but the sampling noise, ``(input, input)``."""
        if self.linear is None:
            return correlation(shifted(self.losses, seed))
        return control_variate_null(self.losses, self.linear, self.kernel, seed)

    def halves(self, parts: int = 10) -> tuple[Draws, Draws]:
        """Two disjoint sets of draws: alternate ones of ``parts`` equal parts of the run."""
        draws = self.losses.shape[1]
        half = (np.arange(draws) // max(1, draws // parts)) % 2
        return self.at(half == 0), self.at(half == 1)

    def independent_halves(self) -> tuple[Draws, Draws]:
        """Two sets of draws without noise in common, for statistics that such noise would bias.

        Every other chain. Of a single chain :meth:`halves`, which are independent only if it mixes
        within a part.
        """
        if len(self.losses) < 2:
            return self.halves()
        return self._chains(slice(0, None, 2)), self._chains(slice(1, None, 2))

    def _chains(self, chosen: slice) -> Draws:
        linear = None if self.linear is None else self.linear[chosen]
        return Draws(self.losses[chosen], linear, self.known)
