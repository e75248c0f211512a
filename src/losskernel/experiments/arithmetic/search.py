"""Experiment 1, the search: which training recipe, at which rise of the loss, separates the tasks?

Each function is one rule of ``workflow/rules/arithmetic.smk``.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from losskernel.errors import LossKernelError
from losskernel.experiments.arithmetic.setup import (
    draw,
    gamma_of_rise,
    network_model,
    probe_inputs,
    tables,
)
from losskernel.experiments.arithmetic.statistics import measurements
from losskernel.files import write_csv
from losskernel.training.train import TrainingSettings, evaluate
from losskernel.training.train import train as train_classifier


def search(settings: dict, setup: dict, output: Path) -> None:
    """A row a seed and rise: train with the setup's changes, draw all weights, measure."""
    changes = {
        key: settings[key] | value if isinstance(value, dict) else value
        for key, value in setup["changes"].items()
    }
    settings = settings | changes
    rows = []
    for seed in setup["seeds"]:
        kept, held_out = tables(settings["network"], settings["train_share"], seed)
        model = network_model(settings["network"], seed)
        training = TrainingSettings(**settings["training"])
        history = train_classifier(model, kept.inputs, kept.targets, training, seed)
        _, test_accuracy = evaluate(model, held_out.inputs, held_out.targets)
        inputs = probe_inputs(settings, seed)
        for rise in settings["rises"]:
            row = {"setup": setup["name"], "training_seed": seed, "target_rise": rise}
            row |= {"train_accuracy": history.accuracy[-1], "test_accuracy": test_accuracy}
            try:
                gamma = gamma_of_rise(model, inputs, rise, settings["directions"], seed)
                trace = draw(model, inputs, gamma, settings["draws"], seed)
                row |= {"gamma": gamma} | measurements(trace)
            except LossKernelError as error:  # a regime without a kernel is a result too
                row["failed"] = str(error)
            rows.append(row)
    write_csv(pd.DataFrame(rows), output)
