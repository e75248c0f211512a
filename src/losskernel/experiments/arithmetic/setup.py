"""A network of experiment 1, its tables of sums and quotients, and traces of its losses."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from losskernel.data.arithmetic import (
    ArithmeticTable,
    modular_table,
    probe_subset,
    train_test_split,
)
from losskernel.gradients.linear_response import gram
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.models.transformer import ArithmeticTransformer
from losskernel.sampling.pilot import propose_probe
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


def probe_inputs(settings: dict, seed: int) -> ArithmeticTable:
    """The inputs whose losses are recorded: training pairs, half of each task."""
    kept, _ = tables(settings["network"], settings["train_share"], seed)
    return probe_subset(kept, settings["probe_inputs"], seed)


def trained_network(
    settings: dict, weights: Path, seed: int
) -> tuple[ArithmeticTransformer, ArithmeticTable]:
    """A trained network in evaluation mode, and the inputs whose losses are looked at."""
    model = network_model(settings["network"])
    model.load_state_dict(load_file(weights))
    return model.eval(), probe_inputs(settings, seed)


def gamma_of_rise(
    model: nn.Module,
    inputs: ArithmeticTable,
    rise: float,
    directions: int,
    seed: int,
    parameters: str | Sequence[str] = "all",
) -> float:
    """Localization at which the mean loss of the inputs rises by ``rise`` nats, within 5 %."""
    data = (inputs.inputs, inputs.targets)
    pilot = propose_probe(
        model, data, rise=rise, directions=directions, parameters=parameters, seed=seed
    )
    return pilot.probe.gamma


def draw(
    model: nn.Module,
    inputs: ArithmeticTable,
    gamma: float,
    draws: int,
    seed: int,
    parameters: str | Sequence[str] = "all",
    chains: int = 1,
    progress: bool = True,
) -> LossTrace:
    """Losses of the inputs at ``chains * draws`` independent draws of the Gaussian probe."""
    return sample_losses(
        model,
        (inputs.inputs, inputs.targets),
        Probe(gamma=gamma),
        chains=chains,
        draws=draws,
        parameters=parameters,
        seed=seed,
        input_coords={name: getattr(inputs, name).numpy() for name in ("task", "a", "b")},
        progress=progress,
    )


def loss_gram(
    model: nn.Module, inputs: ArithmeticTable, parameters: str | Sequence[str], scratch: Path
) -> np.ndarray:
    """Gram matrix of the inputs' loss gradients, ``(input, input)``: the limit of high gamma.

    ``scratch`` is a folder that holds the gradients meanwhile.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        data = (inputs.inputs, inputs.targets)
        gradients = per_sample_gradients(
            model, data, folder, parameters=parameters, dtype="float32", progress=False
        )
        return gram(gradients, progress=False)


@torch.inference_mode()
def activations(model: ArithmeticTransformer, inputs: ArithmeticTable) -> dict[str, np.ndarray]:
    """What each layer makes of the inputs, ``(input, width)`` by name, in order of the layers.

    ``embedding`` is that of all four tokens, with their positions, side by side; all others are at
    the last position: the residual stream after ``attention`` and after the ``MLP`` of the last
    block, its ``normalized`` form that is unembedded, and the ``logits``.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, given: bool):
        def hook(module, arguments, output):
            found[name] = (arguments[0] if given else output).reshape(len(inputs), -1)

        return hook

    embedded = model.embed_tokens(inputs.inputs) + model.embed_positions.weight
    places = {
        "attention": (model.blocks[-1].norm_mlp, True),
        "MLP": (model.norm_final, True),
        "normalized": (model.unembed, True),
        "logits": (model.unembed, False),
    }
    hooks = [
        module.register_forward_hook(keep(name, given)) for name, (module, given) in places.items()
    ]
    try:
        model(inputs.inputs)
    finally:
        for handle in hooks:
            handle.remove()
    layers = {"embedding": embedded.flatten(1)} | {name: found[name] for name in places}
    return {name: values.double().numpy() for name, values in layers.items()}
