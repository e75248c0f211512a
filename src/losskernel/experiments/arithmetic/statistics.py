"""Statistics of one trace of experiment 1: separation of the tasks, and how converged it is."""

from __future__ import annotations

import numpy as np

from losskernel.data.arithmetic import ADDITION, DIVISION
from losskernel.diagnostics.convergence import convergence
from losskernel.kernel.alignment import cka, split_half_cka
from losskernel.kernel.control_variate import (
    control_variate_kernel,
    control_variate_null,
    limit_kernel,
    normalize,
)
from losskernel.kernel.covariance import covariance
from losskernel.kernel.noise import noise_floor
from losskernel.sampling.probe import Probe
from losskernel.semantics.separation import pair_auc, pair_blocks
from losskernel.trace import LossTrace

PAIRS = {
    "addition": (ADDITION, ADDITION),
    "division": (DIVISION, DIVISION),
    "across": (ADDITION, DIVISION),
}
SCORES = {
    "K": lambda k, r: k,
    "R": lambda k, r: r,
    "|K|": lambda k, r: np.abs(k),
    "|R|": lambda k, r: np.abs(r),
}


def estimate(trace: LossTrace, limit: np.ndarray) -> tuple[np.ndarray, float]:
    """K with its control variate, and the noise floor of its normalized form."""
    known = limit_kernel(limit, Probe.read(trace.attributes["probe"]).free)
    linear = trace.dataset["linear"].values[~trace.diverged]
    kernel = control_variate_kernel(trace.losses, linear, known)
    null = control_variate_null(trace.losses, linear, kernel, seed=0)
    return kernel, null[~np.eye(len(null), dtype=bool)].std()


def _aucs(k: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    r = normalize(k)
    return {name: pair_auc(score(k, r), groups) for name, score in SCORES.items()}


def measurements(trace: LossTrace, limit: np.ndarray) -> dict:
    """One row: separation by every score, R and K by pair of tasks, noise floor and convergence.

    Columns without a prefix are of the kernel estimated with the control variate, ``plain_`` of
    the covariance of the draws alone, ``limit_`` of the exact limit of high localization.
    """
    losses, task = trace.losses, trace.coordinate("task")
    draws = losses.shape[1]
    kernel, floor = estimate(trace, limit)
    checks = convergence(losses[:, :, ::10])  # a tenth of the inputs tells, at a tenth of the time
    row = {}
    for prefix, k in (("", kernel), ("plain_", covariance(losses)), ("limit_", limit)):
        r = normalize(k)
        row |= {
            f"{prefix}auc_{name}": pair_auc(score(k, r), task) for name, score in SCORES.items()
        }
        for symbol, matrix in (("R", r), ("K", k)):
            blocks = pair_blocks(matrix, task)
            for pair, kinds in PAIRS.items():
                row[f"{prefix}{symbol}_mean_{pair}"] = blocks[kinds].mean()
                row[f"{prefix}{symbol}_sd_{pair}"] = blocks[kinds].std()
    # The null: the same scores under a random split of the inputs into two groups of equal size.
    shuffled, r = np.random.default_rng(0).permutation(task), normalize(kernel)
    row |= {f"null_{name}": pair_auc(score(kernel, r), shuffled) for name, score in SCORES.items()}
    return row | {
        "noise_floor": floor,
        "plain_noise_floor": noise_floor(losses),
        "split_half_cka": split_half_cka(losses, [draws // 2])[0],
        "cka_to_limit": cka(normalize(kernel), normalize(limit)),
        "initial_loss": trace.initial_loss.mean(),
        "mean_loss": losses.mean(),
        "drift": checks.drift,
        "drift_error": checks.drift_error,
        "median_ess": np.nanmedian(checks.ess),
        "median_rhat": np.nanmedian(checks.rhat),
        "chains": losses.shape[0],
        "diverged": int(trace.diverged.sum()),
        "draws": draws,
        "inputs": losses.shape[2],
        "seconds": trace.attributes["seconds"],
    }
