"""Standard errors of statistics of draws, from leaving some of the draws out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def jackknife_error(draws: int, blocks: int, statistic: Callable[[np.ndarray], float]) -> float:
    """Standard error by the delete-a-block jackknife: ``sqrt((b - 1) / b * sum (v - mean v)^2)``.

    A block of successive draws is left out in turn, which allows for autocorrelation shorter than a
    block (Kuensch 1989, Annals of Statistics 17, 1217). Not a bootstrap: draws that are drawn twice
    lower their number, and with it every statistic of a kernel.

    Args:
        draws: their number.
        blocks: b, at most as many as there are draws.
        statistic: of the draws at given indices, which are sorted.
    """
    everything = np.arange(draws)
    parts = np.array_split(everything, min(blocks, draws))
    values = [statistic(np.delete(everything, part)) for part in parts]
    return float(np.sqrt(len(values) - 1) * np.std(values))
