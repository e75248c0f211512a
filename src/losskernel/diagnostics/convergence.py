"""How far to trust a kernel estimate: CKA, noise floor, effective sample size, R-hat, drift."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from losskernel.errors import TraceError
from losskernel.kernel.covariance import correlation_blocks, deviations, standardized_blocks
from losskernel.seeds import numpy_generator

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

    def centered(matrix: np.ndarray) -> np.ndarray:
        return matrix - matrix.mean(0) - matrix.mean(1)[:, None] + matrix.mean()

    norms = []
    for matrix in (kernel, other):
        norms.append(np.linalg.norm(centered(matrix)))
        # Centering a constant leaves rounding, not 0.
        if norms[-1] <= 1e-12 * np.linalg.norm(matrix):
            raise TraceError("cka: a kernel is constant, its alignment is undefined")
    return float((centered(kernel) * centered(other)).sum() / (norms[0] * norms[1]))


def sample_cka(losses: ArrayLike, other: ArrayLike, center: str = "pooled") -> float:
    """CKA of the normalized kernels R of two sets of losses, without forming the kernels.

    With ``R = X^T X`` the products in :func:`cka` are ``|X H Y^T|^2``: summed over blocks of inputs
    in a matrix of samples squared, or, where there are fewer inputs than samples, over blocks of
    rows of the kernels. Memory is never inputs squared.

    Args:
        losses, other: ``(chain, draw, input)`` or ``(draw, input)``, on the same inputs.
        center: as for :func:`losskernel.kernel.covariance.deviations`.

    Raises:
        TraceError: the inputs differ in number, or a centered kernel is zero.
    """
    x, y = np.asarray(losses), np.asarray(other)
    if x.shape[-1] != y.shape[-1]:
        raise TraceError(f"cka: {x.shape[-1]} and {y.shape[-1]} inputs differ")
    norms = []
    for part in (x, y):
        norm, uncentered = _products(part, part, center)
        # Losses that vary alike have an R of 1 up to their rounding in float32, 1e-6 squared.
        if norm <= 1e-12 * uncentered:
            raise TraceError("cka: no loss varies, or all vary alike: the alignment is undefined")
        norms.append(norm)
    return float(_products(x, y, center)[0] / np.sqrt(norms[0] * norms[1]))


def _products(x: np.ndarray, y: np.ndarray, center: str) -> tuple[float, float]:
    """Frobenius products ``<H R H, H Q H>`` and ``<R, Q>`` of the normalized kernels of losses."""

    def blocks(of, *size):
        if x is y:
            return ((block, block) for _, block in of(x, center, *size))
        pairs = zip(of(x, center, *size), of(y, center, *size), strict=True)
        return ((a, b) for (_, a), (_, b) in pairs)

    inputs, samples = x.shape[-1], [math.prod(part.shape[:-1]) for part in (x, y)]
    if max(samples) <= min(inputs, _MOST_SAMPLES):
        gram, sums = np.zeros(samples), [np.zeros(count) for count in samples]
        for a, b in blocks(standardized_blocks, _BLOCK):
            gram += a @ b.T
            sums[0] += a.sum(axis=1)
            sums[1] += b.sum(axis=1)
        product = np.vdot(gram, gram)
        gram -= np.outer(sums[0], sums[1] / inputs)
        return np.vdot(gram, gram), product
    product, rows = 0.0, []
    for r, q in blocks(correlation_blocks):
        product += np.vdot(r, q)
        rows.append((r.sum(axis=1), q.sum(axis=1)))
    r, q = np.concatenate(rows, axis=1)
    return product - 2 * (r @ q) / inputs + r.sum() * q.sum() / inputs**2, product


def cka_curve(losses: np.ndarray, counts: ArrayLike, center: str = "pooled") -> np.ndarray:
    """CKA(t, final): R from the first ``t`` draws of every chain against R from all of them.

    Args:
        losses: ``(chain, draw, input)``.
        counts: draws a chain, each from 2 to all.

    Returns:
        One value a count. It reaches 1 at the end by construction; how early it flattens, and
        :func:`split_half_cka`, say whether the kernel has converged.
    """
    return np.array([sample_cka(losses[:, :count], losses, center) for count in counts])


def split_half_cka(losses: np.ndarray, counts: ArrayLike, center: str = "pooled") -> np.ndarray:
    """CKA of R from two disjoint sets of ``t`` draws a chain: alternate tenths of the run.

    Unlike :func:`cka_curve` it does not compare draws with themselves: independent noise gives a
    small value, not 1.
    """
    draws = losses.shape[1]
    half = (np.arange(draws) // max(1, draws // 10)) % 2
    even, odd = losses[:, half == 0], losses[:, half == 1]
    return np.array([sample_cka(even[:, :count], odd[:, :count], center) for count in counts])


def shifted(losses: np.ndarray, seed: int = 0) -> np.ndarray:
    """A null trace: each input's chains in a random order of its own, each rotated in time.

    Keeps every input's distribution and autocorrelation and destroys what inputs have in common;
    the order of the chains that in which they differ, which a rotation would leave.

    Args:
        losses: ``(chain, draw, input)``.
    """
    chains, draws, inputs = losses.shape
    rng = numpy_generator(seed, "resample")
    shift = rng.integers(draws, size=(chains, 1, inputs))
    order = rng.permuted(np.tile(np.arange(chains)[:, None], inputs), axis=0)[:, None]
    result = np.empty_like(losses)
    for start in range(0, inputs, _BLOCK):  # the index of a draw is larger than its loss
        rows = slice(start, start + _BLOCK)
        index = (np.arange(draws)[None, :, None] + shift[..., rows]) % draws
        own = np.take_along_axis(losses[..., rows], order[..., rows], axis=0)
        result[..., rows] = np.take_along_axis(own, index, axis=1)
    return result


def pair_correlation(losses: ArrayLike, center: str = "pooled") -> tuple[float, float]:
    """Mean and standard deviation of R over all pairs of different inputs, without forming R.

    Args and memory as for :func:`sample_cka`.

    Raises:
        TraceError: there is one input only.
    """
    losses = np.asarray(losses)
    pairs = losses.shape[-1] * (losses.shape[-1] - 1)
    if pairs == 0:
        raise TraceError("R: one input makes no pairs; record the losses of at least two")
    total, varying = 0.0, 0
    for _, block in standardized_blocks(losses, center):
        total = total + block.sum(axis=1)
        varying += int(block.any(axis=0).sum())
    mean = (total @ total - varying) / pairs
    square = (_products(losses, losses, center)[1] - varying) / pairs
    return float(mean), float(np.sqrt(max(0.0, square - mean**2)))


def noise_floor(losses: np.ndarray, center: str = "pooled", seed: int = 0) -> float:
    """Standard deviation of R between unrelated inputs, from :func:`shifted` losses.

    For independent draws it is ``1 / sqrt(samples - 1)``; autocorrelation raises it. A correlation
    is resolved if it exceeds this several times. Memory as for :func:`sample_cka`, and a copy of
    the losses.
    """
    return pair_correlation(shifted(losses, seed), center)[1]


@dataclass(frozen=True)
class Convergence:
    """Effective sample size and split R-hat of each input's loss, ``(input,)``, and the drift.

    ``drift`` is the mean loss of the second half of the draws minus that of the first half, and
    ``drift_error`` its standard error, both in units of the loss. NaN is what cannot be told: an
    input whose loss never changes, or too few draws (see :func:`convergence`). R-hat is infinite
    where every part of a chain is stuck at one loss, but not all at the same.
    """

    ess: np.ndarray
    rhat: np.ndarray
    drift: float
    drift_error: float


def convergence(losses: np.ndarray, most_inputs: int | None = None) -> Convergence:
    """ArviZ's bulk effective sample size and rank-normalized split R-hat (Vehtari et al. 2021).

    Args:
        losses: ``(chain, draw, input)``. Effective sample size and R-hat need 4 draws a chain;
            R-hat needs 8 if there is one chain only, whose quarters it then compares.
        most_inputs: effective sample size and R-hat of so many inputs, evenly spaced, or of all.
            ArviZ takes about a millisecond an input. The drift is that of all inputs.
    """
    chains, draws, inputs = losses.shape
    count = inputs if most_inputs is None else min(most_inputs, inputs)
    chosen = losses[..., np.arange(count) * inputs // count].astype(float)
    parts = chosen
    if chains == 1:  # ArviZ wants two chains: the halves of the one, which it splits again
        half = draws // 2
        parts = np.concatenate([chosen[:, :half], chosen[:, half : 2 * half]])
    mean = losses.mean(axis=2, dtype=float)
    half = draws // 2
    first, second = mean[:, :half], mean[:, half : 2 * half]
    drift = error = np.nan
    if first.size > 1:
        drift = float(second.mean() - first.mean())
        error = np.hypot(*(part.std(ddof=1) / np.sqrt(_mean_ess(part)) for part in (first, second)))
    return Convergence(_ess(chosen), _rhat(parts), drift, float(error))


def _ess(losses: np.ndarray) -> np.ndarray:
    result = np.full(losses.shape[2], np.nan)
    varies = np.ptp(losses, axis=(0, 1)) > 0
    if losses.shape[1] >= 4 and varies.any():
        result[varies] = _arviz().ess({"loss": losses[..., varies]})["loss"].values
    return result


def _rhat(losses: np.ndarray) -> np.ndarray:
    """Split R-hat by input. Its divisor, the variance within half chains, may be zero."""
    result = np.full(losses.shape[2], np.nan)
    draws = losses.shape[1]
    if draws < 4:
        return result
    halves = [losses[:, : draws // 2], losses[:, -(draws // 2) :]]
    moves = (np.ptp(np.concatenate(halves), axis=1) > 0).any(axis=0)
    result[~moves & (np.ptp(losses, axis=(0, 1)) > 0)] = np.inf
    if moves.any():
        result[moves] = _arviz().rhat({"loss": losses[..., moves]})["loss"].values
    return result


def _mean_ess(values: np.ndarray) -> float:
    """Effective sample size of the mean of one quantity ``(chain, draw)``, at least 1."""
    if values.shape[1] < 4 or values.std() == 0:
        return 1.0
    return max(1.0, float(_arviz().ess(values, method="mean")))


def _arviz():
    """ArviZ, imported when it is needed: it loads for seconds, and most calls do without it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # announces ArviZ 1.0 at every import
        import arviz
    return arviz


def copies(losses: np.ndarray, most_inputs: int = 50) -> list[tuple[int, int]]:
    """Pairs of chains that move alike: one and the same, or driven by the same random numbers.

    By the correlation of the changes of the losses from draw to draw, which common drift leaves
    near 0: 1 of copies, and of independent chains within some ``1 / sqrt(draws)`` of 0.

    Args:
        losses: ``(chain, draw, input)``.
        most_inputs: so many, evenly spaced, are looked at.
    """
    chains, draws, inputs = losses.shape
    if chains < 2 or draws < 3:
        return []
    chosen = np.unique(np.linspace(0, inputs - 1, min(most_inputs, inputs)).round().astype(int))
    changes = np.diff(losses[..., chosen].astype(float), axis=1)
    scale = changes.std(axis=(0, 1))
    changes = (changes / np.where(scale > 0, scale, 1)).reshape(chains, -1)
    norm = np.linalg.norm(changes, axis=1)
    products = changes @ changes.T / np.maximum(np.outer(norm, norm), 1e-300)
    threshold = min(0.999, max(0.5, 6 / math.sqrt(draws - 1)))
    return [
        (int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(products > threshold, 1)), strict=True)
    ]


def effective_rank(losses: np.ndarray, center: str = "pooled") -> float:
    """``exp`` of the entropy of the normalized eigenvalues of K: directions in which losses move.

    Roy and Vetterli 2007. At most the number of samples or inputs, whichever is less.
    """
    values, _ = deviations(losses, center)
    spectrum = np.linalg.svd(values, compute_uv=False) ** 2
    share = spectrum[spectrum > 0] / spectrum.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def autocorrelation_time(series: ArrayLike) -> float:
    """Integrated autocorrelation time of one quantity, in draws: ``samples / ESS`` of its mean.

    ``1 + 2 sum_t rho_t``; 1 for independent draws. The effective sample size is ArviZ's, of chains
    split in halves: a chain that still drifts has a time of the order of its own length.

    Args:
        series: ``(chain, draw)``, at least 4 draws.

    Raises:
        TraceError: another shape, or too few draws.
    """
    series = np.asarray(series, float)
    if series.ndim != 2 or series.shape[1] < 4:
        raise TraceError(f"series: shape {series.shape} is not (chain, draw) with 4 draws or more")
    return series.size / _mean_ess(series)


def settled_at(series: ArrayLike) -> int:
    """The draw from which on a quantity no longer approaches its level: the length of its warm-up.

    The marginal standard error rule (White 1997, Simulation 69, 323): with the chains' mean series
    ``x``, the ``d`` that minimizes ``sum_{t >= d} (x_t - mean_{t >= d} x)^2 / (n - d)^2``, the
    squared standard error of the mean of what is left. A minimum in the second half says that the
    level was not reached, and the answer is then ``n``, all draws: at least so many are needed.

    Args:
        series: ``(chain, draw)``, from the start of the chains.

    Raises:
        TraceError: another shape, or fewer than 4 draws.
    """
    series = np.asarray(series, float)
    if series.ndim != 2 or series.shape[1] < 4:
        raise TraceError(f"series: shape {series.shape} is not (chain, draw) with 4 draws or more")
    mean = series.mean(axis=0)
    draws = len(mean)
    # Fewer than 3 draws left agree by chance.
    error = [mean[start:].var() / (draws - start) for start in range(draws - 2)]
    settled = int(np.argmin(error))
    return settled if settled <= draws // 2 else draws


def corrected_cka(first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike]) -> float:
    """CKA of two estimated kernels as it would be without sampling noise, of unequal pairs alone.

    ``<A, B> / sqrt(<A1, A2> <B1, B2>)``, with each kernel known by two independent estimates,
    ``A = (A1 + A2) / 2``, their diagonals set to 0 and both centered as in :func:`cka`. Independent
    noise of mean zero leaves each of the three products unchanged in expectation, while it adds to
    the norms in :func:`cka`, which falls with the noise floor (Spearman's 1904 correction for
    attenuation). The diagonal of R is 1 in every kernel and would outweigh the rest.

    Args:
        first, second: two estimates of each kernel, from disjoint draws, all ``(input, input)``; of
            a kernel that is known exactly, twice the same. The two kernels' noise must be
            independent of each other.

    Returns:
        About 1 for equal kernels, 0 for unrelated ones; noise may push it beyond both ends. NaN
        where the halves of a kernel do not agree at all: it does not stand above its noise.
    """

    def centered(kernel: ArrayLike) -> np.ndarray:
        kernel = np.array(kernel, float)
        np.fill_diagonal(kernel, 0)
        mean = kernel.mean(axis=0)
        return kernel - mean - kernel.mean(axis=1)[:, None] + mean.mean()

    (a1, a2), (b1, b2) = (tuple(map(centered, halves)) for halves in (first, second))
    own = np.vdot(a1, a2), np.vdot(b1, b2)
    if min(own) <= 0:
        return float("nan")
    return float(np.vdot(a1 + a2, b1 + b2) / 4 / np.sqrt(own[0] * own[1]))
