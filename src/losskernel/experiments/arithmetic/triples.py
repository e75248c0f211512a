"""Beyond pairs: are the losses of three inputs of one task joint, more than their pairs explain?

The third cumulant of three standardized losses, ``T = E[x_i x_j x_k]``, vanishes for normal losses.
Losses are skewed, so that it does not vanish even where only pairs of them depend on each other.
What the pairs explain is taken from surrogates: a normal copula with the marginals of every loss
and the rank correlations of every pair, and nothing of higher order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from losskernel.kernel.covariance import standardized


def third_cumulants(losses: NDArray) -> NDArray[np.float64]:
    """``E[x_i x_j x_k]``, ``(input, input, input)``, of losses ``(draw, input)``, standardized."""
    unit = standardized(losses, dtype=np.float32) * np.float32(np.sqrt(len(losses)))
    inputs = unit.shape[1]
    found = np.empty((inputs,) * 3)
    for i in range(inputs):
        found[i] = (unit * unit[:, i : i + 1]).T @ unit
    return found / len(losses)


def pairwise_surrogate(losses: NDArray, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draws with the marginals and the rank correlations of the losses, ``(draw, input)``.

    A normal copula: normal variables with the correlation of the losses' normal scores, each then
    replaced by the loss of its rank. Their triples depend on each other through pairs alone.
    """
    from scipy.stats import norm, rankdata  # here, as it is slow to import

    draws = len(losses)
    scores = norm.ppf(rankdata(losses, axis=0, method="ordinal") / (draws + 1))
    scores -= scores.mean(axis=0)
    # A product of independent normal numbers with the scores has their covariance.
    _, weights, directions = np.linalg.svd(scores / np.sqrt(draws), full_matrices=False)
    normal = rng.standard_normal((draws, len(weights))) * weights @ directions
    order = rankdata(normal, axis=0, method="ordinal") - 1
    return np.take_along_axis(np.sort(losses, axis=0), order, axis=0).astype(np.float32)


def distinct(tensor: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same ``(input, input, input)`` with zeros where two inputs of a triple agree."""
    same = np.eye(len(tensor), dtype=bool)
    return np.where(same[:, :, None] | same[:, None, :] | same[None], 0, tensor)


def within_less_mixed(tensor: NDArray, groups: NDArray) -> float:
    """Mean over triples of distinct inputs of one group less that over triples of several.

    Args:
        tensor: ``(input, input, input)``, symmetric, 0 where inputs repeat.
        groups: ``(input,)``.
    """
    inputs, total, count = len(groups), 0.0, 0
    for group in np.unique(groups):
        chosen = np.flatnonzero(groups == group)
        total += tensor[np.ix_(chosen, chosen, chosen)].sum()
        count += len(chosen) * (len(chosen) - 1) * (len(chosen) - 2)
    others = inputs * (inputs - 1) * (inputs - 2) - count
    return total / count - (tensor.sum() - total) / others


@dataclass(frozen=True)
class TripleExcess:
    """How much more joint triples of one group are than mixed ones, beyond what pairs explain.

    Attributes:
        value: :func:`within_less_mixed` of the third cumulants less its mean over surrogates.
        before: the same without taking the surrogates' part off.
        sampling_null: 97.5 % quantile of the value where pairs explain everything, from its spread
            over surrogates, which are as many draws, in the normal approximation.
        permutation_null: 97.5 % quantile under random exchanges of the inputs' groups.
        p: of the larger of the two nulls.
    """

    value: float
    before: float
    sampling_null: float
    permutation_null: float
    p: float


def triple_excess(
    losses: NDArray, groups: NDArray, surrogates: int, permutations: int, seed: int
) -> TripleExcess:
    """Compare triples with surrogates and with exchanged groups.

    Two nulls, as either alone is too easily passed: exchanged groups do not know that cumulants of
    inputs whose pairs are correlated are noisier, surrogates do not know of joint triples that have
    nothing to do with the groups.

    Args:
        losses: ``(draw, input)``.
        groups: ``(input,)``.
        surrogates: sets of draws whose triples depend on each other through pairs alone.
        permutations: random exchanges of the groups.
        seed: of both.
    """
    from scipy.stats import norm  # here, as it is slow to import

    rng = np.random.default_rng(seed)
    excess = distinct(third_cumulants(losses))
    before = within_less_mixed(excess, groups)
    explained = np.empty(surrogates)
    for number in range(surrogates):
        made = distinct(third_cumulants(pairwise_surrogate(losses, rng)))
        explained[number] = within_less_mixed(made, groups)
        excess -= made / surrogates
    value = within_less_mixed(excess, groups)
    spread = explained.std(ddof=1) * np.sqrt(1 + 1 / surrogates)
    exchanged = np.array(
        [within_less_mixed(excess, rng.permutation(groups)) for _ in range(permutations)]
    )
    return TripleExcess(
        value=value,
        before=before,
        sampling_null=float(norm.ppf(0.975) * spread),
        permutation_null=float(np.quantile(exchanged, 0.975)),
        p=max(
            float(norm.sf(value / spread)),
            float((1 + (exchanged >= value).sum()) / (1 + permutations)),
        ),
    )
