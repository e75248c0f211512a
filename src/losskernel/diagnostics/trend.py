"""Does a quantity rise or fall along an ordered series of settings?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import permutation_test, rankdata

from losskernel.seeds import numpy_generator

_RESAMPLES = 40320  # all orders of 8 settings


def _centered_ranks(values: ArrayLike) -> np.ndarray:
    ranks = rankdata(values)
    return ranks - ranks.mean()


def rank_trend(values: ArrayLike) -> float:
    """Spearman's correlation of values with their order; 0 where all values are equal.

    Args:
        values: ``(setting,)``, in the order of the settings.
    """
    ranks = _centered_ranks(values)
    order = _centered_ranks(np.arange(len(ranks)))
    length = np.linalg.norm(ranks) * np.linalg.norm(order)
    return float(ranks @ order / length) if length > 0 else 0.0


def rank_trend_p(values: ArrayLike, seed: int = 0) -> float:
    """Two-sided permutation p of :func:`rank_trend`, over all orders of up to 8 settings.

    It tests whether the order of the settings matters, not whether a single value is certain. With
    n settings it cannot fall below ``2 / n!``: three cannot show a trend.

    Args:
        values: ``(setting,)``, in the order of the settings.
        seed: of the random orders beyond 8 settings.
    """
    order = _centered_ranks(np.arange(len(np.asarray(values))))

    def statistic(ranks: np.ndarray, axis: int) -> np.ndarray:
        return np.abs(np.moveaxis(ranks, axis, -1) @ order)

    return float(
        permutation_test(
            (_centered_ranks(values),),
            statistic,
            permutation_type="pairings",
            n_resamples=_RESAMPLES,
            vectorized=True,
            alternative="greater",
            rng=numpy_generator(seed, "resample"),
        ).pvalue
    )
