"""Experiment 1: networks that add and divide modulo a prime, and the losses around them.

Section 4.1 of the paper. Each function is one rule of ``workflow/rules/arithmetic.smk``.

Traces carry the linear part of every loss (:mod:`losskernel.gradients.linear_response`), so that
the kernel is estimated with its control variate; the plain estimate and the limit stand beside it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from losskernel.data.arithmetic import ADDITION, DIVISION, probe_subset
from losskernel.errors import LossKernelError
from losskernel.experiments.arithmetic.setup import (
    network_model,
    sample_with_linear_part,
    tables,
)
from losskernel.files import atomic_path
from losskernel.gradients.linear_response import gram
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.sampling.probe import Probe
from losskernel.training.train import TrainingSettings, evaluate
from losskernel.training.train import train as train_classifier


def train(settings: dict, seed: int, output: Path, output_log: Path) -> None:
    """Train one network on both tasks; weights, and training history with the final accuracies.

    Raises:
        LossKernelError: a task is not answered with 100 % training accuracy at the end.
    """
    network, training = settings["network"], settings["training"]
    kept, held_out = tables(network, settings["train_share"], seed)
    model = network_model(network, seed)
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
    output: list[Path],
    output_limits: list[Path],
) -> None:
    """Sample around one trained network: a loss trace a group of weights and sampling seed.

    A group names the parameters that are perturbed, and may have a probe and draws of its own.
    Gradients come from the network's training pairs; the probe inputs are drawn from both tasks.
    ``output_limits``, one a group, hold the Gram matrix of the probe inputs' loss gradients, which
    is the kernel's high-gamma limit up to a factor. Traces come group by group, in each the seeds.
    """
    network, seeds = settings["network"], settings["sampling_seeds"]
    model = network_model(network)
    model.load_state_dict(load_file(weights))
    kept, _ = tables(network, settings["train_share"], training_seed)
    inputs = probe_subset(kept, settings["probe_inputs"], training_seed)
    traces = iter(output)
    for (group, chosen), limit in zip(settings["groups"].items(), output_limits, strict=True):
        probe = Probe(**chosen.get("probe", settings["probe"]))
        sampling = settings["sampling"] | chosen.get("sampling", {})
        with tempfile.TemporaryDirectory(dir=limit.parent) as scratch:
            gradients = per_sample_gradients(
                model,
                (inputs.inputs, inputs.targets),
                Path(scratch) / "gradients",
                parameters=chosen["parameters"],
            )
            for seed in seeds:
                trace = sample_with_linear_part(
                    model, kept, inputs, probe, sampling, gradients, seed, Path(scratch)
                )
                trace.dataset.attrs |= {
                    "training_seed": training_seed,
                    "sampling_seed": seed,
                    "group": group,
                    "network": json.dumps(network),
                }
                trace.save(next(traces))
            with atomic_path(limit) as temporary:
                np.savez(temporary, gram=gram(gradients), group=group)
