"""The paper's numbers and claims, one row each, and what was measured of them.

Every id is written out here and where its row is made, so that a search finds both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from losskernel.diagnostics.judge import (
    FAILS,
    HOLDS,
    UNRESOLVED,
    UNTESTED,
    Number,
    Range,
    errors_of,
    judge,
)
from losskernel.files import write_csv


@dataclass(frozen=True)
class Claim:
    """A number or a claim.

    Attributes:
        id: its name in ``results/compare.csv``.
        section: of the paper (arXiv:2509.26537); empty for a question of ours.
        quantity: what is measured, in words.
        expected: what is claimed of it; None for a fact that is only set beside the paper's.
        reported: the number that the paper states.
        headline: whether the README shows it.
        needs_null: whether it may hold only beyond a null; without one it is not resolved.
    """

    id: str
    section: str
    quantity: str
    expected: Range | Number | None = None
    reported: float | None = None
    headline: bool = False
    needs_null: bool = False


def _number(name: str, section: str, quantity: str, value: float, **options) -> Claim:
    headline = options.pop("headline", False)
    return Claim(name, section, quantity, Number(value, **options), value, headline)


ABOVE_ZERO, BELOW_ZERO, ABOVE_ONE = Range(low=0), Range(high=0), Range(low=1)

CLAIMS = (
    _number(
        "arithmetic.auc",
        "4.1",
        "ROC-AUC of telling same-task from cross-task pairs by the kernel",
        0.931,
        at_least=True,
        headline=True,
    ),
    Claim(
        "arithmetic.within_task",
        "4.1",
        "mean R of pairs of one task less that of pairs of different tasks; claim: above 0",
        ABOVE_ZERO,
    ),
    Claim(
        "arithmetic.cross_task",
        "4.1",
        "mean R of pairs of different tasks; claim: narrowly around zero",
        Range(-0.03, 0.03),
    ),
    Claim("arithmetic.rise", "", "rise of the mean loss under the probe, in nats, set beforehand"),
    Claim(
        "arithmetic.auc_gradients_qkv",
        "",
        "the same AUC by the magnitude of gradient cosines in the QKV weights",
    ),
    Claim(
        "triples.within_task",
        "",
        "third cumulants within a task less mixed, beyond what pairs explain; joint if above 0",
        ABOVE_ZERO,
    ),
    Claim(
        "localization.cross_task",
        "",
        "mean R across tasks where they share no parameter (Proposition 2); claim: zero",
        Range(-0.03, 0.03),
    ),
    Claim(
        "reparametrization.isotropic",
        "",
        "1 - CKA of R before and after a rescaling by 8, isotropic probe; invariant if 0",
        Range(-0.05, 0.05),
    ),
    Claim(
        "reparametrization.fisher",
        "",
        "the same with variances from the Fisher matrix less that, isotropic; better if below 0",
        BELOW_ZERO,
    ),
    Claim("activations.cka", "", "CKA of R with the activations before the unembedding"),
    Claim("imagenet.inputs", "4.2", "inputs in the ImageNet kernel", None, 10000),
    Claim(
        "imagenet.lift",
        "4.2",
        "lift of the 10 nearest neighbors at hypernym depth 9; claim: above 1",
        ABOVE_ONE,
        headline=True,
    ),
    Claim(
        "imagenet.spearman",
        "4.2",
        "correlation of R with WordNet similarity; claim: above 0",
        ABOVE_ZERO,
        headline=True,
    ),
    Claim("imagenet.reliability", "", "reliability of R over pairs of inputs"),
    Claim(
        "imagenet.signed_excess",
        "",
        "that correlation less the exact limit's; our question: above 0",
        ABOVE_ZERO,
    ),
    Claim(
        "imagenet.cost_gpu_hours",
        "D.3",
        "cost of the kernel in GPU hours (3 hours on four A100)",
        None,
        12,
    ),
    Claim(
        "architecture.efficientnet_lite0",
        "",
        "correlation of R with WordNet similarity in EfficientNet-Lite0; claim: above 0",
        ABOVE_ZERO,
    ),
    Claim(
        "architecture.resnet",
        "",
        "correlation of R with WordNet similarity in a small residual network; claim: above 0",
        ABOVE_ZERO,
    ),
    Claim(
        "architecture.vit",
        "",
        "correlation of R with WordNet similarity in a small vision transformer; claim: above 0",
        ABOVE_ZERO,
    ),
    Claim("gamma.minimum", "D.3", "smallest localization of the sweep", None, 100),
    Claim("gamma.maximum", "D.3", "largest localization of the sweep", None, 4000),
    Claim("gamma.effective_minimum", "", "smallest localization that the probe reached"),
    Claim("gamma.effective_maximum", "", "largest localization that the probe reached"),
    Claim(
        "gamma.hierarchy_lift",
        "D.3",
        "change of the hierarchy lift from low to high localization; claim: above 0",
        ABOVE_ZERO,
        headline=True,
    ),
    Claim(
        "gamma.colour_lift",
        "D.3",
        "change of the color lift from low to high localization; claim: below 0",
        BELOW_ZERO,
    ),
    Claim(
        "gamma.texture_lift",
        "D.3",
        "change of the texture lift from low to high localization; claim: below 0",
        BELOW_ZERO,
    ),
    Claim(
        "gamma.small_hierarchy",
        "D.3",
        "the same change of the hierarchy lift on a small network; claim: above 0",
        ABOVE_ZERO,
    ),
    Claim(
        "gamma.small_colour",
        "D.3",
        "the same change of the color lift on a small network; claim: below 0",
        BELOW_ZERO,
    ),
    Claim(
        "gamma.convergence",
        "D.3",
        "draws to convergence at the lowest over those at the highest localization; claim: above 1",
        ABOVE_ONE,
    ),
    _number(
        "mislabel.auc",
        "D.4",
        "ROC-AUC of self-covariance for mislabeled inputs",
        0.958,
        at_least=True,
        headline=True,
    ),
    Claim(
        "mislabel.self_covariance_clean",
        "D.4",
        "mean self-covariance of normal inputs",
        None,
        1.112,
    ),
    Claim(
        "mislabel.self_covariance_mislabeled",
        "D.4",
        "mean self-covariance of mislabeled inputs",
        None,
        2.138,
    ),
    _number(
        "mislabel.ratio",
        "D.4",
        "mean self-covariance of mislabeled over that of normal inputs, at the rise where it is "
        "nearest to the paper's",
        1.92,
    ),
    Claim(
        "mislabel.auc_matched_loss",
        "",
        "ROC-AUC of self-covariance for mislabeled among all hard inputs; claim: above 0.5",
        Range(low=0.5),
    ),
    Claim(
        "mislabel.memorized_digits",
        "D.4",
        "ROC-AUC of self-covariance for memorized wrong labels, digits; claim: above 0.5",
        Range(low=0.5),
    ),
    Claim(
        "mislabel.memorized_tiny_imagenet",
        "D.4",
        "ROC-AUC of self-covariance for memorized wrong labels, Tiny ImageNet; claim: above 0.5",
        Range(low=0.5),
    ),
    Claim(
        "development.coarse_to_fine",
        "D.5",
        "rank correlation of hypernym depth and the step at which its lift appears; claim: above 0",
        ABOVE_ZERO,
        headline=True,
        # Lifts of nested depths are not exchangeable: growth of one kernel alone may order them.
        needs_null=True,
    ),
    Claim("scale.inputs", "4.2", "inputs in the kernel of Tiny ImageNet", None, 10000),
    Claim("scale.seconds", "", "what that kernel took, in seconds of its run"),
    Claim("scale.memory_gb", "", "most memory that its run held, in GB"),
    Claim(
        "scale.lift",
        "4.2",
        "lift of the 10 nearest neighbors at hypernym depth 9 among 10,000; claim: above 1",
        ABOVE_ONE,
        needs_null=True,
    ),
    Claim(
        "scale.within_class",
        "",
        "rank correlation of R with likeness of features within a class; our question: above 0",
        ABOVE_ZERO,
        needs_null=True,
    ),
)
BY_ID = {claim.id: claim for claim in CLAIMS}
MEASURED = ("id", "reproduced", "spread", "null", "n", "tested", "setting", "beside")


def reported(name: str) -> float:
    """The paper's number of that id."""
    return BY_ID[name].reported


def measured(
    reproduced: float | None,
    spread: float | None,
    n: int | None,
    setting: str,
    *,
    null: float | None = None,
    tested: bool = True,
    beside: dict[str, float] | None = None,
) -> dict:
    """What was measured, as one row without its id; arguments as for :func:`judge`, and

    Args:
        reproduced: the estimate.
        spread: its standard error.
        n: how many networks, draws or inputs the spread is over.
        setting: at which setting and scale, and what the spread is over.
        null, tested: as for :func:`losskernel.diagnostics.judge.judge`.
        beside: numbers that it is to be read beside, by name.
    """
    told = "; ".join(f"{name} {value:.3g}" for name, value in (beside or {}).items())
    row = {"reproduced": reproduced, "spread": spread, "null": null, "n": n, "tested": tested}
    return {**row, "setting": setting, "beside": told}


def write_claims(rows: dict[str, dict], output: Path) -> None:
    """Write rows of :func:`measured`, by the ids of :data:`CLAIMS`."""
    unknown = sorted(set(rows) - set(BY_ID))
    if unknown:
        raise KeyError(f"{unknown[0]} is not in the table of claims")
    table = pd.DataFrame([{"id": name} | row for name, row in rows.items()], columns=MEASURED)
    write_csv(table, output)


def verdict(claim: Claim, row: dict) -> str:
    """One of the four verdicts of a row of :func:`measured`; empty for a fact."""
    if claim.expected is None:
        return "" if row["tested"] and not pd.isna(row["reproduced"]) else UNTESTED
    fields = (row["reproduced"], row["spread"], row["null"])
    estimate, error, null = (None if pd.isna(value) else float(value) for value in fields)
    found = judge(estimate, error, null, claim.expected, bool(row["tested"]), _count(row))
    return UNRESOLVED if found == HOLDS and claim.needs_null and null is None else found


def _count(row: dict) -> int | None:
    return None if pd.isna(row["n"]) else int(row["n"])


def prose(claim: Claim, row: dict) -> str:
    """The verdict with its reason, at most 25 words; empty for a fact that was measured.

    The number of a null is its 97.5 % bound.
    """
    word = verdict(claim, row)
    if word in ("", UNTESTED):
        return word
    value, spread, null = row["reproduced"], row["spread"], row["null"]
    if pd.isna(spread) and word == UNRESOLVED:
        return f"{word}: its error is not known"
    if isinstance(claim.expected, Number):
        away = value - claim.expected.value
        near = not pd.isna(spread) and abs(away) <= errors_of(_count(row)) * spread
        side = "within its error of" if near else "above" if away > 0 else "below"
        return f"{word}: {side} the paper's"
    low, high = claim.expected.low, claim.expected.high
    bounds = [f"above {low:g}"] * math.isfinite(low) + [f"below {high:g}"] * math.isfinite(high)
    wanted = " and ".join(bounds)
    bound = "" if pd.isna(null) else f"its null's {null:.3g}"
    if word == FAILS:
        return f"{word}: the claim is {wanted}"
    if word == HOLDS:
        return f"{word}: {wanted}" + (f", beyond {bound}" if bound else "")
    if claim.needs_null and not bound:
        return f"{word}: there is no null to set it beside"
    if bound and (value <= null if math.isfinite(low) else value >= null):
        return f"{word}: not beyond {bound}"
    return f"{word}: its error leaves open whether it is {wanted}"
