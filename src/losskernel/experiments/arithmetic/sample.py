"""Experiment 1: networks that add and divide modulo a prime, and the losses around them.

Section 4.1 of the paper. Each function is one rule of ``workflow/rules/arithmetic.smk``.

The probe is the Gaussian ``N(w*, I / gamma)`` on all weights, drawn directly. Its gamma follows
from a rise of the mean loss that is the same for all networks, and from nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import save_file

from losskernel.data.arithmetic import ADDITION, DIVISION
from losskernel.errors import LossKernelError
from losskernel.experiments.arithmetic.setup import (
    activations,
    draw,
    gamma_of_rise,
    loss_gram,
    network_model,
    tables,
    trained_network,
)
from losskernel.experiments.arithmetic.statistics import alignments, limit_aucs, measurements
from losskernel.files import atomic_path, write_csv, write_json, write_npz
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.covariance import correlation
from losskernel.progress import bar
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
    write_json(result, output_log)
    with atomic_path(output) as temporary:
        save_file(model.state_dict(), temporary)


def sample(settings: dict, weights: Path, seed: int, output: Path) -> None:
    """Draw the losses around one trained network, at the gamma of the setting's rise."""
    model, inputs = trained_network(settings, weights, seed)
    chosen = settings["sampling_seed"]
    gamma = gamma_of_rise(model, inputs, settings["rise"], settings["directions"], chosen)
    trace = draw(model, inputs, gamma, settings["draws"], chosen, chains=settings["chains"])
    trace.dataset.attrs |= {
        "training_seed": seed,
        "target_rise": settings["rise"],
        "network": json.dumps(settings["network"]),
    }
    trace.save(output)


def baselines(settings: dict, weights: Path, seed: int, output: Path) -> None:
    """Other similarities of the same inputs: what the network's kernel has to be compared with.

    - ``activations``: cosines of the residual stream before the unembedding.
    - ``activations_centered``: the same, less the mean of each task. The operation is a token that
      the network must carry to the answer, so that the raw ones know the task by construction.
    - ``gradients``: cosines of loss gradients in all weights, the kernel's limit of high gamma;
      ``gradients_<group>`` in the weights of each group of ``settings["gradient_groups"]``.
    - ``untrained``: R of the network before training, at the gamma of the same rise.

    ``layer_<name>`` are the activations of each layer themselves, ``(input, width)``.
    """
    model, inputs = trained_network(settings, weights, seed)
    layers = activations(model, inputs)
    last = layers["normalized"]
    centered = last.copy()
    for task in (ADDITION, DIVISION):
        centered[inputs.task.numpy() == task] -= last[inputs.task.numpy() == task].mean(axis=0)
    found = {"activations": normalize(last @ last.T)}
    found["activations_centered"] = normalize(centered @ centered.T)
    for name, parameters in settings["gradient_groups"].items():
        found[f"gradients_{name}"] = normalize(loss_gram(model, inputs, parameters, output.parent))
    untrained, chosen = network_model(settings["network"], seed), settings["sampling_seed"]
    gamma = gamma_of_rise(untrained, inputs, settings["rise"], settings["directions"], chosen)
    losses = draw(untrained, inputs, gamma, settings["untrained_draws"], chosen).losses
    found["untrained"] = correlation(losses)
    found |= {f"layer_{name}": values for name, values in layers.items()}
    write_npz(output, **{name: matrix.astype(np.float32) for name, matrix in found.items()})


def curve(settings: dict, weights: Path, seed: int, output: Path) -> None:
    """Separation along gamma for each group of perturbed weights; at infinite gamma the limit.

    The same random numbers at every gamma.
    """
    model, inputs = trained_network(settings, weights, seed)
    rows, layers = [], activations(model, inputs)
    for group, parameters in bar(list(settings["groups"].items()), "groups", unit="group"):
        for gamma in settings["gammas"]:
            trace = draw(
                model,
                inputs,
                gamma,
                settings["draws"],
                settings["sampling_seed"],
                parameters,
                progress=False,
            )
            row = {"group": group, "gamma": gamma} | measurements(trace)
            rows.append(row | alignments(trace, layers))
        exact = limit_aucs(loss_gram(model, inputs, parameters, output.parent), inputs.task.numpy())
        rows.append({"group": group, "gamma": np.inf, "rise": 0.0} | exact)
    write_csv(pd.DataFrame(rows), output)
