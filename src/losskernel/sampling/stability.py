"""What bounds the step size of a chain: the curvature of the loss, and the noise of minibatches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from losskernel.errors import ConfigError
from losskernel.sampling.engines import Engine
from losskernel.sampling.inputs import Inputs
from losskernel.seeds import fill_normal, numpy_generator


def noise_moments(
    engine: Engine, data: Inputs, weights: Tensor, batch_size: int, pairs: int, seed: int
) -> tuple[float, float]:
    """``tr(C)`` and ``tr(C^2)`` of the covariance of minibatch gradients at ``weights``.

    Returns zeros if a minibatch holds all of the data. Arguments as for
    :func:`losskernel.sampling.gradient_noise.gradient_noise`.
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


def curvature(
    engine: Engine,
    data: Inputs,
    weights: Tensor,
    length: float,
    batch_size: int,
    seed: int,
    iterations: int = 8,
) -> float:
    """Largest absolute Hessian eigenvalue of one minibatch's loss, by power iteration.

    Products with the Hessian are differences of gradients over ``2 length``.
    """
    rng = numpy_generator(seed, "batch")
    size = min(batch_size, len(data))
    batch = data.take(rng.choice(len(data), size, replace=False))
    direction, _ = engine.gradients(weights[None], [batch])
    direction, value = direction[0], 0.0
    for _ in range(iterations):
        norm = float(direction.norm())
        if norm == 0:
            return 0.0
        direction = direction / norm
        ends = torch.stack([weights + length * direction, weights - length * direction])
        gradients, _ = engine.gradients(ends, [batch, batch])
        direction = (gradients[0] - gradients[1]) / (2 * length)
        value = float(direction.norm())
    return value


def perturbed(center: Tensor, gamma: float, seed: int, number: int = 0, sign: int = 1) -> Tensor:
    """Weights ``w* + sign gamma^-1/2 xi``, ``(parameters,)``; seed and number decide xi."""
    noise = torch.empty_like(center)
    fill_normal(noise, torch.Generator(center.device), seed, number)
    return center + noise * (sign * gamma**-0.5)
