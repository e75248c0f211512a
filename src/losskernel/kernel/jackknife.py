"""Estimates without bias and their standard errors, from leaving some of the draws out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray


def jackknife(
    draws: int, blocks: int, statistic: Callable[[NDArray[np.int64]], ArrayLike]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A statistic of draws less its bias of order 1/draws, and its standard error.

    The delete-a-block jackknife: with ``v`` of all draws and ``v_j`` without block j of b, the
    estimate is ``b v - (b - 1) mean v_j`` (Quenouille 1956) and its error
    that of :func:`jackknife_error`. Blocks are of successive draws, which allows for
    autocorrelation shorter than a block (Kuensch 1989, Annals of Statistics 17, 1217). Not a
    bootstrap: draws that are drawn twice lower their number, and with it every statistic of a
    kernel.

    Args:
        draws: their number.
        blocks: b, at most as many as there are draws.
        statistic: of the draws at given indices, which are sorted; a number or an array.

    Returns:
        Estimate and error, of the shape of the statistic.
    """
    values = _left_out(draws, blocks, statistic)
    whole = np.asarray(statistic(np.arange(draws)), float)
    estimate = len(values) * whole - (len(values) - 1) * values.mean(axis=0)
    return estimate, jackknife_error(values)


def jackknife_error(values: ArrayLike) -> NDArray[np.float64]:
    """Standard error from the values of a statistic without each part, along the first axis.

    ``sqrt((b - 1) / b * sum_j (v_j - mean v_j)^2)`` over the b values; NaN for less than two parts.
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    return np.sqrt(len(values) - 1) * np.std(values, axis=0)


def _left_out(draws: int, blocks: int, statistic: Callable) -> NDArray[np.float64]:
    """The statistic without each block in turn, ``(block, ...)``."""
    everything = np.arange(draws)
    parts = np.array_split(everything, min(blocks, draws))
    return np.array([statistic(np.delete(everything, part)) for part in parts], float)
