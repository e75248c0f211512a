"""Experiment 1, the search: which training and which probe separate the tasks?

Each function is one rule of ``workflow/rules/arithmetic.smk``.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from losskernel.data.arithmetic import probe_subset
from losskernel.errors import LossKernelError
from losskernel.experiments.arithmetic.setup import (
    network_model,
    sample_with_linear_part,
    tables,
)
from losskernel.experiments.arithmetic.statistics import measurements
from losskernel.files import atomic_path
from losskernel.gradients.linear_response import gram
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.sampling.probe import Probe
from losskernel.training.train import TrainingSettings, evaluate
from losskernel.training.train import train as train_classifier


def search(settings: dict, setup: dict, seed: int, output: Path) -> None:
    """One row of the regime search: train with ``setup``, sample every probe setting, one table."""
    changes = {
        key: settings[key] | value if isinstance(value, dict) else value
        for key, value in setup["changes"].items()
    }
    settings = settings | changes
    network = settings["network"]
    kept, held_out = tables(network, settings["train_share"], seed)
    model = network_model(network, seed)
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
                    trace = sample_with_linear_part(
                        model,
                        kept,
                        inputs,
                        probe,
                        settings["sampling"],
                        gradients,
                        seed,
                        Path(scratch) / str(number),
                    )
                    row |= measurements(trace, limit)
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
