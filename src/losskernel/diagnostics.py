"""How far to trust a kernel estimate: CKA, noise floor, effective sample size, R-hat, drift."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from losskernel.errors import TraceError
from losskernel.kernel import deviations, standardized
from losskernel.seeds import numpy_generator


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

    With ``R = X^T X`` the products in :func:`cka` are ``|X H Y^T|^2``: memory is samples squared
    instead of inputs squared.

    Args:
        losses, other: ``(chain, draw, input)`` or ``(draw, input)``, on the same inputs.
        center: as for :func:`losskernel.kernel.deviations`.
    """
    x, y = standardized(losses, center), standardized(other, center)
    if x.shape[1] != y.shape[1]:
        raise TraceError(f"cka: {x.shape[1]} and {y.shape[1]} inputs differ")
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    scale = np.linalg.norm(x @ x.T) * np.linalg.norm(y @ y.T)
    if scale == 0:
        raise TraceError("cka: no loss varies, the alignment is undefined")
    return float(np.linalg.norm(x @ y.T) ** 2 / scale)


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
    """A null trace: each input's losses rotated in time by its own random shift, chain by chain.

    Keeps every input's distribution and autocorrelation and destroys what inputs have in common.

    Args:
        losses: ``(chain, draw, input)``.
    """
    chains, draws, inputs = losses.shape
    rng = numpy_generator(seed, "resample")
    shift = rng.integers(draws, size=(chains, 1, inputs))
    index = (np.arange(draws)[None, :, None] + shift) % draws
    return np.take_along_axis(losses, index, axis=1)


def noise_floor(losses: np.ndarray, center: str = "pooled", seed: int = 0) -> float:
    """Standard deviation of R between unrelated inputs, from :func:`shifted` losses.

    For independent draws it is ``1 / sqrt(samples - 1)``; autocorrelation raises it. A correlation
    is resolved if it exceeds this several times.
    """
    unit = standardized(shifted(losses, seed), center)
    similarity = unit.T @ unit
    off = ~np.eye(len(similarity), dtype=bool)
    return float(similarity[off].std())


@dataclass(frozen=True)
class Convergence:
    """Effective sample size and split R-hat of each input's loss, ``(input,)``, and the drift.

    ``drift`` is the mean loss of the second half of the draws minus that of the first half, and
    ``drift_error`` its standard error, both in units of the loss.
    """

    ess: np.ndarray
    rhat: np.ndarray
    drift: float
    drift_error: float


def convergence(losses: np.ndarray) -> Convergence:
    """ArviZ's bulk effective sample size and rank-normalized split R-hat (Vehtari et al. 2021).

    Args:
        losses: ``(chain, draw, input)``, at least 4 draws a chain (8 if it is the only one,
            whose quarters R-hat then compares).
    """
    az = _arviz()
    dataset = az.convert_to_dataset({"loss": np.asarray(losses, float)})
    ess = az.ess(dataset)["loss"].values
    if len(losses) == 1:  # ArviZ wants two chains: the halves of the one, each split again
        half = losses.shape[1] // 2
        halves = np.stack([losses[0, :half], losses[0, half : 2 * half]]).astype(float)
        dataset = az.convert_to_dataset({"loss": halves})
    rhat = az.rhat(dataset)["loss"].values
    mean = np.asarray(losses, float).mean(axis=2)
    half = mean.shape[1] // 2
    first, second = mean[:, :half], mean[:, half : 2 * half]
    error = [part.std(ddof=1) / np.sqrt(_mean_ess(part)) for part in (first, second)]
    return Convergence(
        ess, rhat, float(second.mean() - first.mean()), float(np.hypot(error[0], error[1]))
    )


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


def effective_rank(losses: np.ndarray, center: str = "pooled") -> float:
    """``exp`` of the entropy of the normalized eigenvalues of K: directions in which losses move.

    Roy and Vetterli 2007. At most the number of samples or inputs, whichever is less.
    """
    values, _ = deviations(losses, center)
    spectrum = np.linalg.svd(values, compute_uv=False) ** 2
    share = spectrum[spectrum > 0] / spectrum.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
