r"""The loss kernel and its normalized form, from losses sampled under the probe distribution.

``K(z, z') = Cov[l(z; w), l(z'; w)]`` over draws ``w`` of the probe distribution, ``K(z, z)`` the
*self-covariance*, and ``R(z, z') = K(z, z') / sqrt(K(z, z) K(z', z'))`` with ``R := 0`` where a
variance is 0 (Adam, Furman and Hoogland 2025, arXiv:2509.26537, Section 3).

Losses come as arrays ``(chain, draw, input)`` (as :attr:`losskernel.LossTrace.losses`) or
``(draw, input)``. They are centered in float64 and multiplied in float32 or float64 on request.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from losskernel.errors import TraceError

CENTERINGS = ("pooled", "chain", "draw")


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
    losses = np.asarray(losses, np.float64)
    if losses.ndim == 2:
        losses = losses[None]
    if losses.ndim != 3:
        raise TraceError(f"losses: shape {losses.shape} is not (chain, draw, input)")
    if not np.isfinite(losses).all():
        raise TraceError("losses: not finite; leave out diverged chains (LossTrace.losses does)")
    chains, draws, inputs = losses.shape
    axes = {"pooled": (0, 1), "chain": (1,), "draw": (0,)}
    if center not in axes:
        raise TraceError(f"center: '{center}' is not one of {', '.join(CENTERINGS)}")
    means = {"pooled": 1, "chain": chains, "draw": draws}[center]
    if chains * draws - means < 1:
        raise TraceError(
            f"losses: {chains} chains x {draws} draws are too few for center='{center}'; "
            "sample at least 2 draws (2 chains for 'draw')"
        )
    result = losses - losses.mean(axis=axes[center], keepdims=True)
    # A loss that never changes leaves rounding of its mean (1e-16 of its size), and no float32 loss
    # that does change has a spread this small: without this, its R would be noise, not 0.
    size = np.abs(losses).max(axis=(0, 1))
    constant = np.abs(result).max(axis=(0, 1)) <= 1e-12 * size
    result[..., constant] = 0
    return result.reshape(-1, inputs), chains * draws - means


def self_covariance(losses: ArrayLike, center: str = "pooled") -> np.ndarray:
    """``K(z, z)``: variance of each input's loss, ``(input,)``, in squared units of the loss."""
    values, freedom = deviations(losses, center)
    return np.einsum("si,si->i", values, values) / freedom


def covariance(losses: ArrayLike, center: str = "pooled") -> np.ndarray:
    """``K``: the loss kernel, ``(input, input)``, symmetric and positive semi-definite.

    Args and errors as for :func:`deviations`. Memory grows with the square of the inputs.
    """
    values, freedom = deviations(losses, center)
    return values.T @ values / freedom


def standardized(losses: ArrayLike, center: str = "pooled") -> np.ndarray:
    """Deviations scaled to unit length, ``(sample, input)``: ``R = X^T X``.

    An input of zero variance has a column of zeros.
    """
    values, _ = deviations(losses, center)
    length = np.sqrt(np.einsum("si,si->i", values, values))
    return np.divide(values, length, out=values, where=length > 0)


def correlation(losses: ArrayLike, center: str = "pooled") -> np.ndarray:
    """``R``: the normalized loss kernel, ``(input, input)``, within [-1, 1].

    1 on the diagonal, 0 in the rows and columns of inputs of zero variance. Unchanged by an affine
    change ``l -> a l + b`` with ``a > 0`` of any input's loss.
    """
    unit = standardized(losses, center)
    result = np.clip(unit.T @ unit, -1, 1)
    np.fill_diagonal(result, (np.einsum("si,si->i", unit, unit) > 0.5).astype(float))
    return result


def nearest_neighbors(
    losses: ArrayLike,
    k: int,
    labels: ArrayLike | None = None,
    center: str = "pooled",
    block: int = 1024,
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` inputs of largest R for each input, exactly, in blocks.

    Args:
        losses: as for :func:`deviations`.
        k: neighbors an input; the input itself is never one.
        labels: if given, ``(input,)``; inputs with an equal label are not neighbors.
        center: as for :func:`deviations`.
        block: inputs handled at once; memory is ``block x input``.

    Returns:
        Indices and values of R, each ``(input, k)``, nearest first.

    Raises:
        TraceError: an input has fewer than ``k`` others to choose from.
    """
    unit = standardized(losses, center).astype(np.float32)
    inputs = unit.shape[1]
    labels = None if labels is None else np.asarray(labels)
    if labels is None:
        fewest = inputs - 1
    else:
        fewest = inputs - int(np.unique(labels, return_counts=True)[1].max())
    if not 1 <= k <= fewest:
        raise TraceError(
            f"neighbors: k = {k} must be from 1 to {fewest}, the fewest eligible inputs"
        )
    indices = np.empty((inputs, k), np.int64)
    values = np.empty((inputs, k), np.float32)
    for start in range(0, inputs, block):
        rows = np.arange(start, min(start + block, inputs))
        similarity = unit[:, rows].T @ unit
        if labels is not None:
            similarity[labels[rows, None] == labels[None]] = -np.inf
        similarity[np.arange(len(rows)), rows] = -np.inf
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(similarity, nearest, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        indices[rows] = np.take_along_axis(nearest, order, axis=1)
        values[rows] = np.clip(np.take_along_axis(found, order, axis=1), -1, 1)
    return indices, values
