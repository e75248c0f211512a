"""Statistics of a kernel that the number of draws does not bend, so that settings can be compared.

Sampling noise widens the distribution of R over pairs: it pulls every correlation and every AUC
towards chance, the more the fewer the draws. Two kernels from disjoint draws have independent
noise, so that the covariance of the two over pairs is the variance of R without noise (Spearman
1904, American Journal of Psychology 15, 72). Means over pairs need no such correction, but R is a
ratio, whose expectation is off by about ``R (1 - R^2) / (2 draws)``; the jackknife removes that.

See also :func:`losskernel.kernel.alignment.corrected_cka`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from losskernel.errors import TraceError
from losskernel.kernel.covariance import correlation
from losskernel.kernel.jackknife import jackknife


def mean_correlations(
    losses: NDArray, relations: Mapping[str, NDArray[np.bool_]], blocks: int = 20
) -> dict[str, tuple[float, float]]:
    """Mean R over the pairs of each relation, and its standard error over draws, by jackknife.

    Args:
        losses: ``(chain, draw, input)``.
        relations: by name, symmetric boolean ``(input, input)``; the diagonal is not counted.
        blocks: of draws that are left out in turn; more than autocorrelation is long.

    Raises:
        TraceError: a relation holds for no pair.
    """
    losses = np.asarray(losses)
    above = np.triu(np.ones((losses.shape[2], losses.shape[2]), bool), 1)
    chosen = {name: np.asarray(related) & above for name, related in relations.items()}
    for name, related in chosen.items():
        if not related.any():
            raise TraceError(f"mean R: no two inputs are related by '{name}'; leave it out")

    def means(kept: NDArray[np.int64]) -> list[float]:
        r = correlation(losses[:, kept])
        return [r[related].mean() for related in chosen.values()]

    estimates, errors = jackknife(losses.shape[1], blocks, means)
    return {
        name: (float(estimate), float(error))
        for name, estimate, error in zip(chosen, estimates, errors, strict=True)
    }


def corrected_spread(
    first: ArrayLike, second: ArrayLike, pairs: NDArray[np.bool_] | None = None
) -> float:
    """Standard deviation of R over pairs without noise: ``sqrt(cov(R1, R2))``.

    Args:
        first, second: two estimates of one R from disjoint draws, ``(input, input)``.
        pairs: symmetric boolean ``(input, input)``, which pairs count; all if not given.

    Returns:
        0 where the two do not agree at all.
    """
    r1, r2 = _entries(pairs, first, second)
    return float(np.sqrt(max(0.0, _covariance(r1, r2))))


def corrected_correlation(
    first: ArrayLike,
    second: ArrayLike,
    reference: ArrayLike,
    pairs: NDArray[np.bool_] | None = None,
) -> float:
    """Correlation over pairs of R with a similarity that has no noise, as many draws would give it.

    ``Corr(R, reference) / sqrt(reliability)``: Pearson's correlation of the mean of two estimates,
    with the variance of R replaced by the covariance of the two.

    Args:
        first, second, pairs: as for :func:`corrected_spread`.
        reference: ``(input, input)``, symmetric.

    Returns:
        Noise may push it beyond 1. NaN where the two estimates do not agree at all, or the
        reference is the same for all pairs.
    """
    r1, r2, x = _entries(pairs, first, second, reference)
    truth = _covariance(r1, r2) * _covariance(x, x)
    return _covariance((r1 + r2) / 2, x) / float(np.sqrt(truth)) if truth > 0 else float("nan")


def corrected_auc(
    first: ArrayLike,
    second: ArrayLike,
    related: NDArray[np.bool_],
    pairs: NDArray[np.bool_] | None = None,
) -> float:
    """ROC-AUC of R for "the pair is related", as many draws would give it.

    If R is normally distributed over related and over other pairs, ``AUC = Phi(d)`` with
    ``d = (mean - mean') / sqrt(var + var')`` (the binormal model; Hanley 1988, Medical Decision
    Making 8, 197). Noise adds to the two variances alone, so that ``d`` of the AUC that is seen,
    times the root of the variances seen over those without noise, is that of the AUC without noise.

    Args:
        first, second, pairs: as for :func:`corrected_spread`.
        related: symmetric boolean ``(input, input)``.

    Returns:
        NaN where the two estimates do not agree at all over related or other pairs.
    """
    from scipy.stats import norm, rankdata  # here, as it is slow to import

    r1, r2, same = _entries(pairs, first, second, related)
    r, same = (r1 + r2) / 2, same.astype(bool)
    count, others = int(same.sum()), int((~same).sum())
    seen = (rankdata(r)[same].sum() - count * (count + 1) / 2) / (count * others)
    whole = sum(_covariance(r[kind], r[kind]) for kind in (same, ~same))
    truth = sum(_covariance(r1[kind], r2[kind]) for kind in (same, ~same))
    return float(norm.cdf(norm.ppf(seen) * np.sqrt(whole / truth))) if truth > 0 else float("nan")


def _entries(pairs: NDArray[np.bool_] | None, *matrices: ArrayLike) -> list[NDArray]:
    """Each unordered pair's entry, ``(pair,)``, of every matrix."""
    arrays = [np.asarray(matrix) for matrix in matrices]
    shape = arrays[0].shape
    if len(shape) != 2 or any(array.shape != (shape[0], shape[0]) for array in arrays):
        found = ", ".join(str(array.shape) for array in arrays)
        raise TraceError(f"kernels: the shapes {found} are not one square matrix of inputs")
    chosen = np.triu(np.ones(shape, bool) if pairs is None else np.asarray(pairs), 1)
    return [array[chosen] for array in arrays]


def _covariance(x: NDArray, y: NDArray) -> float:
    return float(((x - x.mean()) * (y - y.mean())).mean())
