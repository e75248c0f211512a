"""Sampling a model of one's own, and what a trace holds: verdict, kernel, neighbors, variances."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from losskernel.commands import own
from losskernel.diagnostics.verdict import verdict
from losskernel.errors import ConfigError
from losskernel.files import write_csv, write_npz
from losskernel.kernel.alignment import pair_correlation
from losskernel.kernel.covariance import correlation, covariance, self_covariance
from losskernel.kernel.neighbors import nearest_neighbors
from losskernel.kernel.noise import noise_floor
from losskernel.sampling.journal import JournalHead, journal_losses
from losskernel.trace import LossTrace

Center = Literal["pooled", "chain", "draw"]
log = logging.getLogger(__name__)


def sample(
    model: str,
    inputs: Path,
    output: Path,
    weights: str = "pretrained",
    gamma: float | None = None,
    n_beta: float = 0.0,
    step_size: float | None = None,
    rise: float | None = None,
    chains: int = 4,
    draws: int = 200,
    burn_in: int = 0,
    steps_per_draw: int = 1,
    batch_size: int = 256,
    eval_batch_size: int = 1000,
    parameters: str = "trainable",
    journal: Path | None = None,
    displacements: bool = False,
    workers: int | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> None:
    """Record the losses of a model of your own around its weights, as a trace.

    With gamma alone the draws are independent; with n_beta and a step size they are chains of SGLD.
    Called again with a journal, a run that was killed goes on.

    Args:
        model: <file>.py:<function> that returns your model, torchvision:<name> or timm:<name>.
        inputs: NumPy archive (.npz) of two arrays, inputs and targets; others with one value an
            input, such as label or name, are kept with the trace.
        output: the trace (.nc).
        weights: file of weights, or "pretrained": those that the function brings.
        gamma: localization, one over the variance of a weight. Without it a pilot chooses it, and
            the step size, so that the mean loss rises by as much as rise says.
        n_beta: inverse temperature; above 0 adds the gradient of the loss.
        step_size: of SGLD, for n_beta above 0; goes with gamma.
        rise: of the mean loss, for the pilot; a tenth of the mean loss if not given.
        chains: independent chains, or groups of independent draws.
        draws: recorded draws a chain.
        burn_in: first steps of a chain, not recorded.
        steps_per_draw: steps of a chain from one draw to the next.
        batch_size: inputs a gradient step.
        eval_batch_size: inputs a forward pass when losses are recorded.
        parameters: a pattern of the parameters that are perturbed, "trainable" or "all".
        journal: folder from which a killed run goes on.
        displacements: keep them in the journal, for losskernel limit linear: 2 bytes a weight, draw
            and chain.
        workers: processes that share the draws or chains.
        device: cpu or cuda.
        seed: of the noise.
    """
    from losskernel.sampling.pilot import propose_probe
    from losskernel.sampling.probe import Probe
    from losskernel.sampling.sample import sample_losses

    if gamma is None and step_size is not None:
        raise ConfigError("step_size: give gamma too, or neither and a pilot chooses them")
    if gamma is not None and rise is not None:
        raise ConfigError("rise: is for the pilot, which chooses gamma; leave out one of the two")
    probe = None if gamma is None else Probe(n_beta, gamma, step_size)
    network, data, known = own(model, weights, inputs, seed)
    options = {
        "batch_size": batch_size,
        "eval_batch_size": eval_batch_size,
        "parameters": parameters,
        "device": device,
        "seed": seed,
    }
    if probe is None:
        pilot = propose_probe(network, data, n_beta, rise, **options)
        log.info("pilot: %s", pilot.found)
        probe = pilot.probe
    trace = sample_losses(
        network,
        data,
        probe,
        chains=chains,
        draws=draws,
        burn_in=burn_in,
        steps_per_draw=steps_per_draw,
        journal=journal,
        displacements=displacements,
        workers=workers,
        input_coords=known,
        **options,
    )
    trace.save(output)


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
        if name in loaded.attributes:
            print(f"{name} {loaded.attributes[name]}")
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
    write_npz(output, **matrices)


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
    write_csv(rows, output)


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
    write_csv(rows, output)


def _median(values: np.ndarray) -> float:
    """Median of the inputs for which there is a value; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else np.nan


def _names(trace: LossTrace) -> np.ndarray:
    coordinate = "name" if "name" in trace.dataset.coords else "input"
    return trace.dataset[coordinate].values
