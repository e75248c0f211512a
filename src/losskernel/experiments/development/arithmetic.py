"""Experiment 5 on modular arithmetic: kernel and learning coefficient along training.

A network of experiment 1, seen at checkpoints from initialization through memorization to
generalization. Each function is one rule of ``workflow/rules/development.smk``.

Two probes at every checkpoint, with the same inputs and the same random numbers: that of
experiment 1, on its group of weights, for the kernel; and one on all weights for the local learning
coefficient. The first is in the linear limit, where the loss rises by nothing that could be
measured.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.data.arithmetic import ADDITION, DIVISION, ArithmeticTable, probe_subset
from losskernel.experiments.arithmetic.setup import network_model, sample_with_linear_part, tables
from losskernel.experiments.arithmetic.statistics import PAIRS, SCORES, estimate
from losskernel.files import atomic_path
from losskernel.gradients.linear_response import gram
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.learning_coefficient import local_learning_coefficient
from losskernel.kernel.maps import umap_embedding
from losskernel.kernel.neighbors import kernel_distances, neighbors_by_distance
from losskernel.progress import bar
from losskernel.sampling.probe import Probe
from losskernel.sampling.sample import sample_losses
from losskernel.semantics.separation import pair_auc, pair_blocks
from losskernel.trace import LossTrace
from losskernel.training.checkpoints import Checkpoint, checkpoint_path
from losskernel.training.train import TrainingSettings, evaluate
from losskernel.training.train import train as train_classifier

JACKKNIFE = 5  # blocks of draws


def train(settings: dict, seed: int, folder: Path, output: Path) -> None:
    """Train one network, its checkpoints in ``folder``; loss and accuracy at each as a table."""
    kept, held_out = tables(settings["network"], settings["train_share"], seed)
    model = network_model(settings["network"], seed)
    train_classifier(
        model,
        kept.inputs,
        kept.targets,
        TrainingSettings(**settings["training"]),
        seed,
        folder,
        settings["checkpoints"],
    )
    rows = []
    for step in settings["checkpoints"]:
        model.load_state_dict(Checkpoint.load(checkpoint_path(folder, step)).model)
        row: dict = {"training_seed": seed, "step": step}
        for part, table in (("train", kept), ("test", held_out)):
            row[f"{part}_loss"], row[f"{part}_accuracy"] = evaluate(
                model, table.inputs, table.targets
            )
            for name, task in (("addition", ADDITION), ("division", DIVISION)):
                chosen = table.task == task
                _, row[f"{part}_accuracy_{name}"] = evaluate(
                    model, table.inputs[chosen], table.targets[chosen]
                )
        rows.append(row)
    with atomic_path(output) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def sample(
    settings: dict,
    seed: int,
    folder: Path,
    output: list[Path],
    output_coefficient: list[Path],
    output_limits: list[Path],
) -> None:
    """A trace for the kernel, one for the learning coefficient and a Gram matrix a checkpoint."""
    kept, _ = tables(settings["network"], settings["train_share"], seed)
    inputs = probe_subset(kept, settings["probe_inputs"], seed)
    model = network_model(settings["network"], seed)
    places = zip(settings["checkpoints"], output, output_coefficient, output_limits, strict=True)
    for step, trace_path, coefficient_path, limit_path in bar(
        list(places), "checkpoints", unit="checkpoint"
    ):
        model.load_state_dict(Checkpoint.load(checkpoint_path(folder, step)).model)
        attributes = {"training_seed": seed, "step": step}
        with tempfile.TemporaryDirectory(dir=limit_path.parent) as scratch:
            gradients = per_sample_gradients(
                model,
                (inputs.inputs, inputs.targets),
                Path(scratch) / "gradients",
                parameters=settings["parameters"],
                progress=False,
            )
            trace = sample_with_linear_part(
                model,
                kept,
                inputs,
                Probe(**settings["probe"]),
                settings["sampling"] | {"progress": False},
                gradients,
                settings["sampling_seed"],
                Path(scratch),
            )
            limit = gram(gradients, progress=False)
        trace.dataset.attrs |= attributes
        trace.save(trace_path)
        with atomic_path(limit_path) as temporary:
            np.savez(temporary, gram=limit)
        trace = _coefficient_trace(settings, model, kept, inputs)
        trace.dataset.attrs |= attributes
        trace.save(coefficient_path)


def _coefficient_trace(
    settings: dict, model, kept: ArithmeticTable, inputs: ArithmeticTable
) -> LossTrace:
    chosen = settings["learning_coefficient"]
    return sample_losses(
        model,
        (kept.inputs, kept.targets),
        Probe(**chosen["probe"]),
        probe_data=(inputs.inputs, inputs.targets),
        seed=settings["sampling_seed"],
        progress=False,
        **chosen["sampling"],
    )


def measure(
    settings: dict,
    history: list[Path],
    traces: list[Path],
    coefficients: list[Path],
    limits: list[Path],
    output: Path,
    output_maps: Path,
) -> None:
    """One row a checkpoint: accuracies, AUC and R by pair of tasks, learning coefficient.

    ``_error`` columns are standard errors: of the AUC by a jackknife over draws, of the learning
    coefficient over chains. ``null_auc`` is that of a random split of the inputs, ``limit_auc``
    that of the exact limit. ``output_maps`` holds a map of the inputs at every checkpoint of the
    first network, by the magnitude of R, each begun at the one before.
    """
    accuracies = pd.concat([pd.read_csv(path) for path in history]).set_index(
        ["training_seed", "step"]
    )
    rows, maps, before = [], [], None
    places = zip(traces, coefficients, limits, strict=True)
    for trace_path, coefficient_path, limit_path in bar(list(places), "traces", unit="trace"):
        trace, other = LossTrace.load(trace_path), LossTrace.load(coefficient_path)
        with np.load(limit_path) as stored:
            limit = stored["gram"]
        key = {name: int(trace.attributes[name]) for name in ("training_seed", "step")}
        kernel, row = _kernel_row(trace, limit, settings["score"])
        rows.append(
            key | accuracies.loc[tuple(key.values())].to_dict() | row | _coefficient_row(other)
        )
        if key["training_seed"] == int(accuracies.index[0][0]):
            distances = kernel_distances(np.abs(normalize(kernel)))
            graph = neighbors_by_distance(distances, settings["neighbors"])
            before = umap_embedding(*graph, seed=settings["seed"], init=before)
            maps.append((key["step"], before))
    with atomic_path(output) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    with atomic_path(output_maps) as temporary:
        np.savez_compressed(
            temporary,
            steps=np.array([step for step, _ in maps]),
            maps=np.stack([embedding for _, embedding in maps]),
            task=trace.coordinate("task"),
        )


def _kernel_row(trace: LossTrace, limit: np.ndarray, score: str) -> tuple[np.ndarray, dict]:
    task, of = trace.coordinate("task"), SCORES[score]

    def auc(kernel: np.ndarray, groups=task) -> float:
        return pair_auc(of(kernel, normalize(kernel)), groups)

    kernel, floor = estimate(trace, limit)
    draws = np.arange(trace.dataset.sizes["draw"])
    without = []
    for block in np.array_split(draws, min(JACKKNIFE, len(draws) - 1)):
        part = LossTrace(trace.dataset.isel(draw=np.setdiff1d(draws, block)))
        without.append(auc(estimate(part, limit)[0]))
    row = {
        "score": score,
        "auc": auc(kernel),
        "auc_error": np.sqrt(len(without) - 1) * np.std(without),
        "null_auc": auc(kernel, np.random.default_rng(0).permutation(task)),
        "limit_auc": auc(limit),
        "noise_floor": floor,
    }
    blocks = pair_blocks(normalize(kernel), task)
    for pair, kinds in PAIRS.items():
        row |= {f"R_mean_{pair}": blocks[kinds].mean(), f"R_sd_{pair}": blocks[kinds].std()}
    return kernel, row


def _coefficient_row(trace: LossTrace) -> dict:
    probe, losses = json.loads(trace.attributes["probe"]), trace.losses
    value, error = local_learning_coefficient(losses, trace.initial_loss, probe["n_beta"])
    first, second = np.array_split(losses.mean(axis=(0, 2)), 2)
    return {
        "learning_coefficient": value,
        "learning_coefficient_error": error,
        "rise": losses.mean() - trace.initial_loss.mean(),
        "drift": second.mean() - first.mean(),
        "inputs": losses.shape[2],
        "coefficient_chains": losses.shape[0],
    }
