r"""Does the kernel depend on how the weights are written down? Reparametrization of a ReLU layer.

``relu(a x) = a relu(x)`` for ``a > 0``: weights into a layer of ReLU units times ``alpha``, with
the bias, and those out of it over ``alpha`` give the same function (Dinh et al. 2017,
arXiv:1703.04933). The probe ``N(w*, I / gamma)`` is another one around the new weights, though.

The other probe here gives each weight a variance in proportion to ``1 / (d + F_ii)``, with F the
Fisher matrix and ``d`` a damping for the weights that the loss hardly feels. As F_ii changes by
``alpha^-2`` where the weight changes by ``alpha``, that probe would follow any rescaling without
its damping.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from losskernel.data.arithmetic import ArithmeticTable
from losskernel.experiments.arithmetic.setup import draw, gamma_of_rise, trained_network
from losskernel.experiments.arithmetic.statistics import relations
from losskernel.files import write_csv
from losskernel.gradients.laplace import drawn_labels
from losskernel.kernel.alignment import corrected_cka
from losskernel.kernel.covariance import half_kernels
from losskernel.models.transformer import ArithmeticTransformer
from losskernel.progress import bar
from losskernel.sampling.parameters import select_parameters
from losskernel.sampling.sample import cross_entropy
from losskernel.semantics.corrected import corrected_auc


class Scaled(nn.Module):
    """A network whose weights are ``w* + scale * offset``; the offsets, zero, are its parameters.

    The Gaussian probe around zero offsets is one around ``w*`` with a variance for each weight.

    Args:
        model: the network; it is not changed.
        scales: by name of the parameters that have an offset, of their shapes.
    """

    def __init__(self, model: nn.Module, scales: dict[str, Tensor]):
        super().__init__()
        self._network = [copy.deepcopy(model)]  # in a list: its parameters are none of this module
        self._names = list(scales)
        self.offsets = nn.ParameterList(torch.zeros_like(scale) for scale in scales.values())
        centers = dict(model.named_parameters())
        for number, (name, scale) in enumerate(scales.items()):
            self.register_buffer(f"center_{number}", centers[name].detach().clone())
            self.register_buffer(f"scale_{number}", scale.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        weights = {
            name: torch.addcmul(
                getattr(self, f"center_{number}"), getattr(self, f"scale_{number}"), offset
            )
            for number, (name, offset) in enumerate(zip(self._names, self.offsets, strict=True))
        }
        return torch.func.functional_call(self._network[0], weights, (inputs,))


def rescaled(model: ArithmeticTransformer, alpha: float) -> ArithmeticTransformer:
    """The same function: into the ReLU units of every block times alpha, out of them over alpha."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.up.weight *= alpha
            block.mlp.up.bias *= alpha
            block.mlp.down.weight /= alpha
    return model


def fisher_diagonal(
    model: nn.Module, inputs: ArithmeticTable, names: list[str], seed: int
) -> dict[str, Tensor]:
    """Mean squared gradient of each weight, the label of each input drawn from the prediction."""
    _, labels = drawn_labels(model, (inputs.inputs, inputs.targets), seed)
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    fixed = {name: weights.pop(name) for name in list(weights) if name not in names}

    def loss(chosen: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, {**fixed, **chosen}, (x[None],))
        return cross_entropy(logits, y[None])[0]

    gradient = torch.func.grad(loss)
    total = {name: torch.zeros_like(weights[name]) for name in names}
    for x, y in zip(inputs.inputs, labels, strict=True):
        for name, value in gradient({name: weights[name] for name in names}, x, y).items():
            total[name] += value.square() / len(inputs)
    return total


def _unit(scales: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same up to a factor, with a mean square of 1: gamma has the size of the isotropic one.

    Where the loss has vanished the Fisher matrix is so small that no gamma in reach would do.
    """
    size = torch.cat([scale.flatten() for scale in scales.values()]).square().mean().sqrt()
    return {name: scale / size for name, scale in scales.items()}


def reparametrize(settings: dict, weights: Path, seed: int, output: Path) -> None:
    """CKA of R after rescaling with R before, for both probes, a row an alpha and probe.

    All at the gamma of the setting's rise of the mean loss, with draws of their own, so that the
    noise-corrected CKA of equal kernels is 1.
    """
    model, inputs = trained_network(settings, weights, seed)
    names = select_parameters(model, settings["parameters"])
    first = fisher_diagonal(model, inputs, names, seed)
    damping = settings["damping"] * float(torch.cat([f.flatten() for f in first.values()]).mean())
    within = relations(inputs.task.numpy())["within"]
    rows, reference = [], {}
    for number, alpha in enumerate(bar([1.0, *settings["alphas"]], "alphas", unit="alpha")):
        network = rescaled(model, alpha)
        fisher = fisher_diagonal(network, inputs, names, seed)
        probes = {
            "isotropic": {name: torch.ones_like(value) for name, value in fisher.items()},
            "fisher": _unit({name: (value + damping).rsqrt() for name, value in fisher.items()}),
        }
        for probe, scales in probes.items():
            scaled = Scaled(network, scales).eval()
            gamma = gamma_of_rise(scaled, inputs, settings["rise"], settings["directions"], number)
            trace = draw(scaled, inputs, gamma, settings["draws"], number, progress=False)
            halves = half_kernels(trace.losses)
            reference.setdefault(probe, halves)
            rows.append(
                {
                    "training_seed": seed,
                    "probe": probe,
                    "alpha": alpha,
                    "gamma": gamma,
                    "rise": trace.losses.mean(dtype=float) - trace.initial_loss.mean(dtype=float),
                    "cka": corrected_cka(reference[probe], halves) if number else 1.0,
                    "auc_corrected": corrected_auc(*halves, within),
                }
            )
    write_csv(pd.DataFrame(rows), output)
