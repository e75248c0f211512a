"""How far the draws have converged: effective sample size, R-hat, drift."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


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
        result[varies] = _arviz().ess(losses[..., varies], chain_axis=0, draw_axis=1)
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
        result[moves] = _arviz().rhat(losses[..., moves], chain_axis=0, draw_axis=1)
    return result


def _mean_ess(values: np.ndarray) -> float:
    """Effective sample size of the mean of one quantity ``(chain, draw)``, at least 1."""
    if values.shape[1] < 4 or values.std() == 0:
        return 1.0
    return max(1.0, float(_arviz().ess(values, chain_axis=0, draw_axis=1, method="mean")))


def _arviz():
    """ArviZ's statistics of arrays, imported when they are needed: most calls do without them."""
    from arviz_stats.base import array_stats

    return array_stats


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
