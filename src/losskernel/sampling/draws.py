"""Independent draws of the Gaussian probe, shared out among workers.

The weights of a draw are ``w = w* + gamma^-1/2 z`` with z a standard normal vector that depends on
the seed and the numbers of chain and draw alone. So draws can be made in any order and by anyone, a
run can be resumed and extended, and under one seed every gamma sees the same z: what is compared
across gammas is compared on the same random numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from losskernel.sampling.chains import DivergenceError, Lane, Workers
from losskernel.sampling.engines import SMALL, Engine
from losskernel.seeds import fill_draw

# Draws evaluated in one vectorized pass. From 16 on a small multilayer perceptron gains no more.
_TOGETHER = 16
# Draws of a small model that a worker makes in one go, so that asking for them costs little.
_AT_ONCE = 8


def draws_at_once(engine: Engine) -> int:
    """How many draws of a chain are evaluated together: always as many, the last ones in vain.

    A matrix product's rounding depends on its size, and a draw must not depend on how many others
    were asked for.
    """
    if engine.together:
        return _TOGETHER
    return _AT_ONCE if engine.layout.size <= SMALL else 1


def has_convolutions(model: nn.Module) -> bool:
    """Whether it is faster evaluated draw by draw whatever its size.

    A convolution over several draws at once becomes a grouped one, 2 to 4 times slower on a CPU.
    """
    return any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())


class _Drawer:
    """What one worker does."""

    def __init__(self, lane: Lane, gamma: float, seed: int, block: int, keep: bool):
        self.engine, self._lane, self._seed, self._keep = lane.engine, lane, seed, keep
        self._scale, self._count = gamma**-0.5, draws_at_once(lane.engine)
        self._block = max(1, block // 4) if lane.engine.together else block
        self._noise: torch.Tensor | None = None

    def initial_losses(self) -> np.ndarray:
        """Losses of the probe inputs at the trained weights, ``(input,)``."""
        center = self.engine.center.expand(self._rows, -1)
        return self._losses(center)[0]

    @property
    def _rows(self) -> int:
        """Rows of weights handed to the engine at once: one where it takes them one by one."""
        return self._count if self.engine.together else 1

    def draw(self, chain: int, first: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Draws from ``first`` on: losses ``(draw, input)``; z ``(draw, parameter)`` or None."""
        center = self.engine.center
        if self._noise is None:  # in the process that computes
            self._noise = torch.empty(self._rows, len(center), device=center.device)
            self._weights = torch.empty_like(self._noise)
            self._generator = torch.Generator(center.device)
        losses, kept = [], []
        for start in range(first, first + self._count, self._rows):
            for row, noise in enumerate(self._noise):
                fill_draw(noise, self._generator, self._seed, chain, start + row)
            torch.add(center, self._noise, alpha=self._scale, out=self._weights)
            losses.append(self._losses(self._weights))
            if self._keep:
                kept.append(self._noise.half().cpu().numpy())
        return np.concatenate(losses), np.concatenate(kept) if kept else None

    def _losses(self, weights: torch.Tensor) -> np.ndarray:
        return self.engine.losses(weights, self._lane.probe_inputs, self._block).numpy()


class Draws(Workers):
    """Draws of several chains, which are no more than names for groups of draws here.

    Args:
        lanes: one a worker.
        gamma: localization.
        block: probe inputs evaluated at once.
        seed: as for :func:`losskernel.sampling.sample.sample_losses`.
        ids: numbers of the chains.
        bound: mean loss of the probe inputs above which a draw is refused.
        keep: whether z is wanted beside the losses.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        gamma: float,
        block: int,
        seed: int,
        ids: list[int],
        bound: float | None = None,
        keep: bool = False,
    ):
        self._gamma, self._ids, self._bound = gamma, ids, bound
        self._count = draws_at_once(lanes[0].engine)
        drawers = [_Drawer(lane, gamma, seed, block, keep) for lane in lanes]
        super().__init__(lanes, drawers)

    def between(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Draws ``start`` to ``stop - 1`` of every chain, some at a time.

        Yields:
            Losses ``(draw, chain, input)`` float32, and z ``(draw, chain, parameter)`` float16 or
            None.

        Raises:
            DivergenceError: a loss is not finite, or the mean loss of a draw exceeds the bound.
        """
        if start >= stop:  # its group may reach beyond the last draw
            return
        groups = range(start - start % self._count, stop, self._count)
        tasks = ((first, chain) for first in groups for chain in self._ids)
        # Two calls wait at every worker, so that none is idle while the others' results are read.
        pending: deque = deque()
        found: list[tuple[np.ndarray, np.ndarray | None]] = []
        number = 0
        while True:
            while len(pending) < 2 * len(self._runners) and (task := next(tasks, None)):
                first, chain = task
                runner = self._runners[number % len(self._runners)]
                pending.append((first, runner.submit("draw", chain, first)))
                number += 1
            if not pending:
                return
            first, reply = pending.popleft()
            found.append(reply.result())
            if len(found) < len(self._ids):
                continue
            wanted = slice(max(start - first, 0), min(stop - first, self._count))
            losses, kept = (
                None if parts[0] is None else np.stack([part[wanted] for part in parts], axis=1)
                for parts in zip(*found, strict=True)
            )
            found = []
            self._check(losses, first + wanted.start)
            yield losses, kept

    def _check(self, losses: np.ndarray, first: int) -> None:
        means = losses.mean(axis=2, dtype=float)
        bad = ~np.isfinite(means)
        if self._bound is not None:
            bad |= means > self._bound
        if bad.any():
            draw, chain = np.argwhere(bad)[0]
            raise DivergenceError(
                f"sampling: the mean loss of draw {first + draw} of chain {self._ids[chain]} is "
                f"{means[draw, chain]:.3g}; raise gamma ({self._gamma:g}), or loss_bound if given"
            )
