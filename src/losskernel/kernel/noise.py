"""What of a kernel is sampling noise alone."""

from __future__ import annotations

import numpy as np

from losskernel.kernel.alignment import pair_correlation
from losskernel.seeds import numpy_generator

_BLOCK = 256  # inputs at once


def shifted(losses: np.ndarray, seed: int = 0) -> np.ndarray:
    """A null trace: each input's chains in a random order of its own, each rotated in time.

    Keeps every input's distribution and autocorrelation and destroys what inputs have in common;
    the order of the chains that in which they differ, which a rotation would leave.

    Args:
        losses: ``(chain, draw, input)``.
    """
    chains, draws, inputs = losses.shape
    rng = numpy_generator(seed, "resample")
    shift = rng.integers(draws, size=(chains, 1, inputs))
    order = rng.permuted(np.tile(np.arange(chains)[:, None], inputs), axis=0)[:, None]
    result = np.empty_like(losses)
    for start in range(0, inputs, _BLOCK):  # the index of a draw is larger than its loss
        rows = slice(start, start + _BLOCK)
        index = (np.arange(draws)[None, :, None] + shift[..., rows]) % draws
        own = np.take_along_axis(losses[..., rows], order[..., rows], axis=0)
        result[..., rows] = np.take_along_axis(own, index, axis=1)
    return result


def noise_floor(losses: np.ndarray, center: str = "pooled", seed: int = 0) -> float:
    """Standard deviation of R between unrelated inputs, from :func:`shifted` losses.

    For independent draws it is ``1 / sqrt(samples - 1)``; autocorrelation raises it. A correlation
    is resolved if it exceeds this several times. It takes the memory of a copy of the losses.
    """
    return pair_correlation(shifted(losses, seed), center)[1]
