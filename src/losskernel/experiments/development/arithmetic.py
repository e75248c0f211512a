"""Experiment 5 on modular arithmetic: kernel and learning coefficient along training.

A network of experiment 1, seen at checkpoints from initialization through memorization to
generalization. Each function is one rule of ``workflow/rules/development.smk``.

Two probes at every checkpoint, with the same inputs and the same random numbers: that of
experiment 1 for the kernel, drawn directly, with its gamma from the same rise of the mean loss at
every checkpoint; and one tempered by the loss for the local learning coefficient.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.data.arithmetic import ADDITION, DIVISION, ArithmeticTable
from losskernel.experiments.arithmetic.setup import (
    activations,
    draw,
    gamma_of_rise,
    loss_gram,
    network_model,
    probe_inputs,
    tables,
)
from losskernel.experiments.arithmetic.statistics import alignments, limit_aucs, measurements
from losskernel.files import atomic_path, read_npz, write_csv, write_npz
from losskernel.kernel.covariance import correlation
from losskernel.kernel.learning_coefficient import local_learning_coefficient
from losskernel.kernel.maps import umap_embedding
from losskernel.kernel.neighbors import kernel_distances, neighbors_by_distance
from losskernel.progress import bar
from losskernel.sampling.probe import Probe
from losskernel.sampling.sample import sample_losses
from losskernel.trace import LossTrace
from losskernel.training.checkpoints import Checkpoint, checkpoint_path
from losskernel.training.train import TrainingSettings, evaluate
from losskernel.training.train import train as train_classifier


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
    write_csv(pd.DataFrame(rows), output)


def sample(
    settings: dict,
    seed: int,
    folder: Path,
    output: list[Path],
    output_coefficient: list[Path],
    output_limits: list[Path],
) -> None:
    """A trace for the kernel, one for the learning coefficient and what has no noise, a checkpoint.

    ``output_limits`` hold the Gram matrix of the loss gradients and the activations of each layer.
    """
    kept, _ = tables(settings["network"], settings["train_share"], seed)
    inputs = probe_inputs(settings, seed)
    model = network_model(settings["network"], seed)
    places = zip(settings["checkpoints"], output, output_coefficient, output_limits, strict=True)
    for step, trace_path, coefficient_path, limit_path in bar(
        list(places), "checkpoints", unit="checkpoint"
    ):
        model.load_state_dict(Checkpoint.load(checkpoint_path(folder, step)).model)
        attributes = {"training_seed": seed, "step": step}
        chosen = settings["sampling_seed"]
        gamma = gamma_of_rise(model, inputs, settings["rise"], settings["directions"], chosen)
        trace = draw(model, inputs, gamma, settings["draws"], chosen, progress=False)
        trace.dataset.attrs |= attributes
        trace.save(trace_path)
        exact = {"gram": loss_gram(model, inputs, "all", limit_path.parent)}
        with atomic_path(limit_path) as temporary:
            np.savez(temporary, **exact, **activations(model, inputs))
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
    """One row a checkpoint: accuracies, separation and R by relation, learning coefficient.

    Columns as of :func:`losskernel.experiments.arithmetic.statistics.measurements`;
    ``limit_auc_corrected`` is that of the exact limit, ``cka_*`` the noise-corrected CKA of R with
    the activations of each layer. ``output_maps`` holds a map of the inputs at every checkpoint of
    the first network, by signed R, each begun at the one before.
    """
    accuracies = pd.concat([pd.read_csv(path) for path in history]).set_index(
        ["training_seed", "step"]
    )
    rows, maps, before = [], [], None
    places = zip(traces, coefficients, limits, strict=True)
    for trace_path, coefficient_path, limit_path in bar(list(places), "traces", unit="trace"):
        trace, other = LossTrace.load(trace_path), LossTrace.load(coefficient_path)
        layers = read_npz(limit_path)
        limit = limit_aucs(layers.pop("gram"), trace.coordinate("task"))
        key = {name: int(trace.attributes[name]) for name in ("training_seed", "step")}
        row = key | accuracies.loc[tuple(key.values())].to_dict() | measurements(trace)
        row |= {"gamma": Probe.read(trace.attributes["probe"]).gamma}
        row |= {f"limit_{name}": value for name, value in limit.items()}
        rows.append(row | alignments(trace, layers) | _coefficient_row(other))
        if key["training_seed"] == int(accuracies.index[0][0]):
            distances = kernel_distances(correlation(trace.losses))
            graph = neighbors_by_distance(distances, settings["neighbors"])
            before = umap_embedding(*graph, seed=settings["seed"], init=before)
            maps.append((key["step"], before))
    write_csv(pd.DataFrame(rows), output)
    write_npz(
        output_maps,
        steps=np.array([step for step, _ in maps]),
        maps=np.stack([embedding for _, embedding in maps]),
        task=trace.coordinate("task"),
    )


def _coefficient_row(trace: LossTrace) -> dict:
    probe, losses = json.loads(trace.attributes["probe"]), trace.losses
    value, error = local_learning_coefficient(losses, trace.initial_loss, probe["n_beta"])
    first, second = np.array_split(losses.mean(axis=(0, 2)), 2)
    return {
        "learning_coefficient": value,
        "learning_coefficient_error": error,
        "coefficient_rise": losses.mean() - trace.initial_loss.mean(),
        "coefficient_drift": second.mean() - first.mean(),
        "coefficient_chains": losses.shape[0],
    }
