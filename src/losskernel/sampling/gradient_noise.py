"""How much noise the minibatches add to that which the sampler injects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from losskernel.errors import ConfigError
from losskernel.sampling.ambient import own_torch_settings
from losskernel.sampling.checks import check_losses
from losskernel.sampling.engines import LossPerInput, make_engine
from losskernel.sampling.inputs import Inputs
from losskernel.sampling.parameters import select_parameters
from losskernel.sampling.probe import Probe, whole
from losskernel.sampling.sample import Data, cross_entropy
from losskernel.sampling.stability import noise_moments, perturbed


@dataclass(frozen=True)
class GradientNoise:
    r"""Variance that minibatch gradients add to an SGLD step over the variance ``eps`` injected.

    With C the covariance of the minibatch's mean gradient, a step gets
    ``(eps n_beta / 2)^2 C`` on top of ``eps I``. The ratio in direction u is
    ``eps n_beta^2 u^T C u / 4``; the chain samples such a direction about ``1 + ratio`` times too
    hot.

    Attributes:
        per_direction: mean ratio over all directions, from ``tr(C) / parameters``.
        in_span: mean ratio over the directions that gradients have, each by its share of the noise:
            from ``tr(C^2) / tr(C)``. These are the directions in which losses change.
    """

    per_direction: float
    in_span: float


@own_torch_settings()
def gradient_noise(
    model: nn.Module,
    data: Data,
    probe: Probe,
    batch_size: int = 256,
    *,
    loss: LossPerInput = cross_entropy,
    parameters="trainable",
    pairs: int = 8,
    seed: int = 0,
    device: str | torch.device = "cpu",
    engine: str = "auto",
) -> GradientNoise:
    """Measure :class:`GradientNoise` at weights drawn from ``N(w*, I / gamma)``.

    Differences ``D`` of the gradients of two minibatches, over sqrt(2), have covariance C without a
    mean to subtract; ``|D|^2`` estimates ``tr(C)`` and, for independent ones, ``(D D')^2``
    estimates ``tr(C^2)``, both without bias.

    Args:
        model, data, probe, loss, parameters, seed, device, engine: as for
            :func:`losskernel.sampling.sample.sample_losses`; a copy of the model is used.
        batch_size: inputs a minibatch, drawn without replacement.
        pairs: differences measured, at least 2; each costs two gradients and the memory of one.

    Raises:
        DataError: as for :func:`losskernel.sampling.sample.sample_losses`.
        ConfigError: ``pairs`` is below 2, or ``parameters`` selects nothing.
    """
    if probe.direct:
        raise ConfigError("probe: n_beta = 0 takes no steps, and has no noise of minibatches")
    (seed,), (pairs,), (batch_size,) = (
        whole(0, seed=seed),
        whole(2, pairs=pairs),
        whole(1, batch_size=batch_size),
    )
    data = Inputs(data, device)
    names = select_parameters(model, parameters)
    runner = make_engine(
        engine, model, loss, names, data.take(np.arange(min(2, len(data)))), device
    )
    check_losses(runner, data, loss is cross_entropy)
    weights = perturbed(runner.center, probe.gamma, seed) if probe.gamma else runner.center
    total, squares = noise_moments(runner, data, weights, batch_size, pairs, seed)
    factor = probe.step_size * probe.n_beta**2 / 4
    return GradientNoise(
        factor * total / runner.layout.size, factor * (squares / total if total else 0)
    )
