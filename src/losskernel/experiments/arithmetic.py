"""Experiment 1: does the kernel separate addition from division in one network?

Section 4.1 of the paper. Each function is one rule of ``workflow/rules/arithmetic.smk``; a trained
network, a trace and a row of measurements a seed, then tables over seeds.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from losskernel.data.arithmetic import (
    ADDITION,
    DIVISION,
    ArithmeticTable,
    modular_table,
    probe_subset,
    train_test_split,
)
from losskernel.diagnostics import convergence, noise_floor, split_half_cka
from losskernel.errors import LossKernelError
from losskernel.files import atomic_path
from losskernel.geometry import kernel_distances, nearest_neighbors, umap_embedding
from losskernel.kernel import correlation, covariance
from losskernel.models.transformer import ArithmeticTransformer
from losskernel.probe import Probe
from losskernel.progress import bar
from losskernel.sampling import sample_losses
from losskernel.separation import pair_auc, pair_blocks
from losskernel.trace import LossTrace
from losskernel.training import TrainingSettings, evaluate
from losskernel.training import train as train_classifier

KEY = ("group", "training_seed", "sampling_seed")
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


def _model(network: dict, seed: int = 0) -> ArithmeticTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ArithmeticTransformer(**network)


def _tables(network: dict, share: float, seed: int) -> tuple[ArithmeticTable, ArithmeticTable]:
    table = modular_table(network["prime"], network["shared_operands"], network["shared_outputs"])
    return train_test_split(table, share, seed)


def train(settings: dict, seed: int, output: Path, output_log: Path) -> None:
    """Train one network on both tasks; weights, and training history with the final accuracies.

    Raises:
        LossKernelError: a task is not answered with 100 % training accuracy at the end.
    """
    network, training = settings["network"], settings["training"]
    kept, held_out = _tables(network, settings["train_share"], seed)
    model = _model(network, seed)
    history = train_classifier(model, kept.inputs, kept.targets, TrainingSettings(**training), seed)
    result = {"seed": seed, "step": history.step, "loss": history.loss}
    for name, table in (("train", kept), ("test", held_out)):
        for task_name, task in (("addition", ADDITION), ("division", DIVISION)):
            of_task = table.task == task
            _, accuracy = evaluate(model, table.inputs[of_task], table.targets[of_task])
            result[f"{name}_accuracy_{task_name}"] = None if np.isnan(accuracy) else accuracy
            if name == "train" and accuracy < 1:
                raise LossKernelError(
                    f"arithmetic seed {seed}: training accuracy on {task_name} is {accuracy:.4f}, "
                    "not 1, after the last step; raise arithmetic.training.steps"
                )
    with atomic_path(output_log) as temporary:
        temporary.write_text(json.dumps(result))
    with atomic_path(output) as temporary:
        save_file(model.state_dict(), temporary)


def sample(
    settings: dict,
    weights: Path,
    training_seed: int,
    sampling_seed: int,
    group: str,
    output: Path,
) -> None:
    """Sample the probe distribution around one trained network, into a loss trace.

    A group names the parameters that are perturbed and may have a probe of its own. Gradients come
    from the network's training pairs; the probe inputs are drawn from both tasks.
    """
    network, chosen = settings["network"], settings["groups"][group]
    model = _model(network)
    model.load_state_dict(load_file(weights))
    kept, _ = _tables(network, settings["train_share"], training_seed)
    inputs = probe_subset(kept, settings["probe_inputs"], training_seed)
    trace = sample_losses(
        model,
        (kept.inputs, kept.targets),
        Probe(**chosen.get("probe", settings["probe"])),
        probe_data=(inputs.inputs, inputs.targets),
        parameters=chosen["parameters"],
        seed=sampling_seed,
        input_coords={name: getattr(inputs, name).numpy() for name in ("task", "a", "b")},
        **settings["sampling"],
    )
    trace.dataset.attrs |= {
        "training_seed": training_seed,
        "sampling_seed": sampling_seed,
        "group": group,
        "network": json.dumps(network),
    }
    trace.save(output)


def _measurements(trace: LossTrace) -> dict:
    losses, task = trace.losses, trace.coordinate("task")
    k, r = covariance(losses), correlation(losses)
    draws = losses.shape[1]
    checks = convergence(losses[:, :, ::10])  # a tenth of the inputs tells, at a tenth of the time
    row = {f"auc_{name}": pair_auc(score(k, r), task) for name, score in SCORES.items()}
    # The null: the same scores under a random split of the inputs into two groups of equal size.
    shuffled = np.random.default_rng(0).permutation(task)
    row |= {f"null_{name}": pair_auc(score(k, r), shuffled) for name, score in SCORES.items()}
    for symbol, matrix in (("R", r), ("K", k)):
        blocks = pair_blocks(matrix, task)
        for pair, kinds in PAIRS.items():
            row[f"{symbol}_mean_{pair}"] = blocks[kinds].mean()
            row[f"{symbol}_sd_{pair}"] = blocks[kinds].std()
    return row | {
        "noise_floor": noise_floor(losses),
        "split_half_cka": split_half_cka(losses, [draws // 2])[0],
        "initial_loss": trace.initial_loss.mean(),
        "mean_loss": losses.mean(),
        "drift": checks.drift,
        "drift_error": checks.drift_error,
        "median_ess": np.median(checks.ess),
        "median_rhat": np.median(checks.rhat),
        "chains": losses.shape[0],
        "diverged": int(trace.diverged.sum()),
        "draws": draws,
        "inputs": losses.shape[2],
        "seconds": trace.attributes["seconds"],
    }


def measure(traces: list[Path], histories: list[Path], output: Path, output_summary: Path) -> None:
    """Separation, R by pair of tasks and convergence of every trace; mean and spread over seeds.

    The spread ``sd`` is the standard deviation over training seeds of the mean over sampling seeds:
    the sampling seeds of one network are not independent replications of training. ``sd_sampling``
    is the standard deviation over sampling seeds within a network.
    """
    rows = []
    for path in bar(traces, "traces", unit="trace"):
        trace = LossTrace.load(path)
        key = {name: trace.attributes[name] for name in KEY}
        rows.append(key | _measurements(trace))
    history = pd.DataFrame([json.loads(path.read_text()) for path in histories])
    accuracies = history.drop(columns=["step", "loss"]).rename(columns={"seed": "training_seed"})
    table = pd.DataFrame(rows).merge(accuracies, on="training_seed", validate="many_to_one")
    values = [name for name in table if name not in KEY]
    by_network = table.groupby(["group", "training_seed"], sort=False)[values]
    means, spreads = by_network.mean(), by_network.std(ddof=1)
    summary = pd.concat(
        {
            "mean": means.groupby("group", sort=False).mean(),
            "sd": means.groupby("group", sort=False).std(ddof=1),
            "sd_sampling": spreads.groupby("group", sort=False).mean(),
        },
        names=["statistic"],
    )
    summary["networks"] = table["training_seed"].nunique()
    for frame, path, index in ((table, output, False), (summary, output_summary, True)):
        with atomic_path(path) as temporary:
            frame.to_csv(temporary, index=index)


def kernel(trace: Path, settings: dict, output: Path) -> None:
    """What figure 3 shows of one trace: K and R ordered by task, and the embedding."""
    loaded = LossTrace.load(trace)
    losses = loaded.losses
    r = correlation(losses)
    order = np.lexsort([loaded.coordinate(name) for name in ("b", "a", "task")])
    graph = nearest_neighbors(kernel_distances(r), settings["neighbors"])
    arrays = {
        "K": covariance(losses)[np.ix_(order, order)].astype(np.float32),
        "R": r[np.ix_(order, order)].astype(np.float32),
        "embedding": umap_embedding(*graph, seed=settings["seed"])[order],
        "noise_floor": noise_floor(losses),
    }
    arrays |= {name: loaded.coordinate(name)[order] for name in ("task", "a", "b")}
    with atomic_path(output) as temporary:
        np.savez_compressed(temporary, **arrays)


def search(settings: dict, setup: dict, seed: int, output: Path) -> None:
    """One row of the regime search: train with ``setup``, sample every probe setting, one table."""
    changes = {
        key: settings[key] | value if isinstance(value, dict) else value
        for key, value in setup["changes"].items()
    }
    settings = settings | changes
    network = settings["network"]
    kept, _ = _tables(network, settings["train_share"], seed)
    model = _model(network, seed)
    history = train_classifier(
        model, kept.inputs, kept.targets, TrainingSettings(**settings["training"]), seed
    )
    inputs = probe_subset(kept, settings["probe_inputs"], seed)
    rows = []
    for probe in (Probe(**values) for values in settings["probes"]):
        row = {"setup": setup["name"], "training_seed": seed, **asdict(probe)}
        row |= {"train_accuracy": history.accuracy[-1], "steps": history.step[-1]}
        try:
            trace = sample_losses(
                model,
                (kept.inputs, kept.targets),
                probe,
                probe_data=(inputs.inputs, inputs.targets),
                seed=seed,
                input_coords={"task": inputs.task.numpy()},
                **settings["sampling"],
            )
            row |= _measurements(trace)
        except LossKernelError as error:  # a regime without a kernel is a result of the search
            row["failed"] = str(error)
        rows.append(row)
    with atomic_path(output) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def stack(rows: list[Path], output: Path) -> None:
    """Join the tables of the search."""
    with atomic_path(output) as temporary:
        pd.concat([pd.read_csv(row) for row in rows], ignore_index=True).to_csv(
            temporary, index=False
        )
