r"""Streaming moments of the losses: the kernel of the draws so far, while chains run.

Draws are taken in and forgotten. What stays are their number, the mean of each input's loss, and
the co-moments ``M(z, z') = sum (l(z) - mean(z)) (l(z') - mean(z'))``. Two sets A and B of draws
join by (Chan, Golub and LeVeque 1983; Welford 1962 for one draw)::

    d = mean_B - mean_A
    mean = mean_A + d n_B / n
    M = M_A + M_B + d d^T n_A n_B / n

which, unlike sums of squares, does not cancel where the mean is large and the spread small.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from losskernel.errors import TraceError

_BLOCK = 1024  # rows of the co-moments updated at once


class StreamingMoments:
    """Number, mean and co-moments of the draws seen so far.

    The kernels are those of :mod:`losskernel.kernel.covariance` with ``center="pooled"``, to
    rounding.

    Args:
        inputs: number of inputs.
        dtype: in which co-moments are stored and multiplied. float32 halves the memory and the
            time; the co-moments of ``n`` draws in ``m`` updates then err by at most
            ``(n + 2 m + 4) 2^-24 sqrt(M(z, z) M(z', z'))``. Means are float64 either way.
        pairs: whether to keep the co-moments of pairs, inputs squared in memory; without, only
            :meth:`self_covariance` is known and memory is a few numbers an input.
    """

    def __init__(self, inputs: int, dtype: DTypeLike = np.float64, pairs: bool = True):
        self.draws = 0
        self.mean = np.zeros(inputs)
        self._squares = np.zeros(inputs)
        self._products = np.zeros((inputs, inputs), dtype) if pairs else None
        self._lowest, self._highest = np.full(inputs, np.inf), np.full(inputs, -np.inf)

    def update(self, losses: ArrayLike) -> None:
        """Take in draws: losses ``(sample, input)``, of one or more chains, or ``(input,)``.

        Every call passes through all co-moments once, so several draws at a time are cheaper.

        Raises:
            TraceError: another number of inputs, or losses that are not finite; nothing is taken.
        """
        losses = np.atleast_2d(np.asarray(losses, np.float64))
        if losses.ndim != 2 or losses.shape[1] != len(self.mean):
            raise TraceError(
                f"losses: shape {losses.shape} is not (sample, {len(self.mean)}), the inputs of "
                "these moments"
            )
        if not np.isfinite(losses).all():
            raise TraceError("losses: not finite; leave out diverged chains")
        if len(losses) == 0:
            return
        mean = losses.mean(axis=0)
        deviations = losses - mean
        squares = np.einsum("si,si->i", deviations, deviations)
        shift = self._join(len(losses), mean, squares, losses.min(axis=0), losses.max(axis=0))
        if self._products is not None:
            # The shift of the mean is one more deviation, of a weight of its own.
            rows = np.vstack([deviations, shift]).astype(self._products.dtype)
            for start in range(0, len(mean), _BLOCK):
                block = slice(start, start + _BLOCK)
                self._products[block] += rows[:, block].T @ rows

    def merge(self, other: StreamingMoments) -> None:
        """Take in all draws of ``other``, say of another chain, which stays as it is.

        Raises:
            TraceError: another number of inputs, or only one of the two keeps pairs.
        """
        if len(other.mean) != len(self.mean):
            raise TraceError(f"moments of {len(self.mean)} and {len(other.mean)} inputs differ")
        if (self._products is None) != (other._products is None):
            raise TraceError("moments with pairs and without do not merge; keep pairs in both")
        if other.draws == 0:
            return
        shift = self._join(other.draws, other.mean, other._squares, other._lowest, other._highest)
        if self._products is not None:
            for start in range(0, len(shift), _BLOCK):
                block = slice(start, start + _BLOCK)
                self._products[block] += other._products[block]
                self._products[block] += np.outer(shift[block], shift)

    def _join(self, draws, mean, squares, lowest, highest) -> np.ndarray:
        """Join all but the co-moments of pairs; returns ``d sqrt(n_A n_B / n)``, ``(input,)``."""
        total = self.draws + draws
        shift = mean - self.mean
        scaled = shift * np.sqrt(self.draws * draws / total)
        self.mean = self.mean + shift * (draws / total)
        self._squares = self._squares + squares + scaled**2
        self._lowest = np.minimum(self._lowest, lowest)
        self._highest = np.maximum(self._highest, highest)
        self.draws = total
        return scaled

    def self_covariance(self) -> np.ndarray:
        """``K(z, z)``, ``(input,)``; 0 where no loss ever changed.

        Raises:
            TraceError: fewer than two draws so far; so for all kernels.
        """
        if self.draws < 2:
            raise TraceError(f"moments: {self.draws} draws are too few for a kernel; wait for 2")
        return np.where(self._varies(), self._squares, 0) / (self.draws - 1)

    def covariance(self) -> np.ndarray:
        """``K``, ``(input, input)``, a new array of the dtype of the co-moments.

        Raises:
            TraceError: pairs are not kept.
        """
        variance = self.self_covariance()
        if self._products is None:
            raise TraceError("moments: kept without pairs; make them with pairs=True for a kernel")
        result = self._products / self._products.dtype.type(self.draws - 1)
        constant = ~self._varies()
        result[constant] = 0
        result[:, constant] = 0
        np.fill_diagonal(result, variance)
        return result

    def correlation(self) -> np.ndarray:
        """``R``, ``(input, input)``, a new array; errors as for :meth:`covariance`."""
        result = self.covariance()
        scale = np.sqrt(self.self_covariance())
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
        result *= inverse.astype(result.dtype)
        result *= inverse.astype(result.dtype)[:, None]
        np.clip(result, -1, 1, out=result)
        np.fill_diagonal(result, scale > 0)
        return result

    def _varies(self) -> np.ndarray:
        """Inputs whose loss changed by more than rounding; :mod:`losskernel.kernel.covariance`."""
        size = np.maximum(np.abs(self._lowest), np.abs(self._highest))
        return self._highest - self._lowest > 1e-12 * size
