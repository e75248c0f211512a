"""Penultimate features of a classifier, the usual baseline of what it makes of an input."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from losskernel.errors import ConfigError


@torch.inference_mode()
def penultimate_features(model: nn.Module, blocks: Iterable[Tensor]) -> Tensor:
    """What the model's last linear layer gets to see, ``(input, feature)``, whichever model it is.

    Args:
        model: a classifier in evaluation mode.
        blocks: inputs, some at a time.

    Raises:
        ConfigError: the model has no linear layer.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError("model: has no linear layer to read features at")
    captured: list[Tensor] = []
    hook = linear[-1].register_forward_pre_hook(lambda _, args: captured.append(args[0].flatten(1)))
    try:
        for block in blocks:
            model(block)
    finally:
        hook.remove()
    return torch.cat(captured)
