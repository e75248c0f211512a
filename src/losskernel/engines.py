"""Two ways to evaluate a model at many weight vectors: all chains at once, or one by one.

Both work on a copy of the caller's model in evaluation mode (dropout off, batch-norm statistics
frozen) and see the perturbed parameters as rows of a matrix ``(chain, parameter)``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from losskernel.errors import ConfigError, DataError
from losskernel.inputs import Inputs
from losskernel.parameters import FlatLayout

LossPerInput = Callable[[Any, Any], Tensor]
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Engine(Protocol):
    """Gradients and losses at given weights."""

    layout: FlatLayout
    center: Tensor  # (parameters,): the trained weights

    def gradients(self, weights: Tensor, batches: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        """Gradients of the chains' mean batch losses, ``(chain, parameter)``, and the losses."""

    def losses(self, weights: Tensor, inputs: Inputs, block: int) -> Tensor:
        """Loss of every input at every chain's weights, ``(chain, input)`` float32 on the CPU."""


def _frozen_copy(model: nn.Module, device: torch.device | str) -> nn.Module:
    model = copy.deepcopy(model).to(device)
    model.eval()
    model.requires_grad_(False)
    return model


def _checked(losses: Tensor, count: int) -> Tensor:
    if losses.shape != (count,):
        raise DataError(
            f"loss: must return one value per input, shape ({count},), not {tuple(losses.shape)}; "
            "pass reduction='none'"
        )
    return losses


def _count(targets: Any) -> int:
    return len(targets)


class BatchedEngine:
    """All chains in one vectorized forward and backward pass; for small models.

    Args:
        model: its operations need batching rules in :mod:`torch.func`.
        loss: ``loss(output, target)`` gives one value per input.
        names: parameters to perturb.
        device: where to compute.
    """

    def __init__(self, model: nn.Module, loss: LossPerInput, names: list[str], device="cpu"):
        self._model = _frozen_copy(model, device)
        self.layout = FlatLayout(self._model, names)
        self.center = self.layout.flatten(dict(self._model.named_parameters()))

        def losses(flat: Tensor, x: Any, y: Any) -> Tensor:
            output = functional_call(self._model, self.layout.views(flat), (x,))
            return _checked(loss(output, y), _count(y))

        def mean_loss(flat: Tensor, x: Any, y: Any) -> Tensor:
            return losses(flat, x, y).mean()

        self._losses = vmap(losses, in_dims=(0, None, None))
        self._gradients = vmap(grad_and_value(mean_loss))

    def gradients(self, weights: Tensor, batches: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        x = torch.stack([batch[0] for batch in batches])
        y = torch.stack([batch[1] for batch in batches])
        gradient, value = self._gradients(weights, x, y)
        return gradient, value.detach()

    @torch.inference_mode()
    def losses(self, weights: Tensor, inputs: Inputs, block: int) -> Tensor:
        return torch.cat([self._losses(weights, x, y) for x, y in inputs.blocks(block)], 1).cpu()


class SequentialEngine:
    """One chain after the other; for large models and for operations without batching rules.

    Args:
        model, loss, names, device: as for :class:`BatchedEngine`.
        compiled: compile the evaluation of the probe inputs; costs a minute once, needs a C++
            compiler on the CPU. Gradients stay uncompiled: torch 2.12's compiler emits invalid code
            for the backward pass of Inception-v1 on the CPU.
        precision: of the model's arithmetic, ``"float32"`` or ``"bfloat16"``; the latter is twice
            as fast on a CPU with AMX. The weights of the chain are float32 either way, and so is
            the loss function, from logits of this precision.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossPerInput,
        names: list[str],
        device="cpu",
        compiled: bool = False,
        precision: str = "float32",
    ):
        if precision not in PRECISIONS:
            raise ConfigError(f"precision: '{precision}' is not one of {', '.join(PRECISIONS)}")
        self._loss = loss
        self._model = _frozen_copy(model, device)
        self.layout = FlatLayout(self._model, names)
        self.center = self.layout.flatten(dict(self._model.named_parameters()))
        self._dtype = PRECISIONS[precision]
        self._model.to(self._dtype)
        parameters = dict(self._model.named_parameters())
        self._parameters = [parameters[name] for name in names]
        self._evaluate = torch.compile(self._model, dynamic=False) if compiled else self._model

    def _move_to(self, weights: Tensor) -> None:
        views = self.layout.views(weights)
        for parameter, name in zip(self._parameters, self.layout.names, strict=True):
            parameter.data.copy_(views[name])

    def gradients(self, weights: Tensor, batches: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        gradient, values = torch.empty_like(weights), []
        for row, (x, y) in enumerate(batches):
            self._move_to(weights[row])
            for parameter in self._parameters:
                parameter.requires_grad_(True)
            value = self._losses(self._model, x, y).mean()
            # A parameter that the output does not depend on has gradient 0, as in the other engine.
            grads = torch.autograd.grad(value, self._parameters, materialize_grads=True)
            for parameter in self._parameters:
                parameter.requires_grad_(False)
            views = self.layout.views(gradient[row])
            for name, grad in zip(self.layout.names, grads, strict=True):
                views[name].copy_(grad)
            values.append(value.detach())
        return gradient, torch.stack(values)

    @torch.no_grad()
    def losses(self, weights: Tensor, inputs: Inputs, block: int) -> Tensor:
        rows = []
        for row in weights:
            self._move_to(row)
            blocks = [self._losses(self._evaluate, x, y) for x, y in inputs.blocks(block)]
            rows.append(torch.cat(blocks))
        return torch.stack(rows).cpu()

    def _losses(self, model: nn.Module, x: Any, y: Any) -> Tensor:
        if isinstance(x, Tensor) and x.is_floating_point():
            x = x.to(self._dtype)
        output = model(x)
        if isinstance(output, Tensor):
            output = output.float()
        return _checked(self._loss(output, y), _count(y))


def make_engine(
    kind: str,
    model: nn.Module,
    loss: LossPerInput,
    names: list[str],
    example: tuple[Any, Any],
    device="cpu",
    compiled: bool = False,
    precision: str = "float32",
    small: int | None = None,
) -> Engine:
    """The engine called ``kind``: ``"batched"``, ``"sequential"`` or ``"auto"``.

    ``auto`` takes the batched engine for models of up to ``small`` perturbed parameters when a
    trial on ``example`` (a few inputs and targets) succeeds, else the sequential one. By default
    small is 2 million on a GPU, where launching kernels costs most, and 20,000 on a CPU, where a
    transformer of 120,000 parameters runs 3.5 times faster chain by chain.
    """
    if small is None:
        small = 20_000 if torch.device(device).type == "cpu" else 2_000_000
    if kind not in ("auto", "batched", "sequential"):
        raise ConfigError(f"engine: '{kind}' is not one of auto, batched, sequential")

    def sequential() -> Engine:
        return SequentialEngine(model, loss, names, device, compiled, precision)

    if kind == "sequential" or compiled or precision != "float32":
        if kind == "batched":
            raise ConfigError("engine: compiled and precision need engine 'sequential'")
        return sequential()
    parameters = dict(model.named_parameters())
    if kind == "auto" and sum(parameters[name].numel() for name in names) > small:
        return sequential()
    engine = BatchedEngine(model, loss, names, device)
    try:
        engine.gradients(engine.center.expand(2, -1), [example, example])
    except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
        if kind == "auto":
            return sequential()
        raise ConfigError(
            f"engine: the model cannot be batched over chains ({str(error).splitlines()[0]}); "
            "use engine 'sequential'"
        ) from error
    return engine
