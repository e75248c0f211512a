"""How alike two kernels are, or all inputs of one: centered kernel alignment, the spread of R."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from losskernel.errors import TraceError
from losskernel.kernel.covariance import correlation_blocks, standardized_blocks

_MOST_SAMPLES = 8192  # up to which a matrix of samples squared is formed, 0.5 GB
_BLOCK = 256  # inputs at once beside it


def cka(kernel: ArrayLike, other: ArrayLike) -> float:
    """Centered kernel alignment of two kernel matrices on the same inputs, in [0, 1] if both PSD.

    ``<HKH, HLH> / (|HKH| |HLH|)`` with Frobenius products and ``H = I - 11^T/n`` (Cortes et al.
    2012; Kornblith et al. 2019, arXiv:1905.00414).

    Raises:
        TraceError: shapes differ, or a centered kernel is zero.
    """
    kernel, other = np.asarray(kernel, float), np.asarray(other, float)
    if kernel.shape != other.shape or kernel.ndim != 2:
        raise TraceError(f"cka: kernels of shapes {kernel.shape} and {other.shape} differ")

    norms = []
    for matrix in (kernel, other):
        norms.append(np.linalg.norm(_centered(matrix)))
        # Centering a constant leaves rounding, not 0.
        if norms[-1] <= 1e-12 * np.linalg.norm(matrix):
            raise TraceError("cka: a kernel is constant, its alignment is undefined")
    return float((_centered(kernel) * _centered(other)).sum() / (norms[0] * norms[1]))


def _centered(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    return kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()


def corrected_cka(first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike]) -> float:
    """CKA of two estimated kernels as it would be without sampling noise, of unequal pairs alone.

    ``(<A1, B2> + <A2, B1>) / 2 / sqrt(<A1, A2> <B1, B2>)``, with each kernel known by two
    independent estimates, their diagonals set to 0 and centered as in :func:`cka`. Independent
    noise of mean zero leaves each product unchanged in expectation, while it adds to the norms in
    :func:`cka`, which falls with the noise floor (Spearman's 1904 correction for attenuation). A
    half is not multiplied with its namesake: both may be sampled with the same random numbers, as
    along training, and their noise is then alike. The diagonal of R is 1 in every kernel and would
    outweigh the rest.

    Args:
        first, second: two estimates of each kernel, from disjoint draws, all ``(input, input)``; of
            a kernel that is known exactly, twice the same.

    Returns:
        About 1 for equal kernels, 0 for unrelated ones; noise may push it beyond both ends. NaN
        where the halves of a kernel do not agree at all: it does not stand above its noise.

    Raises:
        TraceError: shapes differ.
    """
    halves = [np.array(matrix, float) for matrix in (*first, *second)]
    if len({matrix.shape for matrix in halves}) > 1:
        raise TraceError(
            f"cka: kernels of shapes {halves[0].shape} and {halves[2].shape}; take the same inputs"
        )
    for matrix in halves:
        np.fill_diagonal(matrix, 0)
    a1, a2, b1, b2 = map(_centered, halves)
    own = np.vdot(a1, a2), np.vdot(b1, b2)
    if min(own) <= 0:
        return float("nan")
    return float((np.vdot(a1, b2) + np.vdot(a2, b1)) / 2 / np.sqrt(own[0] * own[1]))


def pair_correlation(losses: ArrayLike, center: str = "pooled") -> tuple[float, float]:
    """Mean and standard deviation of R over all pairs of different inputs, without forming R.

    With ``R = X^T X`` the sum of its squares is ``|X X^T|^2``: summed over blocks of inputs in a
    matrix of samples squared, or, where there are fewer inputs than samples, over blocks of rows of
    R. Memory is never inputs squared.

    Args:
        losses: ``(chain, draw, input)`` or ``(draw, input)``.
        center: as for :func:`losskernel.kernel.covariance.deviations`.

    Raises:
        TraceError: there is one input only.
    """
    losses = np.asarray(losses)
    inputs, samples = losses.shape[-1], math.prod(losses.shape[:-1])
    pairs = inputs * (inputs - 1)
    if pairs == 0:
        raise TraceError("R: one input makes no pairs; record the losses of at least two")
    total, varying = 0.0, 0
    for _, block in standardized_blocks(losses, center):
        total = total + block.sum(axis=1)
        varying += int(block.any(axis=0).sum())
    mean = (total @ total - varying) / pairs
    if samples <= min(inputs, _MOST_SAMPLES):
        blocks = standardized_blocks(losses, center, _BLOCK)
        gram = sum(block @ block.T for _, block in blocks)
        square = np.vdot(gram, gram)
    else:
        square = sum(np.vdot(block, block) for _, block in correlation_blocks(losses, center))
    return float(mean), float(np.sqrt(max(0.0, (square - varying) / pairs - mean**2)))
