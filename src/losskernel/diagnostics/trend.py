"""Does a quantity rise or fall along an ordered series of settings?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata


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
