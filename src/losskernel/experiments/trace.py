"""Tools for any saved trace, also a user's own: what it holds, its kernel, neighbors, variances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.diagnostics import convergence, noise_floor
from losskernel.files import atomic_path
from losskernel.kernel import correlation, covariance, nearest_neighbors, self_covariance
from losskernel.trace import LossTrace


def summary(trace: Path) -> None:
    """Print shape, settings and convergence of a trace."""
    loaded = LossTrace.load(trace)
    losses = loaded.losses
    chains, draws, inputs = losses.shape
    checks = convergence(losses)
    print(f"chains {chains} (and {int(loaded.diverged.sum())} diverged)")
    print(f"draws {draws} a chain; inputs {inputs}")
    print(f"mean loss {losses.mean():.4g} (trained weights {loaded.initial_loss.mean():.4g})")
    print(f"drift {checks.drift:+.3g} ± {checks.drift_error:.2g} from first to second half")
    print(f"effective sample size {np.median(checks.ess):.0f} (median input)")
    print(f"split R-hat {np.median(checks.rhat):.3f} (median input; near 1 is converged)")
    print(f"noise floor of R {noise_floor(losses):.4f}")
    for name in ("probe", "seed", "batch_size", "steps_per_draw", "device", "weights_sha256"):
        print(f"{name} {loaded.attributes.get(name, '-')}")


def kernel(trace: Path, output: Path, center: str = "pooled") -> None:
    """Write K and R, each (input, input), as an .npz archive."""
    losses = LossTrace.load(trace).losses
    matrices = {"K": covariance(losses, center), "R": correlation(losses, center)}
    # An open file, as NumPy appends .npz to a path that ends otherwise.
    with atomic_path(output) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **matrices)


def neighbors(trace: Path, output: Path, k: int = 10, label: str | None = None) -> None:
    """Write the k nearest inputs of each input as CSV; inputs of equal ``label`` left out."""
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
    """Write each input's self-covariance and losses as CSV, largest self-covariance first."""
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


def _names(trace: LossTrace) -> np.ndarray:
    coordinate = "name" if "name" in trace.dataset.coords else "input"
    return trace.dataset[coordinate].values
