"""A network of experiment 1, its tables, and a trace of it with the linear part of every loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from losskernel.data.arithmetic import ArithmeticTable, modular_table, train_test_split
from losskernel.gradients.linear_response import linear_part, write_coupled_displacements
from losskernel.gradients.per_sample import Gradients
from losskernel.models.transformer import ArithmeticTransformer
from losskernel.sampling.probe import Probe
from losskernel.sampling.sample import sample_losses
from losskernel.trace import LossTrace


def network_model(network: dict, seed: int = 0) -> ArithmeticTransformer:
    """An untrained network; the seed decides its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ArithmeticTransformer(**network)


def tables(network: dict, share: float, seed: int) -> tuple[ArithmeticTable, ArithmeticTable]:
    """Pairs of both tasks for training, and the ones held out."""
    table = modular_table(network["prime"], network["shared_operands"], network["shared_outputs"])
    return train_test_split(table, share, seed)


def sample_with_linear_part(
    model: ArithmeticTransformer,
    kept: ArithmeticTable,
    inputs: ArithmeticTable,
    probe: Probe,
    sampling: dict,
    gradients: Gradients,
    seed: int,
    scratch: Path,
) -> LossTrace:
    """Sample a network; the trace carries the linear part of every loss.

    The noise is replayed through the chain without the loss, whose law is known exactly: see
    :mod:`losskernel.gradients.linear_response`. ``scratch`` holds the journal and the
    displacements.
    """
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
