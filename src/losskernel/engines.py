"""Two ways to evaluate a model at many weight vectors: all chains at once, or one by one.

Both work on a copy of the caller's model in evaluation mode (dropout off, batch-norm statistics
frozen) and see the perturbed parameters as rows of a matrix ``(chain, parameter)``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from losskernel.errors import ConfigError, DataError
from losskernel.inputs import Inputs
from losskernel.parameters import FlatLayout

LossPerInput = Callable[[Any, Any], Tensor]
PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
# Models up to this size keep a GPU waiting for launches, and a CPU core's threads for each other.
SMALL = 2_000_000
# Up to this size a CPU spends its time on calling the operations, one chain after the other.
SMALL_ON_CPU = 20_000


class Engine(Protocol):
    """Gradients and losses at given weights."""

    layout: FlatLayout
    center: Tensor  # (parameters,): the trained weights
    kind: str  # its name for make_engine
    together: bool  # whether it evaluates several chains in less time than one after the other

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


@contextmanager
def tensor_cores(precision: str) -> Iterator[None]:
    """Whether float32 products on an NVIDIA GPU may run in TF32 inside the ``with`` block.

    TF32 keeps 10 of float32's 23 bits of mantissa. PyTorch allows it for convolutions unless told
    otherwise; here it is in force for precision ``"tf32"`` only. The settings are PyTorch's global
    ones, so this encloses all threads that compute; it does nothing where there is no GPU.
    """
    if not torch.cuda.is_available():
        yield
        return
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = precision == "tf32"
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def _compile(function: Callable, device: torch.device | str, size: int) -> Callable:
    """Compiled for fixed shapes; replayed as a CUDA graph where launching the kernels costs most.

    CUDA graphs have not been measured in this project.
    """
    graphs = torch.device(device).type == "cuda" and size <= SMALL
    return torch.compile(function, dynamic=False, mode="reduce-overhead" if graphs else None)


class BatchedEngine:
    """All chains in one vectorized forward and backward pass; for small models.

    Args:
        model: its operations need batching rules in :mod:`torch.func`.
        loss: ``loss(output, target)`` gives one value per input.
        names: parameters to perturb.
        device: where to compute.
        compiled: compile both passes; costs a minute or two once.
    """

    kind, together = "batched", True

    def __init__(
        self,
        model: nn.Module,
        loss: LossPerInput,
        names: list[str],
        device="cpu",
        compiled: bool = False,
    ):
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
        if compiled:
            self._losses = _compile(self._losses, device, self.layout.size)
            self._gradients = _compile(self._gradients, device, self.layout.size)

    def gradients(self, weights: Tensor, batches: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        x = torch.stack([batch[0] for batch in batches])
        y = torch.stack([batch[1] for batch in batches])
        gradient, value = self._gradients(weights, x, y)
        # A CUDA graph overwrites its outputs when it is replayed.
        return gradient.clone(), value.detach().clone()

    @torch.inference_mode()
    def losses(self, weights: Tensor, inputs: Inputs, block: int) -> Tensor:
        blocks = [self._losses(weights, x, y).clone() for x, y in inputs.blocks(block)]
        return torch.cat(blocks, 1).cpu()


class SequentialEngine:
    """One chain after the other; for large models and for operations without batching rules.

    Args:
        model, loss, names, device: as for :class:`BatchedEngine`.
        compiled: compile the evaluation of the probe inputs; costs a minute once, needs a C++
            compiler on the CPU. Gradients stay uncompiled there: torch 2.12's compiler emits
            invalid code for the backward pass of Inception-v1 on the CPU (the transposed store of
            a max pool's scattered gradient), and gains nothing on a small transformer. On a GPU
            both are compiled.
        precision: of the model's arithmetic. ``"float32"``; ``"tf32"``, float32 with products on
            the tensor cores of an NVIDIA GPU, within :func:`tensor_cores` only; or ``"bfloat16"``,
            twice as fast on a CPU with AMX. The weights of the chain are float32 in any case, and
            so is the loss function, from logits of this precision.
    """

    kind, together = "sequential", False

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
        self._parameters = [parameters[name].requires_grad_() for name in names]
        self._storage = [parameter.data for parameter in self._parameters]
        self._evaluate = self._differentiate = self._model
        if compiled:
            self._evaluate = _compile(self._model, device, self.layout.size)
            if torch.device(device).type == "cuda":
                self._differentiate = self._evaluate

    def _pieces(self, row: Tensor) -> list[Tensor]:
        """Views of each parameter in a row of weights, as ``layout.views`` without the names."""
        return [
            piece.as_strided(shape, stride, piece.storage_offset())
            for piece, shape, stride in zip(
                row.split(self.layout.sizes), self.layout.shapes, self.layout.strides, strict=True
            )
        ]

    def _move_to(self, row: Tensor) -> None:
        # Copied, not pointed at: kernels pick their code path by alignment, and compiled code and
        # CUDA graphs expect the parameters where they were.
        torch._foreach_copy_(self._storage, self._pieces(row))

    def gradients(self, weights: Tensor, batches: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        gradient, values = torch.empty_like(weights), []
        for row, (x, y) in enumerate(batches):
            self._move_to(weights[row])
            value = self._losses(self._differentiate, x, y).mean()
            # A parameter that the output does not depend on has gradient 0, as in the other engine.
            grads = torch.autograd.grad(value, self._parameters, materialize_grads=True)
            torch._foreach_copy_(self._pieces(gradient[row]), grads)
            values.append(value.detach())
        return gradient, torch.stack(values)

    @torch.inference_mode()
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
    transformer of 120,000 parameters runs 3.5 times faster chain by chain. bfloat16 needs the
    sequential engine, and so does ``compiled`` on a CPU.

    Raises:
        ConfigError: a name is unknown, or the engine asked for cannot do it.
    """
    on_cpu = torch.device(device).type == "cpu"
    if small is None:
        small = SMALL_ON_CPU if on_cpu else SMALL
    if kind not in ("auto", "batched", "sequential"):
        raise ConfigError(f"engine: '{kind}' is not one of auto, batched, sequential")

    def sequential() -> Engine:
        return SequentialEngine(model, loss, names, device, compiled, precision)

    if precision == "tf32" and on_cpu:
        raise ConfigError("precision: 'tf32' is of NVIDIA GPUs; choose float32 or bfloat16")
    if kind == "sequential" or precision == "bfloat16" or (compiled and on_cpu):
        if kind == "batched":
            raise ConfigError("engine: bfloat16, and compiled on a CPU, need engine 'sequential'")
        return sequential()
    parameters = dict(model.named_parameters())
    if kind == "auto" and sum(parameters[name].numel() for name in names) > small:
        return sequential()
    engine = BatchedEngine(model, loss, names, device, compiled)
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
