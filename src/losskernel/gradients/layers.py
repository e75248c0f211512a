"""Per-sample gradients of a block of inputs from one forward and one backward pass.

The gradient of an input's loss in the weight of a linear layer is a sum over positions (pixels,
tokens) of products: the gradient at the layer's output times the activation at its input. Both are
known for every input of a block after one backward pass (Goodfellow 2015, arXiv:1510.01799), and a
convolution is a linear layer of its patches (Rochette et al. 2019, arXiv:1912.06015). So the
backward pass hands each layer's gradients to a *fold* (:mod:`losskernel.gradients.sketch`) as it
comes by them, and never holds the gradients of two layers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losskernel.gradients.sketch import Fold
from losskernel.sampling.engines import LossPerInput, _frozen_copy, _input_losses, without_tf32
from losskernel.sampling.inputs import leaves, map_tensors
from losskernel.sampling.parameters import FlatLayout


class NotServedError(Exception):
    """The gradients of this model cannot be had layer by layer."""


class LayerGradients:
    """Per-sample gradients layer by layer, for models of plain layers.

    Served are :class:`~torch.nn.Linear`, :class:`~torch.nn.Conv2d`, :class:`~torch.nn.Embedding`,
    layer and group normalization and batch normalization with frozen statistics, wherever their
    first axis is the input's; called any number of times and with tied weights. Works on a copy of
    the model in evaluation mode.

    Args:
        model: the network.
        loss: ``loss(output, target)`` with one value per input.
        names: parameters whose gradients are wanted.
        device: where to compute.

    Raises:
        NotServedError: a parameter belongs to a layer of another type.
    """

    kind = "layers"

    def __init__(self, model: nn.Module, loss: LossPerInput, names: list[str], device="cpu"):
        self._model, self._loss = _frozen_copy(model, device), loss
        self.layout = FlatLayout(self._model, names)
        parameters = dict(self._model.named_parameters())
        self.center = self.layout.flatten(parameters)
        self._parameters = [parameters[name].requires_grad_() for name in names]
        self._views = [parameter.data for parameter in self._parameters]
        self._count = 0
        self._names = {id(parameters[name]): name for name in names}
        found = set()
        for module in self._model.modules():
            own = {id(p) for p in module.parameters(recurse=False)} & self._names.keys()
            if not own:
                continue
            forward = _served(module)
            if forward is None:
                raise NotServedError(f"{type(module).__name__} is not among the layers served")
            module.forward = _Layer(self, module, forward)
            found |= own
        if len(found) < len(self._names):
            raise NotServedError("a parameter belongs to no layer")

    def block(self, weights: Tensor, x: Any, y: Any, fold: Fold, out: Tensor) -> Tensor:
        """Add the gradients of some inputs' losses at ``weights``, folded, to ``out``.

        Args:
            weights: ``(parameter,)`` in the order of ``layout``.
            x, y: inputs and targets.
            fold: what to do with the gradients.
            out: ``(input, column of the fold)`` float32.

        Returns:
            The losses, ``(input,)``.

        Raises:
            NotServedError: a layer is fed something else than one row or more an input, or a
                parameter is used outside its layer.
        """
        for view, moved in zip(self._views, self.layout.views(weights).values(), strict=True):
            view.copy_(moved)
        self._count = len(leaves(y)[0])
        self._fold, self._out = fold, out
        with without_tf32(), torch.enable_grad():
            batch = map_tensors(torch.clone, (x, y))  # the model may work in place
            losses = _input_losses(self._model, self._loss, *batch)
            outside = torch.autograd.grad(losses.sum(), self._parameters, allow_unused=True)
        for name, gradient in zip(self.layout.names, outside, strict=True):
            if gradient is not None:
                raise NotServedError(f"{name} is used outside its layer")
        return losses.detach()

    def wants(self, parameter: Tensor | None) -> bool:
        return parameter is not None and id(parameter) in self._names

    def product(self, parameter: Tensor, left: Tensor, right: Tensor) -> None:
        """Take a gradient as the product of two factors, see :meth:`Fold.add_product`."""
        self._fold.add_product(self._out, self._names[id(parameter)], left, right)

    def whole(self, parameter: Tensor, gradient: Tensor) -> None:
        """Take a gradient ``(input, *shape)``."""
        self._fold.add(self._out, self._names[id(parameter)], gradient)

    def by_input(self, tensor: Tensor) -> Tensor:
        if tensor.shape[0] != self._count:
            raise NotServedError(f"a layer is fed {tensor.shape[0]} rows for {self._count} inputs")
        return tensor


class _Layer:
    """What takes the place of a layer's ``forward``."""

    def __init__(self, engine: LayerGradients, module: nn.Module, forward: Callable):
        self._engine, self._module, self._forward = engine, module, forward

    def __call__(self, x: Tensor) -> Tensor:
        return self._forward(x, self._module, self._engine)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, engine):
        ctx.save_for_backward(x, weight)
        ctx.bias, ctx.engine = bias, engine
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        engine, count = ctx.engine, len(ctx.engine.by_input(gradient))
        left = gradient.reshape(count, -1, gradient.shape[-1])
        if engine.wants(weight):
            engine.product(weight, left, x.reshape(count, -1, x.shape[-1]))
        if engine.wants(ctx.bias):
            engine.whole(ctx.bias, left.sum(1))
        return gradient @ weight if ctx.needs_input_grad[0] else None, None, None, None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, engine, options):
        ctx.save_for_backward(x, weight)
        ctx.bias, ctx.engine, ctx.options = bias, engine, options
        return F.conv2d(x, weight, bias, **options)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        engine, options = ctx.engine, ctx.options
        engine.by_input(gradient)
        if engine.wants(weight):
            _convolution_products(engine, weight, x, gradient, options)
        if engine.wants(ctx.bias):
            engine.whole(ctx.bias, gradient.sum((2, 3)))
        moved = None
        if ctx.needs_input_grad[0]:
            moved = torch.ops.aten.convolution_backward(
                gradient,
                x,
                weight,
                None,
                options["stride"],
                options["padding"],
                options["dilation"],
                False,
                [0, 0],
                options["groups"],
                [True, False, False],
            )[0]
        return moved, None, None, None, None


def _convolution_products(
    engine: LayerGradients, weight: Tensor, x: Tensor, gradient: Tensor, options: dict
) -> None:
    """Hand over the gradients of a convolution: of its outputs times its patches."""
    groups = options["groups"]
    left = gradient.permute(0, 2, 3, 1).flatten(1, 2)  # input, position, channel out
    if groups == 1 and weight.shape[2:] == (1, 1) and options["padding"] == [0, 0]:
        step = options["stride"]
        right = x.permute(0, 2, 3, 1)[:, :: step[0], :: step[1]].flatten(1, 2)
        engine.product(weight, left, right)
        return
    right = _patches(x, weight.shape[2:], **options)
    if groups == 1:
        engine.product(weight, left, right)
        return
    by_group = right.unflatten(-1, (groups, -1)).flatten(1, 2)  # ..., position, h, w, group, in
    found = torch.einsum("nlgo,nlhwgi->ngoihw", left.unflatten(-1, (groups, -1)), by_group)
    engine.whole(weight, found.flatten(1, 2))


def _patches(x: Tensor, kernel, stride, padding, dilation, groups) -> Tensor:
    """What each output pixel sees, a view ``(input, *pixel, *kernel, channel)``."""
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    x = x.permute(0, 2, 3, 1).contiguous()
    count, height, width, channels = x.shape
    across = [
        (size - extent * (k - 1) - 1) // step + 1
        for size, extent, k, step in zip(x.shape[1:3], dilation, kernel, stride, strict=True)
    ]
    row, column = width * channels, channels
    return x.as_strided(
        (count, *across, *kernel, channels),
        (
            height * row,
            stride[0] * row,
            stride[1] * column,
            dilation[0] * row,
            dilation[1] * column,
            1,
        ),
    )


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, index, weight, engine, padding):
        ctx.save_for_backward(index)
        ctx.weight, ctx.engine, ctx.padding = weight, engine, padding
        return F.embedding(index, weight)

    @staticmethod
    def backward(ctx, gradient):
        (index,) = ctx.saved_tensors
        count = len(ctx.engine.by_input(gradient))
        index = index.reshape(count, -1)
        chosen = F.one_hot(index, len(ctx.weight)).to(gradient.dtype)
        if ctx.padding is not None:
            chosen[..., ctx.padding] = 0
        ctx.engine.product(ctx.weight, chosen, gradient.reshape(count, -1, gradient.shape[-1]))
        return None, None, None, None


class _Scale(torch.autograd.Function):
    """``x * weight + bias``, what normalizations end in; ``axes`` are those of the parameters."""

    @staticmethod
    def forward(ctx, x, weight, bias, engine, axes):
        ctx.save_for_backward(x, weight)
        ctx.bias, ctx.engine, ctx.axes = bias, engine, axes
        shape = [x.shape[axis] if axis in axes else 1 for axis in range(x.ndim)]
        ctx.shape = shape
        scaled = x * weight.view(shape)
        return scaled if bias is None else scaled + bias.view(shape)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        engine = ctx.engine
        engine.by_input(gradient)
        others = [axis for axis in range(1, x.ndim) if axis not in ctx.axes]
        for parameter, found in ((weight, lambda: gradient * x), (ctx.bias, lambda: gradient)):
            if engine.wants(parameter):
                total = found().sum(others) if others else found()
                engine.whole(parameter, total)
        return gradient * weight.view(ctx.shape), None, None, None, None


def _linear(x: Tensor, module: nn.Linear, engine: LayerGradients) -> Tensor:
    return _Linear.apply(x, module.weight, module.bias, engine)


def _conv2d(x: Tensor, module: nn.Conv2d, engine: LayerGradients) -> Tensor:
    options = {
        "stride": list(module.stride),
        "padding": list(module.padding),
        "dilation": list(module.dilation),
        "groups": module.groups,
    }
    return _Conv2d.apply(x, module.weight, module.bias, engine, options)


def _embedding(index: Tensor, module: nn.Embedding, engine: LayerGradients) -> Tensor:
    return _Embedding.apply(index, module.weight, engine, module.padding_idx)


def _layer_norm(x: Tensor, module: nn.LayerNorm, engine: LayerGradients) -> Tensor:
    shape = module.normalized_shape
    axes = range(x.ndim - len(shape), x.ndim)
    plain = F.layer_norm(x, shape, eps=module.eps)
    return _Scale.apply(plain, module.weight, module.bias, engine, axes)


def _group_norm(x: Tensor, module: nn.GroupNorm, engine: LayerGradients) -> Tensor:
    plain = F.group_norm(x, module.num_groups, eps=module.eps)
    return _Scale.apply(plain, module.weight, module.bias, engine, (1,))


def _batch_norm(x: Tensor, module: nn.BatchNorm2d, engine: LayerGradients) -> Tensor:
    plain = F.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)
    return _Scale.apply(plain, module.weight, module.bias, engine, (1,))


_SERVED = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
}


def _served(module: nn.Module) -> Callable | None:
    """What computes the layer, or None if it is not served as it stands."""
    if isinstance(module, nn.Conv2d) and (
        module.padding_mode != "zeros" or isinstance(module.padding, str)
    ):
        return None
    if isinstance(module, nn.Embedding) and (
        module.max_norm is not None or module.scale_grad_by_freq or module.sparse
    ):
        return None
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.running_mean is None:
        return None  # it normalizes by the batch, which then is no collection of single inputs
    return _SERVED.get(type(module))
