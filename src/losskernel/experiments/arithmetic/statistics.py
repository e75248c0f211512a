"""Statistics of a trace of experiment 1: do the losses of one task covary, and those of two not?"""

from __future__ import annotations

import numpy as np

from losskernel.data.arithmetic import ADDITION, DIVISION
from losskernel.kernel.alignment import corrected_cka
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.covariance import correlation, covariance, half_kernels, self_covariance
from losskernel.kernel.jackknife import jackknife
from losskernel.semantics.corrected import corrected_auc, corrected_spread, mean_correlations
from losskernel.semantics.separation import pair_auc
from losskernel.trace import LossTrace

SCORES = {
    "K": lambda k, r: k,
    "R": lambda k, r: r,
    "|K|": lambda k, r: np.abs(k),
    "|R|": lambda k, r: np.abs(r),
}
BLOCKS = 10  # of draws, of the jackknife
CONFUSED = 0.95  # a pair of one task is confused if its R is below this quantile of R across tasks


def relations(task: np.ndarray) -> dict[str, np.ndarray]:
    """Pairs within addition, within division, within either, and across, ``(input, input)``."""
    within = {
        name: (task[:, None] == which) & (task == which)
        for name, which in (("addition", ADDITION), ("division", DIVISION))
    }
    either = within["addition"] | within["division"]
    return within | {"within": either, "across": ~either}


def aucs(kernel: np.ndarray, task: np.ndarray) -> dict[str, float]:
    """ROC-AUC for "same task" of K, of R and of their magnitudes."""
    r = normalize(kernel)
    return {f"auc_{name}": pair_auc(score(kernel, r), task) for name, score in SCORES.items()}


def limit_aucs(gram: np.ndarray, task: np.ndarray) -> dict[str, float]:
    """The same of a kernel that has no noise, such as a Gram matrix of gradients."""
    found = aucs(gram, task)
    return found | {"auc_corrected": found["auc_R"], "auc_corrected_error": 0.0}


def measurements(trace: LossTrace) -> dict[str, float]:
    """One row: rise of the loss, separation by every score, and R by relation.

    ``auc_corrected`` is the AUC of R without noise; ``R_spread_*`` is the standard deviation of R
    over pairs without noise, ``R_sd_*`` with it. ``_error`` is a standard error over draws, by
    jackknife. ``reliability`` is the share of the variance of R over pairs that is not noise.
    """
    losses, task = trace.losses, trace.coordinate("task")
    groups, off = relations(task), ~np.eye(len(task), dtype=bool)
    k = covariance(losses)
    r, halves = normalize(k), half_kernels(losses)

    def separation(kept: np.ndarray) -> list[float]:
        part = losses[:, kept]
        return [
            pair_auc(correlation(part), task),
            corrected_auc(*half_kernels(part), groups["within"]),
        ]

    _, errors = jackknife(losses.shape[1], BLOCKS, separation)
    initial = float(trace.initial_loss.mean(dtype=float))
    row = {
        "initial_loss": initial,
        "rise": float(losses.mean(dtype=float)) - initial,
        **aucs(k, task),
        "auc_R_error": errors[0],
        "auc_corrected": corrected_auc(*halves, groups["within"]),
        "auc_corrected_error": errors[1],
        # The same score under a random split of the inputs into two groups of equal size.
        "auc_null": pair_auc(r, np.random.default_rng(0).permutation(task)),
        "reliability": (corrected_spread(*halves) / r[off].std()) ** 2,
        "draws": losses.shape[0] * losses.shape[1],
        "inputs": losses.shape[2],
    }
    for name, (mean, error) in mean_correlations(losses, groups, BLOCKS).items():
        row |= {
            f"R_mean_{name}": mean,
            f"R_mean_error_{name}": error,
            f"R_sd_{name}": r[groups[name] & off].std(),
            f"R_spread_{name}": corrected_spread(*halves, groups[name]),
        }
    return row


def alignments(trace: LossTrace, layers: dict[str, np.ndarray]) -> dict[str, float]:
    """CKA of R, without noise and diagonal, with that of each layer, ``(input, width)`` by name."""
    halves = half_kernels(trace.losses)
    found = {}
    for name, values in layers.items():
        products = values @ values.T
        found[f"cka_{name}"] = corrected_cka(halves, (products, products))
    return found


def confusion(trace: LossTrace, prime: int) -> dict[str, float]:
    """Which pairs of one task are confused with pairs of two: their share, by what they have alike.

    ``confused_quiet`` are pairs with an input among the tenth of its task of least self-covariance,
    ``confused_loud`` those with one among the tenth of most.
    """
    losses = trace.losses
    task, a, b = (trace.coordinate(name) for name in ("task", "a", "b"))
    r, groups = correlation(losses), relations(task)
    inverse = np.array([pow(int(value), prime - 2, prime) for value in b])
    answer = np.where(task == ADDITION, (a + b) % prime, a * inverse % prime)
    above = np.triu(groups["within"], 1)
    confused = r < np.quantile(r[groups["across"]], CONFUSED)
    variance = self_covariance(losses)
    rank = np.empty(len(task))
    for which in (ADDITION, DIVISION):
        own = np.flatnonzero(task == which)
        rank[own[variance[own].argsort()]] = np.arange(len(own)) / len(own)
    alike = {
        "same_answer": answer[:, None] == answer,
        "same_first": a[:, None] == a,
        "same_second": b[:, None] == b,
        "quiet": (rank < 0.1)[:, None] | (rank < 0.1),
        "loud": (rank >= 0.9)[:, None] | (rank >= 0.9),
    }
    unlike = ~(alike["same_answer"] | alike["same_first"] | alike["same_second"])
    found = {
        "confused_all": confused[above].mean(),
        "confused_unlike": confused[above & unlike].mean(),
    }
    for name, pairs in alike.items():
        chosen = above & pairs
        found[f"confused_{name}"] = confused[chosen].mean() if chosen.any() else np.nan
    return found
