"""Chains of SGLD in motion, shared out among workers."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from losskernel.errors import LossKernelError
from losskernel.sampling.engines import Engine
from losskernel.sampling.inputs import Inputs
from losskernel.sampling.probe import Probe
from losskernel.sampling.runners import Here, InProcess, InThread, shared_copy
from losskernel.seeds import fill_normal, numpy_generator

log = logging.getLogger(__name__)


class DivergenceError(LossKernelError):
    """Every chain left the neighbourhood of the trained weights."""


@dataclass(frozen=True)
class Lane:
    """What one worker computes with; no two threads share an engine.

    Attributes:
        engine: gradients and losses, on one device.
        data: what minibatches are drawn from, on that device.
        probe_inputs: what is evaluated at each draw, on that device.
        threads: of PyTorch, in a thread or process of its own that the worker computes in; None: it
            computes in the caller's thread, with as many as PyTorch has there.
        process: whether that is a process; those of several lanes may be given the same engine.
    """

    engine: Engine
    data: Inputs
    probe_inputs: Inputs
    threads: int | None = None
    process: bool = False

    def runner(self, worker: _Worker) -> Here:
        """Where the methods of this lane's worker run."""
        if self.threads is None:
            return Here(worker)
        return (InProcess if self.process else InThread)(worker, self.threads)


class Workers:
    """What several workers share: where their methods run, and that their engines are tried first.

    Args:
        lanes: one a worker.
        workers: objects with a method ``initial_losses``.
    """

    def __init__(self, lanes: Sequence[Lane], workers: Sequence[Any]):
        threads = torch.get_num_threads()
        self._runners = [lane.runner(worker) for lane, worker in zip(lanes, workers, strict=True)]
        torch.set_num_threads(threads)  # a worker's number became that of threads yet to start
        self._places = {id(lane.engine): place for place, lane in enumerate(lanes)}.values()

    def close(self) -> None:
        """Let threads and processes end."""
        for runner in self._runners:
            runner.close()

    def initial_losses(self) -> np.ndarray:
        """Losses of the probe inputs at the trained weights, ``(input,)``.

        Every engine computes them, so that what is compiled is compiled before the first draw.
        """
        replies = [self._runners[place].prepare("initial_losses") for place in self._places]
        return [reply.result() for reply in replies][0]


def update(weights: Tensor, center: Tensor, gradient: Tensor, noise: Tensor, probe: Probe):
    """:func:`losskernel.sampling.probe.sgld_step` in place: the same operations in the same order.

    ``weights``, ``(chain, parameter)``, become the next ones; ``gradient`` and ``noise`` are
    overwritten.
    """
    drift = (weights - center).mul_(probe.gamma).add_(gradient.mul_(probe.n_beta))
    weights.sub_(drift.mul_(probe.step_size / 2)).add_(noise.mul_(math.sqrt(probe.step_size)))


class _Worker:
    """The chains of one lane, one row of weights each."""

    def __init__(
        self, lane: Lane, ids: list[int], probe: Probe, batch_size: int, block: int, seed: int
    ):
        self.engine, self._lane, self._ids, self._probe = lane.engine, lane, ids, probe
        self._batch_size, self._block, self._seed = batch_size, block, seed
        weights = lane.engine.center.repeat(len(ids), 1)
        self.weights = shared_copy(weights) if lane.process else weights
        self._noise = torch.empty_like(weights)
        self._generator = torch.Generator(weights.device)

    def initial_losses(self) -> np.ndarray:
        """Losses of the probe inputs at the trained weights, ``(input,)``."""
        return self._losses(self.engine.center[None])[0]

    def steps(self, running: list[int], first: int, count: int) -> np.ndarray:
        """Take the SGLD steps ``first`` to ``first + count - 1`` of those chains.

        Returns:
            The minibatch loss before each step, ``(step, chain)``.
        """
        losses = np.empty((count, len(running)))
        together = self.engine.together
        places = [slice(None)] if together else [slice(i, i + 1) for i in range(len(running))]
        for place in places:
            chosen = running[place]
            # A copy of the rows that move together, or a view of one.
            weights = self.weights[chosen] if together else self.weights[chosen[0]][None]
            found = [self._step(weights, chosen, step) for step in range(first, first + count)]
            if together:
                self.weights[chosen] = weights
            # Fetched once, so that a GPU is not waited for at each step.
            losses[:, place] = torch.stack(found).double().cpu().numpy()
        return losses

    def _step(self, weights: Tensor, chosen: list[int], step: int) -> Tensor:
        noise = self._noise[: len(chosen)]
        for row, chain in zip(noise, chosen, strict=True):
            fill_normal(row, self._generator, self._seed, self._ids[chain], step)
        batches = [self._batch(chain, step) for chain in chosen]
        gradient, loss = self.engine.gradients(weights, batches)
        update(weights, self.engine.center, gradient, noise, self._probe)
        return loss

    def _batch(self, chain: int, step: int):
        rng = numpy_generator(self._seed, "batch", self._ids[chain], step)
        size = len(self._lane.data)
        chosen = rng.choice(size, self._batch_size, replace=False, shuffle=False)
        return self._lane.data.take(chosen)

    def draw(self, running: list[int], first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Also the losses of the probe inputs after the steps, ``(chain, input)``."""
        batch_losses = self.steps(running, first, count)
        everyone = len(running) == len(self.weights)
        weights = self.weights if everyone else self.weights[running]
        return batch_losses, self._losses(weights)

    def _losses(self, weights: Tensor) -> np.ndarray:
        return self.engine.losses(weights, self._lane.probe_inputs, self._block).numpy()


class Chains(Workers):
    """The moving state: the weights of every chain, the step count, and which chains stopped.

    Chain ``i`` belongs to worker ``i`` modulo their number. Its draws depend on its own number
    alone, so the sharing out changes nothing but the time.

    Args:
        lanes: one a worker.
        probe, batch_size, seed: as for :func:`losskernel.sampling.sample.sample_losses`.
        block: probe inputs evaluated at once.
        ids: numbers of the chains.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        probe: Probe,
        batch_size: int,
        block: int,
        seed: int,
        ids: list[int],
    ):
        lanes = lanes[: len(ids)]
        self._probe, self._ids = probe, ids
        self._center = lanes[0].engine.center.cpu()
        self._shares = [list(range(start, len(ids), len(lanes))) for start in range(len(lanes))]
        self._workers = [
            _Worker(lane, [ids[row] for row in share], probe, batch_size, block, seed)
            for lane, share in zip(lanes, self._shares, strict=True)
        ]
        super().__init__(lanes, self._workers)
        self.steps = 0
        self.diverged = np.full(len(ids), -1)

    @property
    def weights(self) -> Tensor:
        """Weights of every chain, ``(chain, parameter)``, on the CPU."""
        if len(self._workers) == 1:
            return self._workers[0].weights.cpu()
        result = torch.empty(len(self._ids), len(self._center))
        for share, worker in zip(self._shares, self._workers, strict=True):
            for row, weights in zip(share, worker.weights, strict=True):
                result[row] = weights
        return result

    @property
    def displacements(self) -> Tensor:
        """``sqrt(gamma) (w - w*)``, ``(chain, parameter)``: of order one, so float16 holds it."""
        return (self.weights - self._center) * (self._probe.gamma or 1.0) ** 0.5

    def restore(self, weights: Tensor, steps: int, diverged: np.ndarray) -> None:
        """Continue from saved weights ``(chain, parameter)`` after that many steps."""
        for share, worker in zip(self._shares, self._workers, strict=True):
            worker.weights.copy_(weights[share])
        self.steps, self.diverged[:] = steps, diverged

    def step(self) -> None:
        """One SGLD step of every running chain."""
        self._advance("steps", 1)

    def draw(
        self, steps: int, number: int, bound: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """SGLD steps of every running chain, then its losses.

        Args:
            steps: how many to take first.
            number: number of the draw, remembered for chains that diverge at it.
            bound: mean loss above which a chain counts as diverged.

        Returns:
            Losses ``(chain, input)`` float32, and minibatch losses ``(chain,)``, averaged over the
            steps; NaN for chains that diverged.

        Raises:
            DivergenceError: no chain is left.
        """
        found = self._advance("draw", steps)
        inputs = found[0][1][1].shape[1]
        losses = np.full((len(self._ids), inputs), np.nan, np.float32)
        batch_losses = np.full((steps, len(self._ids)), np.nan)
        for rows, (of_batch, of_inputs) in found:
            batch_losses[:, rows] = of_batch
            bad = ~np.isfinite(of_inputs).all(axis=1)
            if bound is not None:
                bad |= ~(of_inputs.mean(axis=1) <= bound)
            losses[rows[~bad]] = of_inputs[~bad]
            for row, values in zip(rows[bad], of_inputs[bad], strict=True):
                last = values.mean()
                self._stop(row, number, last)
        if (self.diverged >= 0).all():
            raise DivergenceError(
                f"sampling: all {len(self._ids)} chains diverged (first at draw "
                f"{self.diverged.min()}, the last at a mean loss of {last:.3g}); lower step_size "
                f"({self._probe.step_size:g}) or n_beta ({self._probe.n_beta:g}), or raise gamma "
                f"({self._probe.gamma:g})"
            )
        return losses, batch_losses.mean(axis=0)

    def _stop(self, row: int, number: int, mean: float) -> None:
        self.diverged[row] = number
        log.warning(
            "chain %d diverged at draw %d (mean loss %.3g): stopped; the others go on",
            self._ids[row],
            number,
            mean,
        )

    def _advance(self, method: str, steps: int) -> list[tuple[np.ndarray, Any]]:
        """Call a method of every worker on its running chains, all workers at once.

        Returns:
            For each worker with running chains: their rows and what the method returned.
        """
        started = []
        for share, runner in zip(self._shares, self._runners, strict=True):
            running = [place for place, row in enumerate(share) if self.diverged[row] < 0]
            if running:
                rows = np.array(share)[running]
                started.append((rows, runner.submit(method, running, self.steps, steps)))
        self.steps += steps
        return [(rows, reply.result()) for rows, reply in started]
