"""What bounds the step size of a chain: the curvature of the loss, and the noise of minibatches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from losskernel.sampling.engines import Engine
from losskernel.sampling.inputs import Inputs
from losskernel.seeds import fill_normal, numpy_generator


def noise_moments(
    engine: Engine, data: Inputs, weights: Tensor, batch_size: int, pairs: int, seed: int
) -> tuple[float, float]:
    """``tr(C)`` and ``tr(C^2)`` of the covariance of minibatch gradients at ``weights``.

    A step of SGLD gets ``(eps n_beta / 2)^2 C`` on top of the ``eps I`` that is injected, so that
    a chain samples direction u about ``1 + eps n_beta^2 u^T C u / 4`` times too hot. The mean of
    ``u^T C u`` over all directions is ``tr(C) / parameters``; over those that gradients have, in
    which losses change, each by its share of the noise, it is ``tr(C^2) / tr(C)``.

    Differences ``D`` of the gradients of two minibatches, over sqrt(2), have covariance C without a
    mean to subtract; ``|D|^2`` estimates ``tr(C)`` and, for independent ones, ``(D D')^2``
    estimates ``tr(C^2)``, both without bias.

    Args:
        engine, data, weights: the model, its training data, and where, ``(parameter,)``.
        batch_size: inputs a minibatch, drawn without replacement.
        pairs: differences measured, at least 2; each costs two gradients and the memory of one.
        seed: of the minibatches.

    Returns:
        Both traces; zeros if a minibatch holds all of the data.
    """
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
