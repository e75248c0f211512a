"""Choosing which parameters of a model are perturbed, and laying them out as one flat vector."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from losskernel.errors import ConfigError

log = logging.getLogger(__name__)


def select_parameters(model: nn.Module, patterns: str | Sequence[str] = "trainable") -> list[str]:
    """Names of the parameters to perturb, in the model's order.

    Args:
        model: any module; tied parameters count once, under their first name.
        patterns: ``"trainable"``, those that require gradients (all, if none does); ``"all"``; or
            shell-style patterns such as ``"blocks.*.attention.*"``. A parameter is taken if it
            matches any plain pattern, frozen or not, and no pattern that starts with ``!``. Without
            a plain one the latter take from the trainable: ``["!unembed*"]`` is all of these but
            the unembedding.

    Raises:
        ConfigError: nothing is selected, a complex parameter is, a pattern matches no parameter
            (a likely typo), or the model is none.
    """
    if isinstance(model, type) or not hasattr(model, "named_parameters"):
        raise ConfigError(f"model: {model!r} is no network; pass an object of torch.nn.Module")
    named = list(model.named_parameters())
    sizes = {n: p.numel() for n, p in named if p.is_floating_point() or p.is_complex()}
    trained = [name for name, p in named if p.requires_grad and name in sizes]
    if patterns == "all":
        patterns = ["*"]
    elif patterns == "trainable":
        patterns = []
    elif isinstance(patterns, str):
        patterns = [patterns]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ConfigError(f"parameters: a {type(pattern).__name__} is no name of a parameter")
        if not any(fnmatchcase(name, pattern.removeprefix("!")) for name in sizes):
            raise ConfigError(
                f"parameters: the pattern '{pattern}' matches none of the model's {len(sizes)} "
                f"parameters; the names are like '{next(iter(sizes), '(none)')}'"
            )
    include = [p for p in patterns if not p.startswith("!")]
    exclude = [p[1:] for p in patterns if p.startswith("!")]
    chosen = [
        name
        for name in sizes
        if (any(fnmatchcase(name, p) for p in include) if include else name in (trained or sizes))
        and not any(fnmatchcase(name, p) for p in exclude)
    ]
    if not chosen:
        raise ConfigError(f"parameters: {list(patterns)} selects no parameter of the model")
    for name in chosen:
        if dict(named)[name].is_complex():
            raise ConfigError(
                f"parameters: '{name}' is complex and the probe is of real weights; leave it out "
                f"with the pattern '!{name}', or keep its real and imaginary parts as parameters"
            )
    if not include and len(trained) < len(sizes):
        log.warning(
            "parameters: %d of %d weights are perturbed, %s",
            sum(sizes[name] for name in chosen),
            sum(sizes.values()),
            "those that require gradients; 'all' would be all"
            if trained
            else "as none of the model's requires gradients",
        )
    return chosen


def select_among(names: Sequence[str], patterns: str | Sequence[str] = "all") -> list[str]:
    """As :func:`select_parameters`, from the names alone, of parameters that are all trained."""
    parameters = [(name, torch.empty(0, requires_grad=True)) for name in names]
    return select_parameters(SimpleNamespace(named_parameters=lambda: parameters), patterns)


def layout_fingerprint(shapes: Sequence[Sequence[int]], strides: Sequence[Sequence[int]]) -> str:
    """16 hex digits that differ if parameters lie otherwise in a flat vector (SHA-256)."""
    described = json.dumps([[*map(list, shapes)], [*map(list, strides)]])
    return hashlib.sha256(described.encode()).hexdigest()[:16]


class FlatLayout:
    """Where each chosen parameter sits in a flat vector, each in its own memory order.

    Keeping a parameter's strides lets a channels-last convolution read its weights from the flat
    vector without a copy.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]):
        parameters = dict(model.named_parameters())
        self.names = list(names)
        self.shapes = [parameters[name].shape for name in names]
        self.strides = [parameters[name].stride() for name in names]
        self.sizes = [parameters[name].numel() for name in names]
        self.size = sum(self.sizes)

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """One vector of shape ``(size,)`` from named tensors of the layout's shapes."""
        flat = torch.empty(self.size, dtype=torch.float32, device=tensors[self.names[0]].device)
        for name, view in self.views(flat).items():
            view.copy_(tensors[name])
        return flat

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Named views into a vector of shape ``(size,)``; differentiable and free of copies."""
        pieces = torch.split(flat, self.sizes)
        return {
            name: piece.as_strided(shape, stride, piece.storage_offset())
            if not _is_contiguous(shape, stride)
            else piece.view(shape)
            for name, piece, shape, stride in zip(
                self.names, pieces, self.shapes, self.strides, strict=True
            )
        }


def _is_contiguous(shape: torch.Size, stride: tuple[int, ...]) -> bool:
    return torch.empty(shape, device="meta").stride() == stride
