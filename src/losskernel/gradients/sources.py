"""Per-sample gradients at any weights: layer by layer, vectorized over inputs, or one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from losskernel.errors import ConfigError
from losskernel.gradients.layers import LayerGradients, NotServedError
from losskernel.gradients.sketch import Fold
from losskernel.sampling.checks import check_losses
from losskernel.sampling.engines import (
    SMALL,
    LossPerInput,
    SequentialEngine,
    _frozen_copy,
    _input_losses,
    _real,
    make_engine,
    quiet,
    without_tf32,
)
from losskernel.sampling.inputs import Inputs, map_tensors
from losskernel.sampling.parameters import FlatLayout

ENGINES = ("auto", "layers", "batched", "sequential")
# Of what one block of inputs holds: activations, gradients and folded gradients.
_BLOCK_BYTES = 2**29
_MOST_INPUTS = 256
# Sums in float32 in another order differ by 1e-6 or so, a misunderstood layer by the whole.
_TOLERANCE = 1e-3


class GradientSource(Protocol):
    """Folded per-sample gradients of one model and loss."""

    kind: str
    layout: FlatLayout
    center: Tensor  # (parameter,): the trained weights

    def block(self, weights: Tensor, x: Any, y: Any, fold: Fold, out: Tensor) -> Tensor:
        """See :meth:`losskernel.gradients.layers.LayerGradients.block`."""


class BatchedGradients:
    """Vectorized over inputs by :mod:`torch.func`; for small models of any layers."""

    kind = "batched"

    def __init__(self, model: nn.Module, loss: LossPerInput, names: list[str], device="cpu"):
        model = _frozen_copy(model, device)
        self.layout = FlatLayout(model, names)
        self.center = self.layout.flatten(dict(model.named_parameters()))

        def value(flat: Tensor, x: Any, y: Any) -> Tensor:
            pair = map_tensors(lambda t: t[None], (x, y))
            views = self.layout.views(flat)
            return _input_losses(lambda x: functional_call(model, views, (x,)), loss, *pair)[0]

        self._gradients = quiet(vmap(grad_and_value(value), in_dims=(None, 0, 0)))

    def block(self, weights: Tensor, x: Any, y: Any, fold: Fold, out: Tensor) -> Tensor:
        with without_tf32():
            gradients, losses = self._gradients(weights, *map_tensors(torch.clone, (x, y)))
        fold.add_rows(out, gradients)
        return losses.detach()


class SingleGradients:
    """One backward pass an input; for any model."""

    kind = "sequential"

    def __init__(self, engine: SequentialEngine):
        self.engine = engine
        self.layout, self.center = self.engine.layout, self.engine.center

    def block(self, weights: Tensor, x: Any, y: Any, fold: Fold, out: Tensor) -> Tensor:
        losses = []
        for i in range(len(out)):
            one = [_at(x, i), _at(y, i)]
            gradient, value = self.engine.gradients(weights[None], [one])
            fold.add_rows(out[i : i + 1], gradient)
            losses.append(value)
        return torch.cat(losses)


def _at(part: Any, i: int) -> Any:
    """Input ``i`` of a block, or target, as a batch of one."""
    if isinstance(part, Mapping):
        return {key: _at(value, i) for key, value in part.items()}
    if isinstance(part, (tuple, list)) and not any(isinstance(value, str) for value in part):
        return [_at(value, i) for value in part]
    return part[i : i + 1]


_SOURCES: dict[str, Callable[..., GradientSource]] = {
    "layers": LayerGradients,
    "batched": BatchedGradients,
}


def make_source(
    kind: str,
    model: nn.Module,
    loss: LossPerInput,
    names: list[str],
    inputs: Inputs,
    device="cpu",
    default_loss: bool = False,
    beside: int = 0,
) -> tuple[GradientSource, int, str]:
    """A source of gradients, how many inputs to give it at once, and what tells the model.

    The last is what :func:`losskernel.sampling.checks.check_losses` returns.

    Args:
        kind: ``"layers"``, ``"batched"``, ``"sequential"``, or ``"auto"``: the first of these that
            reproduces some gradients taken one by one, on the first block of ``inputs`` in another
            order. Batched is tried for up to 2 million parameters.
        model, loss, names, device: as for :class:`LayerGradients`.
        inputs: what gradients will be asked for.
        default_loss: see :func:`losskernel.sampling.checks.check_losses`.
        beside: bytes an input that the caller holds while a block is computed.

    Raises:
        ConfigError: the kind is unknown, or cannot serve the model.
        DataError: the losses are no function of the weights, input by input; see
            :func:`losskernel.sampling.checks.check_losses`.
    """
    if kind not in ENGINES:
        raise ConfigError(f"engine: '{kind}' is not one of {', '.join(ENGINES)}")
    example = inputs.take(np.arange(min(2, len(inputs))))
    single = SingleGradients(make_engine("sequential", model, loss, names, example, device))
    behavior = check_losses(single.engine, inputs, default_loss, of=(model, loss))
    weights = single.center
    size = _block_size(model, inputs, single.layout.size, device, beside)
    if kind == "sequential":
        return single, size, behavior
    # In an order of chance: a model that sorts its batch, and unsorts it, would find data in their
    # own order sorted where it begins, and gradients of layers in the order of the inputs.
    first = np.random.default_rng(0).permutation(min(size, len(inputs)))
    x, y = inputs.take(first)
    fold = Fold(single.layout, 2**14, device=device)
    chosen = sorted({*np.linspace(0, len(first) - 1, 6).round().astype(int).tolist()})
    expected = torch.zeros(len(chosen), fold.width, device=device)
    for row, i in zip(expected, chosen, strict=True):
        single.block(weights, _at(x, i), _at(y, i), fold, row[None])
    reason = ""
    for name in ("layers", "batched") if kind == "auto" else (kind,):
        if name == "batched" and kind == "auto" and single.layout.size > SMALL:
            continue
        try:
            source = _SOURCES[name](model, loss, names, device)
            found = torch.zeros(min(size, len(inputs)), fold.width, device=device)
            source.block(weights, x, y, fold, found)
            apart = torch.linalg.vector_norm(found[chosen] - expected, dim=1)
            size_of = torch.linalg.vector_norm(expected, dim=1)
            # What is not finite is for the caller to tell of.
            if ((apart <= _TOLERANCE * size_of) | ~torch.isfinite(size_of)).all():
                return source, size, behavior
            reason = "its gradients are not those of single inputs"
        except (NotServedError, RuntimeError, NotImplementedError, AttributeError, TypeError) as e:
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
    if kind == "auto":
        return single, size, behavior
    raise ConfigError(
        f"engine: '{kind}' cannot serve this model ({reason}); use engine 'auto' or 'sequential'"
    )


def _block_size(model: nn.Module, inputs: Inputs, parameters: int, device, beside: int) -> int:
    """Inputs whose activations, as a pass with gradients keeps them, take half a gigabyte."""
    trial = _frozen_copy(model, device)
    for parameter in trial.parameters():
        parameter.requires_grad_()
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = trial(map_tensors(_real, inputs.take([0])[0]))
    del output
    weights = {tensor.untyped_storage().data_ptr() for tensor in trial.parameters()}
    activations = sum(size for address, size in kept.items() if address not in weights)
    # Vectorized over inputs three copies of every gradient exist at once.
    beside += 12 * parameters if parameters <= SMALL else 0
    return int(max(1, min(_MOST_INPUTS, _BLOCK_BYTES // max(1, activations + beside))))
