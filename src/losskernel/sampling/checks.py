"""What must hold before the first draw: losses are a function of the weights, input by input.

The kernel is the covariance of such functions. If a loss is random, keeps a state or depends on the
other inputs of a batch, draws look like any others and their covariance is that of something else.
A few evaluations at the trained weights show it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from losskernel.errors import DataError
from losskernel.sampling.engines import Engine
from losskernel.sampling.inputs import Inputs, fingerprint, leaves, map_tensors
from losskernel.trace import settings_attribute

_FEW, _MANY = 6, 64  # inputs that are evaluated, and before a loss counts as constant
# How far two evaluations of a loss may be apart, as a share of it. A float32 sum of n terms in one
# order or another is within some sqrt(n) 2^-24 of itself: 1e-5 for 10,000 terms. A tenfold chain of
# such layers, and logits of which a loss is a small difference, leave 1e-3 as a bound that
# rounding alone does not reach.
_TOLERANCE = 1e-3
_REPEATED = 0.01  # of that, for the very same evaluation a second time
_MOVED = 0.01  # standard deviation of a small move of the weights, in their root mean square


def check_losses(
    engine: Engine,
    inputs: Inputs,
    default_loss: bool,
    gradients: bool = True,
    of: tuple[nn.Module, Callable] | None = None,
) -> str:
    """Refuse losses that are no deterministic function of the weights, input by input.

    A handful of inputs is evaluated at the trained weights twice, in another order, and one by one,
    and once at weights nearby, for the scale of the losses and to see that they differ.

    Args:
        engine: of the model and the loss.
        inputs: whose losses are to be sampled or differentiated.
        default_loss: whether the loss is :func:`losskernel.sampling.sample.cross_entropy`, which
            needs classes or their probabilities as targets.
        gradients: whether gradients of the losses will be asked for, too.
        of: the caller's model and loss, of which the engine has a copy.

    Returns:
        What tells the model and loss from others with the same tensors, as JSON: the losses of the
        handful, the norm of their mean's gradient, and how far rounding may move these. See
        :func:`losskernel.trace.behave_alike`.

    Raises:
        DataError: an input is not finite, targets are no classes, the items of the data set differ
            from one reading to the next, the losses are not as above, or all are the same number.
    """
    check_data(engine, inputs, default_loss)
    few = _spread(len(inputs), _FEW)
    x, y = inputs.take(few)
    if of is not None and not default_loss:
        _check_that_the_loss_has_no_weights(engine, *of, x, y)
    center = engine.center[None]
    weights = torch.cat([center, _moved(engine.center)])
    whole = _evaluated(engine, weights, x, y)
    try:
        norm, size = _gradient_norm(engine, center, x, y), 1.0
        if norm == 0:  # or the losses are least there
            size = _gradient_norm(engine, weights[1:], x, y)
    except Exception:  # of probe inputs none may be needed, nor exist
        norm = size = float("nan")
    if gradients and size == 0 and (whole[0] != whole[1]).any():
        raise DataError(
            "loss: its gradient is 0 though it depends on the weights; leave detach, no_grad, "
            "argmax, rounding and NumPy out of model and loss"
        )
    behavior = settings_attribute(
        {"losses": whole[0].tolist(), "gradient_norm": norm, "tolerance": _TOLERANCE}
    )
    if not np.isfinite(whole[0]).all():
        return behavior  # the caller says which, of all inputs
    scale = np.fmax(np.abs(whole).max(0), np.abs(whole[0]).mean())
    allowed = _TOLERANCE * scale

    def differing(others: np.ndarray, places: Any, share: float = 1) -> int | None:
        far = np.flatnonzero(~(np.abs(others - whole[0, places]) <= share * allowed[places]))
        return int(np.arange(len(few))[places][far[0]]) if len(far) else None

    # The same operations on the same numbers, of which rounding leaves little room to differ.
    again = _evaluated(engine, weights, x, y)[0]
    place = differing(again, slice(None), _REPEATED)
    if place is not None:
        found = _first_layer(engine, x, x, lambda one, other: (one, other))
        raise DataError(
            f"{found}: two evaluations at the same weights differ (input {few[place]}: "
            f"{whole[0, place]:.6g}, then {again[place]:.6g}); losses must not be random nor keep "
            "a state between calls: in evaluation mode, dropout(x, training=self.training)"
        )
    turned = _evaluated(engine, center, *inputs.take(few[::-1].copy()))[0][::-1]
    place = differing(turned, slice(None))
    if place is not None:
        raise DataError(
            f"loss: that of input {few[place]} depends on the order of its batch "
            f"({whole[0, place]:.6g}, or {turned[place]:.6g} in reverse); it must depend on its "
            "own input and target alone"
        )
    for place in sorted({0, len(few) // 2, len(few) - 1}):
        one = inputs.take(few[[place]])
        try:
            alone = _evaluated(engine, center, *one)[0]
            found = f"{alone[0]:.6g}"
        except Exception as error:  # batch norm, which wants several
            alone, found = np.array([np.nan]), f"{type(error).__name__}: {error}".splitlines()[0]
        if differing(alone, [place]) is not None:
            where = _first_layer(engine, x, one[0], lambda a, b, i=place: _same_row(a, b, i))
            raise DataError(
                f"{where}: mixes the inputs of a batch (the loss of input {few[place]} is "
                f"{whole[0, place]:.6g} among {len(few)} and {found} alone); it must depend on its "
                "own input and target: batch norm needs its running statistics, a loss outputs and "
                "targets of one shape"
            )
    _check_that_losses_differ(engine, inputs, weights, whole)
    return behavior


def _check_that_the_loss_has_no_weights(
    engine: Engine, model: nn.Module, loss: Callable, x: Any, y: Any
) -> None:
    """Of the model: it is a copy that is moved, and the loss would see the caller's as it was."""
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    try:
        with torch.no_grad():
            # A copy of what inference mode may have made, which would have no gradient.
            output = map_tensors(torch.Tensor.clone, engine.output(x))
        with torch.enable_grad():
            values = loss(output, y).sum()
        if not values.requires_grad:
            return
        found = torch.autograd.grad(values, list(weights.values()), allow_unused=True)
    except Exception:  # of a loss that fails the caller has been told, or will be
        return
    used = [name for name, part in zip(weights, found, strict=True) if part is not None]
    if used:
        raise DataError(
            f"loss: uses weights of the model itself ({used[0]}), where they are not moved; use "
            "them in the model's forward and leave the loss its output and the targets"
        )


def _spread(count: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def _moved(center: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(center), generator=generator, device="cpu").to(center.device)
    size = float(center.double().square().mean().sqrt()) or 1.0
    return (center + _MOVED * size * noise)[None]


def _evaluated(engine: Engine, weights: Tensor, x: Any, y: Any) -> np.ndarray:
    with torch.no_grad():
        return engine.example_losses(weights, x, y).double().cpu().numpy()


def _gradient_norm(engine: Engine, weights: Tensor, x: Any, y: Any) -> float:
    return float(engine.gradients(weights, [(x, y)])[0].double().norm())


def check_data(engine: Engine, inputs: Inputs, default_loss: bool) -> None:
    """Refuse inputs that are not finite or differ between readings, and targets of no class.

    All of data in memory, a few of a data set, whose others are checked to be finite as they are
    read. Random augmentation is refused of training data too: it draws from one state that all
    chains and processes share, so that neither a seed nor a journal would give the same chains
    again. Arguments and errors as for :func:`check_losses`.
    """
    inputs.check_finite()
    few = _spread(len(inputs), _FEW)
    for i in () if inputs.in_memory else few:
        if len({fingerprint(leaves(list(inputs.take([i])))) for _ in range(2)}) == 2:
            raise DataError(
                f"data: item {i} differs from one reading to the next; leave out random "
                "augmentation, or fix its seed by item"
            )
    if not default_loss:
        return
    few = inputs.take(few)
    with torch.no_grad():
        output = engine.output(few[0])
    targets = inputs.targets if inputs.in_memory else few[1]
    if not (isinstance(output, Tensor) and isinstance(targets, Tensor)):
        return  # the loss itself has said so
    classes = output.shape[1]
    if (output > 0).all() and (output.sum(1) - 1).abs().max() < 1e-5:
        raise DataError(
            "model: returns probabilities, and the default loss needs logits; leave the softmax "
            "out, or pass loss=lambda p, y: torch.nn.functional.nll_loss(p.log(), y, "
            "reduction='none')"
        )
    if targets.is_floating_point():
        if (targets < 0).any() or (targets.sum(1) - 1).abs().max() > 1e-3:
            raise DataError(
                "targets: floating-point numbers that are no class probabilities, from 0 on and "
                "summing to 1; give integer labels, or pass loss= of a regression"
            )
        return
    lowest, highest = int(targets.min()), int(targets.max())
    if lowest < 0 or highest >= classes:
        remedy = "number the classes from 0 on"
        if lowest == 1 and highest == classes:
            remedy = "subtract 1"
        elif lowest < 0:
            remedy = f"leave out the inputs with label {lowest}, which have no loss"
        raise DataError(
            f"targets: labels from {lowest} to {highest}, but the model has {classes} outputs, "
            f"for labels 0 to {classes - 1}; {remedy}"
        )


def _check_that_losses_differ(
    engine: Engine, inputs: Inputs, weights: Tensor, losses: np.ndarray
) -> None:
    if (losses == losses[:, :1]).all():
        many = _spread(len(inputs), _MANY)
        x, y = inputs.take(many)
        different = {fingerprint(leaves(inputs.take([i])[0])) for i in many}
        losses = _evaluated(engine, weights, x, y)
        if len(different) > 1 and (losses == losses[:, :1]).all():
            raise DataError(
                f"loss: is the same number ({losses[0, 0]:.6g}) for each of {len(many)} inputs, at "
                "the trained weights and at others; it must depend on the input"
            )


def _first_layer(engine: Engine, first: Any, second: Any, pair: Callable) -> str:
    """What makes different numbers of the same: the first and innermost layer, or the loss.

    Args:
        engine: of the model.
        first, second: inputs, which hold some rows in common.
        pair: gives the common part of a tensor of either pass, or None if it knows of none.
    """
    for one, other in zip(_calls(engine, first), _calls(engine, second), strict=False):
        if one.layer != other.layer or one.made is None:
            break
        same = other.made is not None and _agree(one.made, other.made, pair)
        if not same and _agree(one.taken, other.taken, pair):
            return one.layer
        if one.whole:
            return "loss"  # the model makes the same of the same
    return "model or loss"


class _Call(NamedTuple):
    """One call of a layer: its inputs and outputs, None where it failed."""

    layer: str
    whole: bool  # whether it is the model itself
    taken: list[Tensor]
    made: list[Tensor] | None


def _calls(engine: Engine, x: Any) -> list[_Call]:
    """The calls of all layers in a forward pass, inner ones first."""
    calls, begun, hooks = [], [], []

    def tensors(part: Any) -> list[Tensor]:
        found = leaves(list(part) if isinstance(part, tuple) else part)
        return [leaf.detach().clone() for leaf in found if isinstance(leaf, Tensor)]

    def hook(name: str, module: nn.Module) -> None:
        kind = type(module).__name__
        layer = f"model: the layer '{name}' ({kind})" if name else f"model: {kind}.forward"

        def before(module: nn.Module, args: tuple) -> None:
            begun.append(_Call(layer, not name, tensors(args), None))

        def after(module: nn.Module, args: tuple, output: Any) -> None:
            calls.append(begun.pop()._replace(made=tensors(output)))

        hooks.append(module.register_forward_pre_hook(before))
        hooks.append(module.register_forward_hook(after))

    try:
        for name, module in engine.model.named_modules():
            hook(name, module)
        with torch.no_grad():
            engine.output(map_tensors(torch.clone, x))
    except Exception:  # a hook that a scripted model refuses, or a layer that needs several inputs
        calls += begun[-1:]
    finally:
        for handle in hooks:
            handle.remove()
    return calls


def _same_row(whole: Tensor, alone: Tensor, place: int) -> tuple[Tensor, Tensor] | None:
    """The part of a batch's tensor that belongs to one input, and that of the input alone."""
    if whole.shape == alone.shape:
        return whole, alone
    apart = [d for d in range(min(whole.ndim, alone.ndim)) if whole.shape[d] != alone.shape[d]]
    if whole.ndim != alone.ndim or len(apart) != 1 or alone.shape[apart[0]] != 1:
        return None
    return whole.select(apart[0], place), alone.select(apart[0], 0)


def _agree(first: list[Tensor], second: list[Tensor], pair: Callable) -> bool:
    for one, other in zip(first, second, strict=False):
        common = pair(one, other)
        if common is not None and not torch.equal(*common):
            a, b = (part if part.is_complex() else part.double() for part in common)
            if not bool((a - b).abs().max() <= 1e-3 * a.abs().max()):
                return False
    return True
