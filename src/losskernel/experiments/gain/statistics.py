"""How many draws the control variate saves, and how near sampled draws come to the exact limit."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from losskernel.errors import ConfigError
from losskernel.kernel.alignment import cka
from losskernel.kernel.control_variate import control_variate_kernel, normalize
from losskernel.kernel.covariance import correlation, covariance
from losskernel.kernel.jackknife import jackknife_error
from losskernel.seeds import numpy_generator

ALONE, WITH = "draws alone", "control variate"


def disjoint_sets(draws: int, count: int, most: int, seed: int = 0) -> list[np.ndarray]:
    """At most ``most`` random sets of ``count`` draws each that share no draw, of ``0..draws-1``.

    Statistics of disjoint sets are independent, so their standard deviation is that of one set's.

    Raises:
        ConfigError: there are fewer than ``count`` draws, or ``count`` is below 2.
    """
    if not 2 <= count <= draws:
        raise ConfigError(f"gain: {count} draws are asked for of {draws}; choose 2 to {draws}")
    order = numpy_generator(seed, "resample").permutation(draws)
    return [order[i * count : (i + 1) * count] for i in range(min(most, draws // count))]


def gain_curve(
    losses: ArrayLike,
    linear: ArrayLike,
    known: ArrayLike,
    reference: ArrayLike,
    counts: list[int],
    most: int = 6,
    seed: int = 0,
) -> list[dict]:
    """CKA of R to a reference, with and without the control variate, by the number of draws.

    Args:
        losses: ``(chain, draw, input)``; draws of all chains are pooled and taken at random, so
            that a chain's autocorrelation does not enter.
        linear: linear part of every loss, of the same shape.
        known: exact covariance of the linear parts, ``(input, input)``.
        reference: the R to compare with, ``(input, input)``.
        counts: numbers of draws, over all chains.
        most: sets of draws of each size, at the most (:func:`disjoint_sets`).
        seed: of the choice of draws.

    Returns:
        A row for each number of draws and estimator: ``draws``, ``estimator``, the mean ``cka``
        over ``sets`` disjoint sets, and their standard deviation ``sd`` (NaN of one set).
    """
    losses, linear = (np.asarray(part).reshape(-1, np.shape(part)[-1]) for part in (losses, linear))
    rows = []
    for count in counts:
        found: dict[str, list[float]] = {ALONE: [], WITH: []}
        for chosen in disjoint_sets(len(losses), count, most, seed):
            plain = covariance(losses[chosen])
            with_it = control_variate_kernel(losses[chosen], linear[chosen], known)
            for name, kernel in ((ALONE, plain), (WITH, with_it)):
                found[name].append(cka(normalize(kernel), reference))
        for name, values in found.items():
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
            rows.append(
                {
                    "draws": count,
                    "estimator": name,
                    "cka": float(np.mean(values)),
                    "sd": sd,
                    "sets": len(values),
                }
            )
    return rows


def draws_saved(draws: ArrayLike, alone: ArrayLike, with_it: ArrayLike) -> tuple[float, bool]:
    """Draws that the plain estimate needs for one draw of the control variate's, at equal CKA.

    The largest CKA that both curves reach is looked up on both, on logarithmic draws.

    Args:
        draws: numbers of draws, rising; ``(count,)``.
        alone, with_it: CKA without and with the control variate, ``(count,)``.

    Returns:
        The ratio, and whether it is a lower bound: the fewest draws with the control variate are
        already better than the most without.
    """
    draws, alone, with_it = (np.asarray(part, float) for part in (draws, alone, with_it))
    # A curve that noise bends down once would have no inverse: where it is below an earlier point,
    # it stays there, and the first point of such a level is the one that reaches it.
    alone, with_it = np.maximum.accumulate(alone), np.maximum.accumulate(with_it)
    level = min(alone[-1], with_it[-1])
    needed = []
    for curve in (alone, with_it):
        values, first = np.unique(curve, return_index=True)
        needed.append(np.interp(level, values, np.log(draws)[first]))
    return float(np.exp(needed[0] - needed[1])), bool(with_it[0] >= level)


def reference_ceiling(half: ArrayLike, other_half: ArrayLike) -> float:
    """CKA that the exact R would have to the R of a reference run, from its two halves.

    With R + E for each half, E independent noise, the halves' CKA is ``r = |R|² / (|R|² + |E|²)``;
    all draws have half of ``|E|²``, hence ``|R| / sqrt(|R|² + |E|²/2) = sqrt(2 r / (1 + r))``: the
    Spearman-Brown formula (1910) and the square root of a reliability.

    Args:
        half, other_half: losses of as many draws each, ``(chain, draw, input)``.
    """
    r = max(0.0, cka(correlation(half), correlation(other_half)))
    return float(np.sqrt(2 * r / (1 + r)))


def limit_draws_cka(known: ArrayLike, draws: int, repeats: int = 3, seed: int = 0) -> np.ndarray:
    """CKA to the limit's R of that of ``draws`` independent normal draws of the limit itself.

    What sampling noise allows: no sampler of the limit can be expected to do better without a
    control variate.

    Args:
        known: the limit, ``(input, input)``; its negative eigenvalues, from rounding, count as 0.
        draws: their number.
        repeats: how many times, each one value returned.
        seed: of the draws.
    """
    known = np.asarray(known, float)
    eigenvalues, vectors = np.linalg.eigh(known)
    root = vectors * np.sqrt(eigenvalues.clip(0))
    rng, target = numpy_generator(seed, "noise"), normalize(known)
    found = []
    for _ in range(repeats):
        normal = rng.standard_normal((draws, len(known)))
        found.append(cka(correlation(normal @ root.T), target))
    return np.array(found)


def limit_slope(losses: ArrayLike, known: ArrayLike, blocks: int = 10) -> tuple[float, float]:
    """Slope of the sampled K on the limit over pairs of different inputs, and its standard error.

    Least squares with an intercept; 1 where the losses are linear in the displacement. The error is
    the jackknife's over blocks of draws.

    Args:
        losses: ``(chain, draw, input)``.
        known: the limit, ``(input, input)``.
        blocks: of draws, the same of every chain, each left out once.
    """
    losses, known = np.asarray(losses), np.asarray(known, float)
    pairs = np.triu_indices(len(known), 1)
    limit = known[pairs] - known[pairs].mean()

    def slope(kernel: np.ndarray) -> float:
        return float(limit @ kernel[pairs] / (limit @ limit))

    error = jackknife_error(
        losses.shape[1], blocks, lambda kept: slope(covariance(losses[:, kept]))
    )
    return slope(covariance(losses)), error


def cka_gain(
    losses: ArrayLike, linear: ArrayLike, known: ArrayLike, reference: ArrayLike, blocks: int = 10
) -> tuple[float, float]:
    """What the control variate adds to the CKA of R to a reference, and its standard error.

    Both estimates are of the same draws, so their difference is surer than either. Arguments as for
    :func:`gain_curve`; the error is the jackknife's over ``blocks`` of draws.
    """
    losses, linear = np.asarray(losses), np.asarray(linear)

    def difference(kept: np.ndarray) -> float:
        plain = covariance(losses[:, kept])
        with_it = control_variate_kernel(losses[:, kept], linear[:, kept], known)
        return cka(normalize(with_it), reference) - cka(normalize(plain), reference)

    draws = losses.shape[1]
    return difference(np.arange(draws)), jackknife_error(draws, blocks, difference)
