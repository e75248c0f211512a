"""May losses be computed in less precision? Kernels of the same draws, side by side."""

from __future__ import annotations

import numpy as np

from losskernel.diagnostics.convergence import cka
from losskernel.errors import TraceError
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.covariance import covariance
from losskernel.kernel.jackknife import jackknife_error
from losskernel.trace import LossTrace

_SAME = ("probe", "parameters", "weights_sha256", "inputs_sha256", "seed", "precision", "loss")


def compare_precisions(
    reference: LossTrace, other: LossTrace, threshold: float = 0.999, blocks: int = 10
) -> dict:
    """How far the kernel of the same draws changes with the precision of the recorded losses.

    Both traces come from ``sample_losses`` with the same arguments but ``eval_precision``:
    gradients and weights are then the same to the bit, and what differs is the losses' rounding.

    Args:
        reference: of the higher precision.
        other: of the lower one.
        threshold: CKA of K and of R from which on the lower precision is allowed.
        blocks: of draws, for the jackknife's standard errors.

    Returns:
        ``precision``, ``reference_precision``; ``cka_K`` and ``cka_R`` with ``..._error``;
        ``allowed``; ``rounding_share``, the median over inputs of the variance that rounding adds,
        over that of the loss; ``mean_shift`` of the losses in their unit; ``cka_halves``, the CKA
        of R of two halves of the draws of the reference, which is what sampling leaves uncertain
        beside; ``seconds_a_draw`` of both, ``speedup``; and the size of the traces.

    Raises:
        TraceError: the traces are not of the same draws, or a chain diverged.
    """
    for key in _SAME:
        here, there = reference.attributes.get(key), other.attributes.get(key)
        if here != there:
            raise TraceError(
                f"traces differ in {key} ({here}, {there}); compare runs that differ in "
                "eval_precision alone"
            )
    batches = [trace.dataset["batch_loss"].values for trace in (reference, other)]
    if reference.losses.shape != other.losses.shape or not np.array_equal(*batches, equal_nan=True):
        raise TraceError(
            "traces are not of the same draws: their minibatch losses differ; sample both on one "
            "machine with as many threads, chains and draws"
        )
    losses = [trace.losses.astype(np.float64) for trace in (reference, other)]
    rounding = losses[1] - losses[0]

    def of_kernel(draws: np.ndarray) -> float:
        return cka(*(covariance(part[:, draws]) for part in losses))

    def of_correlation(draws: np.ndarray) -> float:
        return cka(*(normalize(covariance(part[:, draws])) for part in losses))

    count = losses[0].shape[1]
    result = {
        "precision": _evaluated(other),
        "reference_precision": _evaluated(reference),
        "threshold": threshold,
    }
    for name, statistic in (("cka_K", of_kernel), ("cka_R", of_correlation)):
        result[name] = statistic(np.arange(count))
        result[f"{name}_error"] = jackknife_error(count, blocks, statistic)
    halves = [normalize(covariance(losses[0][:, start::2])) for start in (0, 1)]
    varying = losses[0].var(axis=(0, 1)) > 0
    shares = rounding.var(axis=(0, 1))[varying] / losses[0].var(axis=(0, 1))[varying]
    seconds = [
        trace.attributes["seconds"] / trace.attributes["seconds_draws"]
        for trace in (reference, other)
    ]
    return result | {
        "allowed": bool(min(result["cka_K"], result["cka_R"]) >= threshold),
        "cka_halves": cka(*halves),
        "rounding_share": float(np.median(shares)),
        "mean_shift": float(rounding.mean()),
        "seconds_a_draw": seconds[1],
        "reference_seconds_a_draw": seconds[0],
        "speedup": seconds[0] / seconds[1],
        "chains": losses[0].shape[0],
        "draws": count,
        "inputs": losses[0].shape[2],
    }


def _evaluated(trace: LossTrace) -> str:
    return trace.attributes.get("eval_precision", trace.attributes["precision"])
