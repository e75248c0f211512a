"""What the control variate gains: CKA to a reference against draws, from high to low localization.

Each function is a rule of ``workflow/rules/gain.smk``. The reference is the exact limit, where the
losses are linear in the displacement of the weights; a long run of other draws, without a control
variate, tells how far that holds. For a trace without such a run its second half is the reference.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from losskernel.data.arithmetic import probe_subset
from losskernel.errors import TraceError
from losskernel.experiments.arithmetic.setup import (
    network_model,
    sample_with_linear_part,
    tables,
)
from losskernel.experiments.gain.statistics import (
    ALONE,
    WITH,
    cka_gain,
    draws_saved,
    gain_curve,
    limit_draws_cka,
    limit_slope,
    reference_ceiling,
)
from losskernel.files import atomic_path
from losskernel.gradients.linear_response import gram
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.kernel.alignment import cka
from losskernel.kernel.control_variate import limit_kernel, normalize
from losskernel.kernel.covariance import correlation
from losskernel.sampling.probe import Probe
from losskernel.sampling.sample import sample_losses
from losskernel.trace import LossTrace

LIMIT, RUN, HALF = "exact limit", "long run", "second half"


def sample(
    settings: dict,
    probe: dict,
    weights: Path,
    training_seed: int,
    output: Path,
    output_reference: Path,
    output_limit: Path,
) -> None:
    """A trace with linear parts, a longer one of other noise, and the limit's Gram matrix.

    Of one trained arithmetic network at one probe.
    """
    model = network_model(settings["network"])
    model.load_state_dict(load_file(weights))
    kept, _ = tables(settings["network"], settings["train_share"], training_seed)
    inputs = probe_subset(kept, settings["probe_inputs"], training_seed)
    chosen, sampling = Probe(**probe), settings["sampling"]
    seed, other_seed = settings["seeds"]
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        gradients = per_sample_gradients(
            model,
            (inputs.inputs, inputs.targets),
            Path(scratch) / "gradients",
            parameters=settings["parameters"],
        )
        sample_with_linear_part(
            model, kept, inputs, chosen, sampling, gradients, seed, Path(scratch)
        ).save(output)
        with atomic_path(output_limit) as temporary:
            np.savez_compressed(temporary, gram=gram(gradients).astype(np.float32))
    sample_losses(
        model,
        (kept.inputs, kept.targets),
        chosen,
        probe_data=(inputs.inputs, inputs.targets),
        parameters=settings["parameters"],
        seed=other_seed,
        **sampling | {"draws": settings["reference_draws"]},
    ).save(output_reference)


def measure(
    name: str,
    trace: Path,
    limit: Path,
    settings: dict,
    output: Path,
    output_summary: Path,
    reference: Path | None = None,
) -> None:
    """The curves of one trace, a row a number of draws, and what sums them up, a row a reference.

    The control variate is said to help where it saves the setting's ``helps_from`` of the draws,
    and raises the CKA to the reference, at all draws, by more than two standard errors.

    Args:
        name: of the model, for the tables.
        trace: with the linear part of every loss.
        limit: Gram matrix of its inputs' loss gradients.
        settings: ``counts`` of draws, ``sets`` of each, ``blocks`` of the jackknife,
            ``simulations`` of draws of the limit, ``helps_from`` and ``seed``.
        output: the curves, CSV.
        output_summary: CSV.
        reference: a trace of other draws; without, the second half of the draws of ``trace``.
    """
    loaded = LossTrace.load(trace)
    if "linear" not in loaded.dataset:
        raise TraceError(f"{trace}: has no linear part; sample it with the exact limit")
    losses, linear = loaded.losses, loaded.dataset["linear"].values[~loaded.diverged]
    if reference is None:
        kind, middle = HALF, losses.shape[1] // 2
        long_run = losses[:, -middle:]
        losses, linear = losses[:, :middle], linear[:, :middle]
    else:
        kind, long_run = RUN, LossTrace.load(reference).losses
    with np.load(limit) as stored:
        matrix = stored["gram"]
    probe = Probe.read(loaded.attributes["probe"])
    # The law of the displacements without the loss, which the coupled linear parts have exactly.
    known = limit_kernel(matrix, probe.free)
    total, blocks = losses.shape[0] * losses.shape[1], settings["blocks"]
    counts = [count for count in settings["counts"] if count < total] + [total]
    slope, slope_error = limit_slope(losses, known, blocks)
    allowed = limit_draws_cka(known, total, settings["simulations"], settings["seed"])
    rest = (losses - linear).var(axis=(0, 1), dtype=float).sum()
    key = {"model": name, "gamma": probe.gamma, "n_beta": probe.n_beta}
    shared = {
        "draws": total,
        "inputs": len(known),
        "linear_share": 1 - rest / losses.var(axis=(0, 1), dtype=float).sum(),
        "loss_rise": losses.mean(dtype=float) - loaded.initial_loss.mean(dtype=float),
        "slope": slope,
        "slope_error": slope_error,
        "cka_allowed": allowed.mean(),
    }
    references = {
        LIMIT: (normalize(known), 1.0),
        kind: (correlation(long_run), reference_ceiling(*_halves(long_run))),
    }
    curves, summaries = [], []
    for reference_name, (target, ceiling) in references.items():
        rows = gain_curve(losses, linear, known, target, counts, settings["sets"], settings["seed"])
        curves += [key | {"reference": reference_name} | row for row in rows]
        table = pd.DataFrame(rows).pivot(index="draws", columns="estimator", values="cka")
        saved, at_least = draws_saved(table.index, table[ALONE], table[WITH])
        gain, gain_error = cka_gain(losses, linear, known, target, blocks)
        summary = {
            "reference": reference_name,
            "ceiling": ceiling,
            "cka_limit": cka(references[LIMIT][0], target),
            "cka_alone": table[ALONE].iloc[-1],
            "cka_control_variate": table[WITH].iloc[-1],
            "cka_gain": gain,
            "cka_gain_error": gain_error,
            "helps": bool(saved >= settings["helps_from"] and gain > 2 * gain_error),
            "draws_saved": saved,
            "draws_saved_is_lower_bound": at_least,
        }
        summaries.append(key | summary | shared)
    for table, path in ((curves, output), (summaries, output_summary)):
        with atomic_path(path) as temporary:
            pd.DataFrame(table).to_csv(temporary, index=False)


def _halves(losses: np.ndarray) -> list[np.ndarray]:
    """Two sets of as many draws: alternate tenths of the run."""
    part = max(1, losses.shape[1] // 10)
    half = (np.arange(losses.shape[1]) // part) % 2
    count = min((half == 0).sum(), (half == 1).sum())
    return [losses[:, half == which][:, :count] for which in (0, 1)]


def join(curves: list[Path], summaries: list[Path], output: Path, output_summary: Path) -> None:
    """The tables of all traces, in one of curves and one of summaries."""
    for parts, path in ((curves, output), (summaries, output_summary)):
        joined = pd.concat([pd.read_csv(part) for part in parts])
        with atomic_path(path) as temporary:
            joined.to_csv(temporary, index=False)
