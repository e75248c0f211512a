"""Experiment 1: does the kernel separate addition from division in one network?

Section 4.1 of the paper. Each function is one rule of ``workflow/rules/arithmetic.smk``: a trained
network, traces and the exact high-gamma limit, a row of measurements a trace, then tables over
seeds.

Traces carry the linear part of every loss (:mod:`losskernel.linear_response`), so that the kernel
is estimated with its control variate; the plain estimate and the limit stand beside it.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from losskernel.control_variate import (
    control_variate_kernel,
    control_variate_null,
    limit_kernel,
    normalize,
)
from losskernel.data.arithmetic import (
    ADDITION,
    DIVISION,
    ArithmeticTable,
    modular_table,
    probe_subset,
    train_test_split,
)
from losskernel.diagnostics import cka, convergence, noise_floor, split_half_cka
from losskernel.errors import LossKernelError
from losskernel.files import atomic_path
from losskernel.geometry import kernel_distances, nearest_neighbors, umap_embedding
from losskernel.kernel import covariance
from losskernel.linear_response import gram, linear_part, write_coupled_displacements
from losskernel.models.transformer import ArithmeticTransformer
from losskernel.per_sample_gradients import Gradients, per_sample_gradients
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
    result = {"seed": seed, "step": history.step, "loss": history.loss, "accuracy": {}}
    for name, table in (("train", kept), ("test", held_out)):
        for task_name, task in (("addition", ADDITION), ("division", DIVISION)):
            of_task = table.task == task
            _, accuracy = evaluate(model, table.inputs[of_task], table.targets[of_task])
            if not np.isnan(accuracy):
                result["accuracy"][f"{name}_accuracy_{task_name}"] = accuracy
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
    group: str,
    output: list[Path],
    output_limit: Path,
) -> None:
    """Sample the probe distribution around one trained network, a loss trace a sampling seed.

    A group names the parameters that are perturbed, and may have a probe and draws of its own.
    Gradients come
    from the network's training pairs; the probe inputs are drawn from both tasks. ``output_limit``
    holds the Gram matrix of the probe inputs' loss gradients, which is the kernel's high-gamma
    limit up to a factor.
    """
    network, chosen = settings["network"], settings["groups"][group]
    model = _model(network)
    model.load_state_dict(load_file(weights))
    kept, _ = _tables(network, settings["train_share"], training_seed)
    inputs = probe_subset(kept, settings["probe_inputs"], training_seed)
    probe = Probe(**chosen.get("probe", settings["probe"]))
    sampling = settings["sampling"] | chosen.get("sampling", {})
    with tempfile.TemporaryDirectory(dir=output_limit.parent) as scratch:
        gradients = per_sample_gradients(
            model,
            (inputs.inputs, inputs.targets),
            Path(scratch) / "gradients",
            parameters=chosen["parameters"],
        )
        for seed, path in zip(settings["sampling_seeds"], output, strict=True):
            trace = _sample_with_linear_part(
                model, kept, inputs, probe, sampling, gradients, seed, Path(scratch)
            )
            trace.dataset.attrs |= {
                "training_seed": training_seed,
                "sampling_seed": seed,
                "group": group,
                "network": json.dumps(network),
            }
            trace.save(path)
        with atomic_path(output_limit) as temporary:
            np.savez(temporary, gram=gram(gradients), group=group)


def _sample_with_linear_part(
    model: ArithmeticTransformer,
    kept: ArithmeticTable,
    inputs: ArithmeticTable,
    probe: Probe,
    sampling: dict,
    gradients: Gradients,
    seed: int,
    scratch: Path,
) -> LossTrace:
    journal, coupled = scratch / f"journal-{seed}", scratch / f"coupled-{seed}"
    trace = sample_losses(
        model,
        (kept.inputs, kept.targets),
        probe,
        probe_data=(inputs.inputs, inputs.targets),
        parameters=gradients.names,
        seed=seed,
        journal=journal,
        input_coords={name: getattr(inputs, name).numpy() for name in ("task", "a", "b")},
        **sampling,
    )
    write_coupled_displacements(journal, coupled)
    linear = np.full(trace.dataset["loss"].shape, np.nan, np.float32)
    linear[~trace.diverged] = linear_part(gradients, coupled)
    return LossTrace(trace.dataset.assign(linear=(trace.dataset["loss"].dims, linear)))


def _estimate(trace: LossTrace, limit: np.ndarray) -> tuple[np.ndarray, float]:
    """K with its control variate, and the noise floor of its normalized form."""
    probe = json.loads(trace.attributes["probe"])
    known = limit_kernel(limit, Probe(**{**probe, "n_beta": 0}))
    linear = trace.dataset["linear"].values[~trace.diverged]
    kernel = control_variate_kernel(trace.losses, linear, known)
    null = control_variate_null(trace.losses, linear, kernel, seed=0)
    return kernel, null[~np.eye(len(null), dtype=bool)].std()


def _aucs(k: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    r = normalize(k)
    return {name: pair_auc(score(k, r), groups) for name, score in SCORES.items()}


def _measurements(trace: LossTrace, limit: np.ndarray) -> dict:
    losses, task = trace.losses, trace.coordinate("task")
    draws = losses.shape[1]
    estimate, floor = _estimate(trace, limit)
    checks = convergence(losses[:, :, ::10])  # a tenth of the inputs tells, at a tenth of the time
    row = {}
    for prefix, k in (("", estimate), ("plain_", covariance(losses)), ("limit_", limit)):
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
    shuffled, r = np.random.default_rng(0).permutation(task), normalize(estimate)
    row |= {
        f"null_{name}": pair_auc(score(estimate, r), shuffled) for name, score in SCORES.items()
    }
    return row | {
        "noise_floor": floor,
        "plain_noise_floor": noise_floor(losses),
        "split_half_cka": split_half_cka(losses, [draws // 2])[0],
        "cka_to_limit": cka(normalize(estimate), normalize(limit)),
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


def measure(traces: list[Path], limits: list[Path], history: Path, output: Path) -> None:
    """Separation, R by pair of tasks and convergence of one network's traces, a row each.

    Columns without a prefix are of the kernel estimated with the control variate, ``plain_`` of
    the covariance of the draws alone, ``limit_`` of the exact limit of high localization.
    """
    by_group = {}
    for path in limits:
        with np.load(path) as stored:
            by_group[str(stored["group"])] = stored["gram"]
    trained = json.loads(history.read_text())
    rows = []
    for path in bar(traces, "traces", unit="trace"):
        trace = LossTrace.load(path)
        key = {name: trace.attributes[name] for name in KEY}
        rows.append(key | _measurements(trace, by_group[key["group"]]) | trained["accuracy"])
    with atomic_path(output) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def summarize(rows: list[Path], output: Path, output_summary: Path) -> None:
    """All measurements in one table, and their mean and spread over seeds in another.

    The spread ``sd`` is the standard deviation over training seeds of the mean over sampling seeds:
    the sampling seeds of one network are not independent replications of training. ``sd_sampling``
    is the standard deviation over sampling seeds within a network.
    """
    table = pd.concat([pd.read_csv(path) for path in rows], ignore_index=True)
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


def kernel(trace: Path, limit: Path, settings: dict, output: Path) -> None:
    """What figure 3 shows of one trace: K and R ordered by task, and the embedding.

    The embedding's distances are those of |R|: pairs of one task covary with both signs.
    """
    loaded = LossTrace.load(trace)
    with np.load(limit) as stored:
        k, floor = _estimate(loaded, stored["gram"])
    r = normalize(k)
    order = np.lexsort([loaded.coordinate(name) for name in ("b", "a", "task")])
    graph = nearest_neighbors(kernel_distances(np.abs(r)), settings["neighbors"])
    arrays = {
        "K": k[np.ix_(order, order)].astype(np.float32),
        "R": r[np.ix_(order, order)].astype(np.float32),
        "embedding": umap_embedding(*graph, seed=settings["seed"])[order],
        "noise_floor": floor,
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
    kept, held_out = _tables(network, settings["train_share"], seed)
    model = _model(network, seed)
    history = train_classifier(
        model, kept.inputs, kept.targets, TrainingSettings(**settings["training"]), seed
    )
    _, test_accuracy = evaluate(model, held_out.inputs, held_out.targets)
    inputs = probe_subset(kept, settings["probe_inputs"], seed)
    rows = []
    for group, parameters in settings["groups"].items():
        with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
            gradients = per_sample_gradients(
                model, (inputs.inputs, inputs.targets), scratch, parameters=parameters
            )
            limit = gram(gradients)
            for number, probe in enumerate(Probe(**values) for values in settings["probes"]):
                row = {"setup": setup["name"], "group": group, "training_seed": seed}
                row |= asdict(probe) | {"steps": history.step[-1]}
                row |= {"train_accuracy": history.accuracy[-1], "test_accuracy": test_accuracy}
                try:
                    trace = _sample_with_linear_part(
                        model,
                        kept,
                        inputs,
                        probe,
                        settings["sampling"],
                        gradients,
                        seed,
                        Path(scratch) / str(number),
                    )
                    row |= _measurements(trace, limit)
                except LossKernelError as error:  # a regime without a kernel is a result too
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
