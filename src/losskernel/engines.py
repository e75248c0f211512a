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


class Engine(Protocol):
    """Gradients and losses at given weights."""

    layout: FlatLayout
    center: Tensor  # (parameters,): the trained weights

    def gradients(self, weights: Tensor, batches: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        """Gradient of each chain's mean batch loss, ``(chain, parameter)``, and the loss, ``(chain,)``."""

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
        compiled: compile the forward and backward pass; costs 1-2 minutes once, needs a C++
            compiler on the CPU, and halves the time of a draw of Inception-v1.
        eval_dtype: precision in which the losses of the inputs are computed; ``"bfloat16"``
            nearly halves the time on a CPU with AMX. Gradients stay in float32.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossPerInput,
        names: list[str],
        device="cpu",
        compiled: bool = False,
        eval_dtype: str = "float32",
    ):
        self._loss = loss
        self._model = _frozen_copy(model, device)
        self.layout = FlatLayout(self._model, names)
        parameters = dict(self._model.named_parameters())
        self.center = self.layout.flatten(parameters)
        self._current = self.center.clone()
        self._parameters = [parameters[name] for name in names]
        for name, view in self.layout.views(self._current).items():
            parameters[name].data = view
        self._dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[eval_dtype]
        if self._dtype == torch.float32:
            self._eval_model, self._eval_parameters = self._model, None
        else:
            self._eval_model = copy.deepcopy(self._model).to(self._dtype)
            named = dict(self._eval_model.named_parameters())
            self._eval_parameters = [named[name] for name in names]
        self._forward, self._eval_forward = self._model, self._eval_model
        if compiled:
            self._forward = torch.compile(self._model, dynamic=False)
            self._eval_forward = torch.compile(self._eval_model, dynamic=False)

    def gradients(self, weights: Tensor, batches: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        gradient, values = torch.empty_like(weights), []
        for row, (x, y) in enumerate(batches):
            self._current.copy_(weights[row])
            for parameter in self._parameters:
                parameter.requires_grad_(True)
            value = _checked(self._loss(self._forward(x), y), _count(y)).mean()
            grads = torch.autograd.grad(value, self._parameters)
            for parameter in self._parameters:
                parameter.requires_grad_(False)
            views = self.layout.views(gradient[row])
            for name, grad in zip(self.layout.names, grads, strict=True):
                views[name].copy_(grad)
            values.append(value.detach())
        return gradient, torch.stack(values)

    @torch.inference_mode()
    def losses(self, weights: Tensor, inputs: Inputs, block: int) -> Tensor:
        rows = []
        for row in weights:
            self._current.copy_(row)
            if self._eval_parameters is not None:
                for target, source in zip(self._eval_parameters, self._parameters, strict=True):
                    target.copy_(source)
            rows.append(torch.cat([self._block(x, y) for x, y in inputs.blocks(block)]))
        return torch.stack(rows).cpu()

    def _block(self, x: Any, y: Any) -> Tensor:
        if self._dtype != torch.float32 and isinstance(x, Tensor) and x.is_floating_point():
            x = x.to(self._dtype)
        output = self._eval_forward(x)
        if isinstance(output, Tensor):
            output = output.float()
        return _checked(self._loss(output, y), _count(y)).float()


def make_engine(
    kind: str,
    model: nn.Module,
    loss: LossPerInput,
    names: list[str],
    example: tuple[Any, Any],
    device="cpu",
    compiled: bool = False,
    eval_dtype: str = "float32",
    small: int = 2_000_000,
) -> Engine:
    """The engine called ``kind``: ``"batched"``, ``"sequential"`` or ``"auto"``.

    ``auto`` takes the batched engine for models of up to ``small`` perturbed parameters when a trial
    on ``example`` (a few inputs and targets) succeeds, else the sequential one.
    """
    if kind not in ("auto", "batched", "sequential"):
        raise ConfigError(f"engine: '{kind}' is not one of auto, batched, sequential")

    def sequential() -> Engine:
        return SequentialEngine(model, loss, names, device, compiled, eval_dtype)

    if kind == "sequential" or compiled or eval_dtype != "float32":
        if kind == "batched":
            raise ConfigError("engine: compiled and eval_dtype need engine 'sequential'")
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
