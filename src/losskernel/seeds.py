"""One seed for everything: independent random streams keyed by chain, step and purpose.

A stream depends on its key alone, not on what ran before it. So an interrupted chain needs no saved
generator state, and a chain is the same whichever chains run beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # half of the callers draw NumPy numbers only and do without torch
    import torch

_PIECE = 2**15  # numbers; the smallest of GPUs that train networks run as many threads
_PURPOSES = {
    "batch": 0,
    "noise": 1,
    "init": 2,
    "order": 3,
    "resample": 4,
    "augment": 5,
    "dropout": 6,
    "draw": 7,
    "sketch": 8,
    "labels": 9,
}


def stream(seed: int, purpose: str, *key: int) -> np.random.SeedSequence:
    """Seed sequence of one purpose (``batch``, ``noise``, ...) at a key such as (chain, step)."""
    return np.random.SeedSequence(seed, spawn_key=(_PURPOSES[purpose], *key))


def numpy_generator(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """NumPy generator of that stream."""
    return np.random.default_rng(stream(seed, purpose, *key))


def torch_seed(seed: int, purpose: str, *key: int) -> int:
    """63-bit integer seed of that stream, for :meth:`torch.Generator.manual_seed`."""
    return int(stream(seed, purpose, *key).generate_state(1, np.uint64)[0] >> 1)


def fill_normal(out: torch.Tensor, generator: torch.Generator, seed: int, *key: int) -> None:
    """Fill ``out``, ``(count,)``, in place with standard normal draws of the noise at ``key``."""
    _fill(out, generator, torch_seed(seed, "noise", *key))


def fill_draw(
    out: torch.Tensor, generator: torch.Generator, seed: int, chain: int, draw: int
) -> None:
    """Fill ``out``, ``(count,)``, in place with the standard normal vector z of a direct draw."""
    _fill(out, generator, torch_seed(seed, "draw", chain, draw))


def _fill(out: torch.Tensor, generator: torch.Generator, seed: int) -> None:
    generator.manual_seed(seed)
    # How a GPU shares out more numbers than it has threads depends on its model; the same noise is
    # wanted on any.
    pieces = [out] if out.device.type == "cpu" else out.split(_PIECE)
    for piece in pieces:
        piece.normal_(generator=generator)
