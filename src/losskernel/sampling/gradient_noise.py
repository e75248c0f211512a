"""How much noise the minibatches add to that which the sampler injects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from losskernel.errors import ConfigError
from losskernel.sampling.engines import Engine, LossPerInput, make_engine
from losskernel.sampling.inputs import Inputs
from losskernel.sampling.parameters import select_parameters
from losskernel.sampling.probe import Probe
from losskernel.sampling.sample import Data, cross_entropy
from losskernel.seeds import fill_normal, numpy_generator


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
        ConfigError: ``pairs`` is below 2, or ``parameters`` selects nothing.
    """
    data = Inputs(data, device)
    names = select_parameters(model, parameters)
    runner = make_engine(
        engine, model, loss, names, data.take(np.arange(min(2, len(data)))), device
    )
    weights = perturbed(runner.center, probe.gamma, seed) if probe.gamma else runner.center
    total, squares = noise_moments(runner, data, weights, batch_size, pairs, seed)
    factor = probe.step_size * probe.n_beta**2 / 4
    return GradientNoise(
        factor * total / runner.layout.size, factor * (squares / total if total else 0)
    )


def noise_moments(
    engine: Engine, data: Inputs, weights: Tensor, batch_size: int, pairs: int, seed: int
) -> tuple[float, float]:
    """``tr(C)`` and ``tr(C^2)`` of the covariance of minibatch gradients at ``weights``.

    Returns zeros if a minibatch holds all of the data. Arguments as for :func:`gradient_noise`.
    """
    if pairs < 2:
        raise ConfigError(f"gradient noise: pairs = {pairs} must be at least 2")
    if batch_size >= len(data):
        return 0.0, 0.0
    differences = torch.empty(pairs, len(weights), device=weights.device)
    for pair in range(pairs):
        batches = []
        for half in (0, 1):
            rng = numpy_generator(seed, "batch", 2 * pair + half)
            batches.append(data.take(rng.choice(len(data), batch_size, replace=False)))
        gradients, _ = engine.gradients(weights.repeat(2, 1), batches)
        differences[pair] = (gradients[0] - gradients[1]) / 2**0.5
    products = (differences @ differences.T).double().cpu().numpy()
    apart = ~np.eye(pairs, dtype=bool)
    return float(np.diag(products).mean()), float((products[apart] ** 2).mean())


def perturbed(center: Tensor, gamma: float, seed: int, number: int = 0, sign: int = 1) -> Tensor:
    """Weights ``w* + sign gamma^-1/2 xi``, ``(parameters,)``; seed and number decide xi."""
    noise = torch.empty_like(center)
    fill_normal(noise, torch.Generator(center.device), seed, number)
    return center + noise * (sign * gamma**-0.5)
