"""One rule from an estimate, its error and its null to a verdict on a claim.

=============== ===================================================================================
verdict         when
=============== ===================================================================================
not tested      there is no estimate, or the run did not reach the setting that the claim is about
holds           the estimate with two errors on either side lies in the claimed range, and, where
                there is a null, beyond it; for a reported number: within two errors of it, or
                beyond it where more is better
does not hold   the estimate with two errors lies wholly outside the claimed range; for a reported
                number: more than two errors from it
not resolved    anything else, an estimate without an error among it
=============== ===================================================================================

Two errors, or where an error comes from few networks or draws as many as Student's t asks for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HOLDS, FAILS, UNRESOLVED, UNTESTED = "holds", "does not hold", "not resolved", "not tested"
ERRORS = 2.0  # standard errors on either side of an estimate


def errors_of(count: int | None) -> float:
    """Standard errors on either side of an estimate whose error comes from ``count`` parts.

    :data:`ERRORS`, or where it is more the 97.5 % quantile of Student's t with ``count - 1``
    degrees of freedom: 4.3 of three parts, 2.8 of five.
    """
    from scipy.special import stdtrit  # here, as it is slow to import

    return max(ERRORS, float(stdtrit(count - 1, 0.975))) if count and count > 1 else ERRORS


@dataclass(frozen=True)
class Range:
    """What a claim expects of an estimate: to lie between two values, in the estimate's unit."""

    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Number:
    """What a claim expects of an estimate: to equal a reported number.

    Attributes:
        value: the number.
        at_least: whether exceeding it is as good.
    """

    value: float
    at_least: bool = False


def judge(
    estimate: float | None,
    error: float | None,
    null: float | None,
    claim: Range | Number,
    tested: bool = True,
    count: int | None = None,
) -> str:
    """One of the four verdicts of the table above.

    Args:
        estimate: what was measured; None if nothing was.
        error: its standard error; None if it is not known, which leaves a claim unresolved.
        null: what an estimate without the claimed effect stays on one side of with a probability of
            97.5 %: its upper quantile where the claim bounds from below, else its lower one.
        claim: what is claimed.
        tested: whether the run reached the setting that the claim is about.
        count: networks, draws or inputs that the error comes from; None of very many.
    """
    if estimate is None or math.isnan(estimate) or not tested:
        return UNTESTED
    if error is None or math.isnan(error):
        return UNRESOLVED
    low, high = (estimate + side * errors_of(count) * error for side in (-1, 1))
    if isinstance(claim, Number):
        reached = high >= claim.value if claim.at_least else low <= claim.value <= high
        return HOLDS if reached else FAILS
    if high < claim.low or low > claim.high:
        return FAILS
    inside = claim.low < low and high < claim.high
    if null is not None and not math.isnan(null):
        inside &= estimate > null if math.isfinite(claim.low) else estimate < null
    return HOLDS if inside else UNRESOLVED
