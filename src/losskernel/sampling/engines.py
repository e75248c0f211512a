"""Two ways to evaluate a model at many weight vectors: all chains at once, or one by one.

Both work on a copy of the caller's model in evaluation mode (dropout off, batch-norm statistics
frozen) and see the perturbed parameters as rows of a matrix ``(chain, parameter)``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils._pytree import tree_map_only

from losskernel.errors import ConfigError, DataError, LossKernelError
from losskernel.sampling.inputs import Inputs, leaves, map_tensors
from losskernel.sampling.parameters import FlatLayout

LossPerInput = Callable[[Any, Any], Tensor]
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
    model: nn.Module  # the copy that it evaluates

    def gradients(self, weights: Tensor, batches: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        """Gradients of the chains' mean batch losses, ``(chain, parameter)``, and the losses."""

    def losses(self, weights: Tensor, inputs: Inputs, block: int) -> Tensor:
        """Loss of every input at every chain's weights, ``(chain, input)`` float32 on the CPU."""

    def example_losses(self, weights: Tensor, x: Any, y: Any) -> Tensor:
        """Losses of some inputs, ``(chain, input)``, by code that is not compiled."""

    def output(self, x: Any) -> Any:
        """What the model makes of some inputs."""


def _frozen_copy(
    model: nn.Module, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A copy in evaluation mode, without gradients, whose real numbers are of one type."""
    # What a hook computes before each call, such as weight_norm's weight, deepcopy refuses.
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        with torch.no_grad():  # else the weights of a scripted model become results, no leaves
            model = copy.deepcopy(model, computed).to(device)
    except Exception as error:
        raise ConfigError(
            f"model: cannot be copied ({_told(error)}); leave out of it what is no tensor or "
            "setting, or give it a method __deepcopy__"
        ) from error
    model.eval()
    for parameter in model.parameters():  # a scripted model has no requires_grad_
        parameter.requires_grad_(False)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = _real(tensor.data, dtype)
    return model


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _real(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """In another type of number if it is real and floating-point; complex ones stay complex."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def quiet(mapped: Callable) -> Callable:
    """A function of ``vmap`` without the warning of operations that it runs one by one.

    Attention is one of them. PyTorch warns at every call, of speed alone: the values are the same.
    """

    def call(*arguments):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop because we have not yet")
            return mapped(*arguments)

    return call


def _input_losses(model: Callable, loss: LossPerInput, x: Any, y: Any):
    """Loss of every input, ``(input,)`` float32, whatever types the data and the output have."""
    output = model(map_tensors(_real, x))
    halves = (torch.bfloat16, torch.float16)
    output = tree_map_only(Tensor, lambda t: t.float() if t.dtype in halves else t, output)
    losses, count = loss(output, y), _count(y)
    if losses.shape != (count,):
        raise DataError(
            f"loss: must return one value per input, for {count} of them shape ({count},), not "
            f"{tuple(losses.shape)}; pass reduction='none', or average over what an input has "
            "several of"
        )
    return losses.float()


def _count(targets: Any) -> int:
    return len(leaves(targets)[0])


@contextmanager
def without_tf32() -> Iterator[None]:
    """Float32 products on an NVIDIA GPU keep float32's 23 bits inside the ``with`` block.

    TF32 keeps 10 of them, and PyTorch allows it for convolutions unless told otherwise. The
    settings are PyTorch's global ones: the engines set them, and where threads compute one such
    block encloses them all, or the first to end would undo the others'. It does nothing where there
    is no GPU.
    """
    if not torch.cuda.is_available():
        yield
        return
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


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
        self.model = _frozen_copy(model, device)
        self.layout = FlatLayout(self.model, names)
        self.center = self.layout.flatten(dict(self.model.named_parameters()))

        def losses(flat: Tensor, x: Any, y: Any) -> Tensor:
            def call(x: Any) -> Any:
                return functional_call(self.model, self.layout.views(flat), (x,))

            return _input_losses(call, loss, x, y)

        def mean_loss(flat: Tensor, x: Any, y: Any) -> Tensor:
            return losses(flat, x, y).mean()

        self._losses = self._eager_losses = vmap(losses, in_dims=(0, None, None))
        self._gradients = vmap(grad_and_value(mean_loss))
        if compiled:
            self._losses = torch.compile(self._losses, dynamic=False)
            self._gradients = torch.compile(self._gradients, dynamic=False)
        self._losses, self._eager_losses = quiet(self._losses), quiet(self._eager_losses)
        self._gradients = quiet(self._gradients)

    def gradients(self, weights: Tensor, batches: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        x, y = map_tensors(lambda *parts: torch.stack(parts), *batches)
        with without_tf32():
            gradient, value = self._gradients(weights, x, y)
        return gradient, value.detach()

    def example_losses(self, weights: Tensor, x: Any, y: Any) -> Tensor:
        with without_tf32():
            return self._eager_losses(weights, *map_tensors(torch.clone, (x, y)))

    def output(self, x: Any) -> Any:
        return self.model(map_tensors(_real, x))

    @torch.inference_mode()
    def losses(self, weights: Tensor, inputs: Inputs, block: int) -> Tensor:
        with without_tf32():
            blocks = [self._losses(weights, x, y) for x, y in inputs.blocks(block)]
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
        evaluation: PyTorch's mode for losses without gradients. In inference mode they take some
            4 % less time. ``torch.no_grad`` is for a model that keeps a tensor from one call to the
            next, such as a mask, which no gradient could use; ``torch.enable_grad`` for a model
            that calls for gradients itself, such as a force from an energy.
    """

    kind, together = "sequential", False

    def __init__(
        self,
        model: nn.Module,
        loss: LossPerInput,
        names: list[str],
        device="cpu",
        compiled: bool = False,
        evaluation: Callable = torch.inference_mode,
    ):
        self._evaluation = evaluation
        self._loss = loss
        self.model = _frozen_copy(model, device)
        self.layout = FlatLayout(self.model, names)
        parameters = dict(self.model.named_parameters())
        self.center = self.layout.flatten(parameters)
        self._parameters = [parameters[name].requires_grad_() for name in names]
        self._storage = [parameter.data for parameter in self._parameters]
        self._evaluate = self._differentiate = self.model
        if compiled:
            self._evaluate = torch.compile(self.model, dynamic=False)
            if torch.device(device).type == "cuda":
                self._differentiate = self._evaluate

    def _move_to(self, row: Tensor) -> None:
        # Copied, not pointed at: kernels pick their code path by alignment, and compiled code
        # expects the parameters where they were.
        torch._foreach_copy_(self._storage, self._pieces(row))

    def _pieces(self, row: Tensor) -> list[Tensor]:
        """Views of each parameter in a row of weights, as ``layout.views`` without the names."""
        return [
            piece.as_strided(shape, stride, piece.storage_offset())
            for piece, shape, stride in zip(
                row.split(self.layout.sizes), self.layout.shapes, self.layout.strides, strict=True
            )
        ]

    def gradients(self, weights: Tensor, batches: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        gradient, values = torch.empty_like(weights), []
        for row, batch in enumerate(batches):
            self._move_to(weights[row])
            x, y = map_tensors(torch.clone, batch)
            with without_tf32():
                value = _input_losses(self._differentiate, self._loss, x, y).mean()
                # What the output does not depend on has gradient 0, as in the other engine.
                if not value.requires_grad:
                    value = value + 0 * self._parameters[0].sum()
                grads = torch.autograd.grad(value, self._parameters, materialize_grads=True)
            dense = [part.to_dense() if part.is_sparse else part for part in grads]
            torch._foreach_copy_(self._pieces(gradient[row]), dense)
            values.append(value.detach())
        return gradient, torch.stack(values)

    def losses(self, weights: Tensor, inputs: Inputs, block: int) -> Tensor:
        return torch.stack(
            [
                torch.cat([self._at(row, x, y, self._evaluate) for x, y in inputs.blocks(block)])
                for row in weights
            ]
        ).cpu()

    def example_losses(self, weights: Tensor, x: Any, y: Any) -> Tensor:
        batch = x, y
        return torch.stack(
            [self._at(row, *map_tensors(torch.clone, batch), self.model) for row in weights]
        )

    def output(self, x: Any) -> Any:
        with without_tf32(), self._evaluation():
            return self.model(map_tensors(_real, x))

    def _at(self, row: Tensor, x: Any, y: Any, model: Callable) -> Tensor:
        with without_tf32(), self._evaluation():
            self._move_to(row)
            return _input_losses(model, self._loss, x, y).detach()


def make_engine(
    kind: str,
    model: nn.Module,
    loss: LossPerInput,
    names: list[str],
    example: tuple[Any, Any],
    device="cpu",
    compiled: bool = False,
    small: int | None = None,
) -> Engine:
    """The engine called ``kind``: ``"batched"``, ``"sequential"`` or ``"auto"``.

    ``auto`` takes the batched engine for models of up to ``small`` perturbed parameters when a
    trial on ``example`` (a few inputs and targets) succeeds, else the sequential one. By default
    small is 2 million on a GPU, where launching kernels costs most, and 20,000 on a CPU, where a
    transformer of 120,000 parameters runs 3.5 times faster chain by chain. ``compiled`` on a CPU
    needs the sequential engine.

    Raises:
        ConfigError: a name is unknown, or the engine asked for cannot do it.
    """
    on_cpu = torch.device(device).type == "cpu"
    if small is None:
        small = SMALL_ON_CPU if on_cpu else SMALL
    if kind not in ("auto", "batched", "sequential"):
        raise ConfigError(f"engine: '{kind}' is not one of auto, batched, sequential")

    def sequential() -> Engine:
        failed = None
        for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
            trial = SequentialEngine(model, loss, names, device, False, mode)
            try:
                trial.example_losses(trial.center[None], *example)
                trial.gradients(trial.center[None], [example])
            except LossKernelError:
                raise
            except Exception as error:
                failed = failed or error
                continue
            # Anew: a model may keep something from its first call.
            return SequentialEngine(model, loss, names, device, compiled, mode)
        raise ConfigError(
            f"model: fails on the first inputs ({_told(failed)}); see that model(inputs) and "
            "loss(output, targets) work on a batch"
        ) from failed

    if kind == "sequential" or (compiled and on_cpu):
        if kind == "batched":
            raise ConfigError("engine: compiled on a CPU needs engine 'sequential'")
        return sequential()
    parameters = dict(model.named_parameters())
    if kind == "auto" and sum(parameters[name].numel() for name in names) > small:
        return sequential()
    engine = BatchedEngine(model, loss, names, device, compiled)
    try:
        weights = engine.center.expand(2, -1)
        engine.gradients(weights, [example, example])
        with torch.inference_mode():  # where other operations run than in a differentiated pass
            engine.example_losses(weights, *example)
            # Fails where the model has kept what only exists inside the vectorized pass.
            engine.output(map_tensors(torch.clone, example[0]))
    except LossKernelError:
        raise
    except Exception as error:
        if kind == "auto":
            return sequential()
        raise ConfigError(
            f"engine: the model cannot be batched over chains ({_told(error)}); "
            "use engine 'sequential'"
        ) from error
    return engine
