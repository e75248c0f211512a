r"""The loss kernel and its normalized form, from losses sampled under the probe distribution.

``K(z, z') = Cov[l(z; w), l(z'; w)]`` over draws ``w`` of the probe distribution, ``K(z, z)`` the
*self-covariance*, and ``R(z, z') = K(z, z') / sqrt(K(z, z) K(z', z'))`` with ``R := 0`` where a
variance is 0 (Adam, Furman and Hoogland 2025, arXiv:2509.26537, Section 3).

Losses come as arrays ``(chain, draw, input)`` (as :attr:`losskernel.LossTrace.losses`) or
``(draw, input)``. They are centered and scaled in float64, a block of inputs at a time: a float32
mean of losses with a large mean and a small spread would leave no digits of the spread. What is
then of order one can be stored and multiplied in float32, as the neighbor search does. Only
:func:`covariance` and :func:`correlation` hold a matrix of inputs squared.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from losskernel.errors import TraceError

CENTERINGS = ("pooled", "chain", "draw")

_AT_ONCE = 2**22  # numbers of a float64 working copy, 32 MiB


def deviations(losses: ArrayLike, center: str = "pooled") -> tuple[np.ndarray, int]:
    """Losses minus their mean, and the degrees of freedom that are left.

    Args:
        losses: ``(chain, draw, input)`` or ``(draw, input)``, finite.
        center: what the mean runs over. ``"pooled"``: all draws of all chains, the estimate of the
            definition. ``"chain"``: each chain's own draws; insensitive to chains that settle in
            different places. ``"draw"``: the chains at equal draw number; insensitive to a drift
            that all chains share (burn-in), needs many chains.

    Returns:
        Deviations ``(sample, input)`` in float64, samples chain by chain, and the divisor of the
        unbiased covariance: samples minus the number of means subtracted.

    Raises:
        TraceError: losses are not finite, or fewer than two samples a mean.
    """
    losses, freedom = _checked(losses, center)
    chains, draws, inputs = losses.shape
    result = np.empty((chains * draws, inputs))
    for rows, values in _deviation_blocks(losses, center):
        result[:, rows] = values
    return result, freedom


def _checked(losses: ArrayLike, center: str) -> tuple[np.ndarray, int]:
    """Losses as ``(chain, draw, input)``, not copied, and the degrees of freedom."""
    losses = np.asarray(losses)
    if losses.ndim == 2:
        losses = losses[None]
    if losses.ndim != 3:
        raise TraceError(f"losses: shape {losses.shape} is not (chain, draw, input)")
    if center not in CENTERINGS:
        raise TraceError(f"center: '{center}' is not one of {', '.join(CENTERINGS)}")
    chains, draws, _ = losses.shape
    means = {"pooled": 1, "chain": chains, "draw": draws}[center]
    if chains * draws - means < 1:
        raise TraceError(
            f"losses: {chains} chains x {draws} draws are too few for center='{center}'; "
            "sample at least 2 draws (2 chains for 'draw')"
        )
    return losses, chains * draws - means


def _deviation_blocks(
    losses: np.ndarray, center: str, block: int | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    axis = {"pooled": (0, 1), "chain": (1,), "draw": (0,)}[center]
    chains, draws, inputs = losses.shape
    for rows in slices(inputs, block or max(64, _AT_ONCE // (chains * draws))):
        values = losses[..., rows].astype(np.float64)
        size = np.abs(values).max(axis=(0, 1))
        if not np.isfinite(size).all():
            raise TraceError(
                "losses: not finite; leave out diverged chains (LossTrace.losses does)"
            )
        values -= values.mean(axis=axis, keepdims=True)
        # A loss that never changes leaves rounding of its mean (1e-16 of its size), and no float32
        # loss that does change has a spread this small: without this, its R would be noise, not 0.
        values[..., np.abs(values).max(axis=(0, 1)) <= 1e-12 * size] = 0
        yield rows, values.reshape(chains * draws, -1)


def slices(count: int, size: int) -> Iterator[slice]:
    """``count`` inputs, ``size`` at a time."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def self_covariance(losses: ArrayLike, center: str = "pooled") -> np.ndarray:
    """``K(z, z)``: variance of each input's loss, ``(input,)``, in squared units of the loss."""
    losses, freedom = _checked(losses, center)
    squares = [np.einsum("si,si->i", d, d) for _, d in _deviation_blocks(losses, center)]
    return np.concatenate(squares) / freedom


def covariance(losses: ArrayLike, center: str = "pooled") -> np.ndarray:
    """``K``: the loss kernel, ``(input, input)``, symmetric and positive semi-definite.

    Args and errors as for :func:`deviations`. Memory grows with the square of the inputs.
    """
    values, freedom = deviations(losses, center)
    return values.T @ values / freedom


def standardized(
    losses: ArrayLike, center: str = "pooled", dtype: DTypeLike = np.float64
) -> np.ndarray:
    """Deviations scaled to unit length, ``(sample, input)``: ``R = X^T X``.

    An input of zero variance has a column of zeros. In float32 an entry of ``X^T X`` errs by at
    most ``(samples + 3) 2^-24`` (see
    :func:`losskernel.kernel.neighbors.nearest_neighbors`); the scaling is done in float64.
    """
    losses, _ = _checked(losses, center)
    chains, draws, inputs = losses.shape
    result = np.empty((chains * draws, inputs), dtype)
    for rows, values in standardized_blocks(losses, center):
        result[:, rows] = values
    return result


def standardized_blocks(
    losses: ArrayLike, center: str = "pooled", block: int | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """:func:`standardized` of ``block`` inputs at a time, by default as many as take 32 MiB.

    Yields the slice of inputs and their columns, ``(sample, block)``.
    """
    for rows, values in _deviation_blocks(_checked(losses, center)[0], center, block):
        length = np.sqrt(np.einsum("si,si->i", values, values))
        yield rows, np.divide(values, length, out=values, where=length > 0)


def correlation(losses: ArrayLike, center: str = "pooled") -> np.ndarray:
    """``R``: the normalized loss kernel, ``(input, input)``, within [-1, 1].

    1 on the diagonal, 0 in the rows and columns of inputs of zero variance. Unchanged by an affine
    change ``l -> a l + b`` with ``a > 0`` of any input's loss.
    """
    unit = standardized(losses, center)
    return next(_correlation_blocks(unit, unit.shape[1]))[1]


def correlation_blocks(
    losses: ArrayLike, center: str = "pooled", block: int = 1024
) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of :func:`correlation`, ``block`` at a time: a slice of inputs and ``R[slice]``.

    Memory: the losses standardized in float64, and ``block x input``.
    """
    return _correlation_blocks(standardized(losses, center), block)


def _correlation_blocks(unit: np.ndarray, block: int) -> Iterator[tuple[slice, np.ndarray]]:
    varies = np.einsum("si,si->i", unit, unit) > 0.5
    for rows in slices(unit.shape[1], block):
        result = unit[:, rows].T @ unit
        np.clip(result, -1, 1, out=result)
        result[np.arange(len(result)), np.arange(rows.start, rows.stop)] = varies[rows]
        yield rows, result


def half_kernels(losses: np.ndarray, center: str = "pooled") -> tuple[np.ndarray, np.ndarray]:
    """R from alternate tenths of the draws, twice ``(input, input)``, with independent noise.

    Alternate tenths, not the first and the second half: a drift of the chains would set those
    apart. Draws that are autocorrelated over more than a tenth of the run are not independent.

    Args:
        losses: ``(chain, draw, input)``, at least 4 draws.
        center: as for :func:`deviations`.

    Raises:
        TraceError: another shape, or too few draws.
    """
    losses = np.asarray(losses)
    if losses.ndim != 3 or losses.shape[1] < 4:
        raise TraceError(f"halves: losses of shape {losses.shape} are not (chain, 4 draws, input)")
    draws = losses.shape[1]
    half = (np.arange(draws) // max(1, draws // 10)) % 2
    even, odd = (correlation(losses[:, half == which], center) for which in (0, 1))
    return even, odd
