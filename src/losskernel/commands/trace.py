"""Tools for any saved trace, also a user's own: what it holds, its kernel, neighbors, variances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from losskernel.diagnostics.verdict import verdict
from losskernel.files import atomic_path
from losskernel.kernel.alignment import pair_correlation
from losskernel.kernel.covariance import correlation, covariance, self_covariance
from losskernel.kernel.neighbors import nearest_neighbors
from losskernel.kernel.noise import noise_floor
from losskernel.sampling.journal import JournalHead
from losskernel.sampling.journal_reader import journal_losses
from losskernel.trace import LossTrace

Center = Literal["pooled", "chain", "draw"]


def summary(trace: Path) -> None:
    """Print shape, settings and convergence of a trace, and a verdict on them.

    Args:
        trace: the saved trace (.nc).
    """
    loaded = LossTrace.load(trace)
    losses = loaded.losses
    chains, draws, inputs = losses.shape
    judged = verdict(loaded)
    checks = judged.convergence
    print(f"chains {chains} (and {int(loaded.diverged.sum())} diverged)")
    print(f"draws {draws} a chain; inputs {inputs}")
    print(f"mean loss {losses.mean():.4g} (trained weights {loaded.initial_loss.mean():.4g})")
    if judged.localization is not None:
        reached = judged.localization
        print(f"gamma {reached.gamma:.4g} named, {reached.effective:.4g} effective")
        if reached.relaxation:
            print(f"length {reached.length:.3g} relaxations of {reached.relaxation:.3g} steps")
    if checks is None:
        print(f"{chains * draws} independent draws")
    else:
        print(f"drift {checks.drift:+.3g} ± {checks.drift_error:.2g} from first to second half")
        print(f"effective sample size {_median(checks.ess):.0f} (median input)")
        print(f"split R-hat {_median(checks.rhat):.3f} (median input; near 1 is converged)")
    print(f"noise floor of R {judged.floor:.4f}; sd of R {judged.spread:.4f}")
    shown = ("probe", "seed", "batch_size", "steps_per_draw", "device", "weights_sha256")
    for name in (*shown, "left_out"):
        print(f"{name} {loaded.attributes.get(name, '-')}")
    print(f"verdict: {judged.level}")
    for finding in judged.findings:
        print(f"  {finding}")


def peek(journal: Path, output: Path | None = None) -> None:
    """Print what a running (or killed) run has sampled so far; with ``output`` write its kernel.

    The kernel is K and R of the draws so far, as ``losskernel trace kernel`` writes them. The
    journal is only read.

    Args:
        journal: folder of the run.
        output: where to write its kernel (.npz), if at all.
    """
    losses = journal_losses(journal)
    diverged = ~np.isfinite(losses).all(axis=(1, 2))
    chains, draws, inputs = losses.shape
    print(f"draws so far {draws} a chain; inputs {inputs}")
    print(f"chains {chains - diverged.sum()} (and {diverged.sum()} diverged)")
    losses = losses[~diverged]
    print(f"mean loss {losses.mean(dtype=float):.4g} (last draw {losses[:, -1].mean():.4g})")
    if losses.shape[0] * draws > 1:
        print(
            f"noise floor of R {noise_floor(losses):.4f}; sd of R {pair_correlation(losses)[1]:.4f}"
        )
    if output is not None:
        _write_kernel(losses, output, "pooled", JournalHead.read(journal).settings)


def kernel(trace: Path, output: Path, center: Center = "pooled") -> None:
    """Write K and R, each (input, input), as an .npz archive.

    Args:
        trace: the saved trace (.nc).
        output: the archive (.npz).
        center: mean that is subtracted: over all chains and draws (pooled), each chain's own, or
            each draw's over the chains.
    """
    loaded = LossTrace.load(trace)
    _write_kernel(loaded.losses, output, center, json.loads(loaded.identity))


def _write_kernel(losses: np.ndarray, output: Path, center: str, identity: dict) -> None:
    matrices = {"K": covariance(losses, center), "R": correlation(losses, center)}
    matrices["identity"] = np.array(json.dumps(identity, sort_keys=True))
    # An open file, as NumPy appends .npz to a path that ends otherwise.
    with atomic_path(output) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **matrices)


def neighbors(trace: Path, output: Path, k: int = 10, label: str | None = None) -> None:
    """Write the k nearest inputs of each input by R as CSV.

    Args:
        trace: the saved trace (.nc).
        output: the table (.csv).
        k: neighbors of each input.
        label: coordinate of the trace; inputs that are equal in it are left out.
    """
    loaded = LossTrace.load(trace)
    labels = None if label is None else loaded.coordinate(label)
    indices, values = nearest_neighbors(loaded.losses, k, labels)
    names = _names(loaded)
    rows = pd.DataFrame(
        {
            "input": np.repeat(names, k),
            "rank": np.tile(np.arange(1, k + 1), len(names)),
            "neighbor": names[indices.ravel()],
            "R": values.ravel(),
        }
    )
    with atomic_path(output) as temporary:
        rows.to_csv(temporary, index=False)


def variances(trace: Path, output: Path) -> None:
    """Write each input's self-covariance and losses as CSV, largest self-covariance first.

    Args:
        trace: the saved trace (.nc).
        output: the table (.csv).
    """
    loaded = LossTrace.load(trace)
    losses = loaded.losses
    rows = pd.DataFrame(
        {
            "input": _names(loaded),
            "self_covariance": self_covariance(losses),
            "mean_loss": losses.mean(axis=(0, 1)),
            "initial_loss": loaded.initial_loss,
        }
    ).sort_values("self_covariance", ascending=False, kind="stable")
    with atomic_path(output) as temporary:
        rows.to_csv(temporary, index=False)


def _median(values: np.ndarray) -> float:
    """Median of the inputs for which there is a value; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else np.nan


def _names(trace: LossTrace) -> np.ndarray:
    coordinate = "name" if "name" in trace.dataset.coords else "input"
    return trace.dataset[coordinate].values
