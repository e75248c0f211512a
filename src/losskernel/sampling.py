"""Sampling the probe distribution: chains of SGLD around trained weights, into a loss trace."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from losskernel.engines import Engine, LossPerInput, make_engine
from losskernel.errors import ConfigError, LossKernelError
from losskernel.inputs import Inputs, fingerprint
from losskernel.journal import Journal
from losskernel.parameters import select_parameters
from losskernel.probe import Probe, sgld_step
from losskernel.progress import bar
from losskernel.seeds import fill_normal, numpy_generator
from losskernel.trace import LossTrace, settings_attribute

log = logging.getLogger(__name__)
Data = tuple[Tensor, Tensor] | Dataset


class DivergenceError(LossKernelError):
    """Every chain left the neighbourhood of the trained weights."""


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each input in nats, ``(batch,)``, from logits ``(batch, class)``."""
    return torch.nn.functional.cross_entropy(output, target, reduction="none")


def sample_losses(
    model: nn.Module,
    data: Data,
    probe: Probe,
    *,
    loss: LossPerInput = cross_entropy,
    probe_data: Data | None = None,
    chains: int = 4,
    draws: int = 200,
    burn_in: int = 0,
    steps_per_draw: int = 1,
    batch_size: int = 256,
    eval_batch_size: int = 1000,
    parameters: str | Sequence[str] = "all",
    seed: int = 0,
    chain_ids: Sequence[int] | None = None,
    input_coords: dict[str, np.ndarray] | None = None,
    loss_bound: float | None = None,
    journal: str | Path | None = None,
    displacements: bool = False,
    device: str | torch.device = "cpu",
    engine: str = "auto",
    compiled: bool = False,
    precision: str = "float32",
    progress: bool = True,
) -> LossTrace:
    """Sample weights around ``model``'s and record the loss of every probe input at every draw.

    Runs chains of :func:`losskernel.probe.sgld_step` from the model's current weights. The model is
    copied and the copy put in evaluation mode (dropout off, batch-norm statistics frozen); the
    caller's model is not changed.

    Args:
        model: the trained network; called as ``model(inputs)``.
        data: what the minibatch gradients come from: ``(inputs, targets)`` tensors or a map-style
            data set of such pairs.
        probe: inverse temperature, localization and step size.
        loss: ``loss(output, target)`` returning one value per input, ``(batch,)``.
        probe_data: the inputs whose losses are recorded; ``data`` itself if not given.
        chains: number of independent chains.
        draws: recorded draws a chain.
        burn_in: steps before the first draw, not recorded.
        steps_per_draw: SGLD steps from one draw to the next.
        batch_size: inputs a minibatch, drawn without replacement (at most all of ``data``).
        eval_batch_size: probe inputs evaluated at once; bounds memory.
        parameters: which parameters are perturbed; see
            :func:`losskernel.parameters.select_parameters`.
        seed: the one seed; same seed, machine and thread count give the same trace.
        chain_ids: numbers of the chains to run (default ``0..chains-1``); a chain's draws depend on
            its number, not on its company, so chains can be sampled by separate jobs and joined
            with :func:`losskernel.trace.concatenate`.
        input_coords: per-input arrays (labels, names) to keep with the trace.
        loss_bound: a chain whose mean probe loss exceeds it counts as diverged; non-finite losses
            always do. A diverged chain stops, the others go on, and its losses are NaN from there.
        journal: folder in which every draw is saved as it is made; call again with the same
            arguments to continue after a kill, or with more ``draws`` to extend.
        displacements: keep ``sqrt(gamma) (w - w*)`` of every draw in the journal as float16, two
            bytes a parameter and draw, for :mod:`losskernel.linear_response`.
        device, engine, compiled, precision: see :mod:`losskernel.engines`.
        progress: show a progress bar.

    Returns:
        The trace, with losses ``(chain, draw, input)``.

    Raises:
        ConfigError: a count is below 1, the burn-in or the seed negative, a chain number repeated,
            ``parameters`` selects nothing, or displacements are to be kept without a journal.
        DataError: the data are empty or the loss has the wrong shape.
        TraceError: the journal belongs to a run with other settings.
        DivergenceError: every chain diverged.
    """
    for name, value in {
        "chains": chains,
        "draws": draws,
        "steps_per_draw": steps_per_draw,
        "batch_size": batch_size,
        "eval_batch_size": eval_batch_size,
    }.items():
        if value < 1:
            raise ConfigError(f"sampling: {name} = {value} must be at least 1")
    for name, value in {"burn_in": burn_in, "seed": seed}.items():
        if value < 0:
            raise ConfigError(f"sampling: {name} = {value} must be at least 0")
    chain_ids = list(range(chains)) if chain_ids is None else [int(i) for i in chain_ids]
    if not chain_ids or min(chain_ids) < 0 or len(set(chain_ids)) < len(chain_ids):
        raise ConfigError(f"sampling: chain_ids = {chain_ids} must be distinct numbers from 0 up")
    if displacements and journal is None:
        raise ConfigError("sampling: displacements = True needs a journal, where they are kept")
    data = Inputs(data, device)
    probe_inputs = data if probe_data is None else Inputs(probe_data, device)
    batch_size = min(batch_size, len(data))
    names = select_parameters(model, parameters)
    example = data.take(np.arange(min(2, len(data))))
    runner = make_engine(engine, model, loss, names, example, device, compiled, precision)
    initial_loss = runner.losses(runner.center[None], probe_inputs, eval_batch_size)[0].numpy()
    if not np.isfinite(initial_loss).all():
        count = int((~np.isfinite(initial_loss)).sum())
        raise DivergenceError(
            f"model: the loss of {count} inputs is not finite at the trained weights; "
            "check the weights, the inputs and their preprocessing"
        )
    settings = {
        "probe": settings_attribute(asdict(probe)),
        "parameters": settings_attribute({"names": names}),
        "weights_sha256": fingerprint([*model.state_dict().values()]),
        "inputs_sha256": fingerprint(
            part for pair in probe_inputs.blocks(eval_batch_size) for part in _tensors(pair)
        ),
        "data_size": len(data),
        "burn_in": burn_in,
        "steps_per_draw": steps_per_draw,
        "batch_size": batch_size,
        "seed": seed,
        "chain_ids": settings_attribute({"ids": chain_ids}),
        "engine": type(runner).__name__,
        "precision": precision,
        "loss_bound": float("inf") if loss_bound is None else float(loss_bound),
    }
    chain = _Chains(runner, data, probe, batch_size, seed, chain_ids)
    kept = runner.layout.size if displacements else 0
    record = _Record(journal, settings, len(chain_ids), len(probe_inputs), draws, kept)
    started = time.perf_counter()
    resumed_at = record.done
    try:
        if record.weights is not None:
            chain.weights.copy_(record.weights)
            chain.steps = burn_in + record.done * steps_per_draw
            chain.diverged[:] = record.diverged
        elif burn_in:
            for _ in bar(range(burn_in), "burn-in", unit="step", show=progress):
                chain.step()
        done = min(record.done, draws)
        with bar(None, "draws", total=draws, initial=done, unit="draw", show=progress) as shown:
            while record.done < draws:
                batch_loss = np.mean([chain.step() for _ in range(steps_per_draw)], axis=0)
                losses = chain.losses(probe_inputs, eval_batch_size, record.done, loss_bound)
                record.append(losses, batch_loss, chain)
                shown.update()
                if np.isfinite(losses).any():
                    shown.set_postfix(mean_loss=f"{np.nanmean(losses):.4g}", refresh=False)
        losses, batch_losses = record.read(draws)
    finally:
        record.close()
    seconds = time.perf_counter() - started
    return LossTrace.build(
        losses,
        initial_loss,
        batch_losses,
        chain_ids,
        input_coords,
        {
            **settings,
            "device": _device_name(device),
            "threads": torch.get_num_threads(),
            "seconds": seconds,
            "seconds_draws": draws - min(resumed_at, draws),
        },
    )


class _Chains:
    """The moving state: one row of weights a chain, the step count, and which chains stopped."""

    def __init__(
        self,
        engine: Engine,
        data: Inputs,
        probe: Probe,
        batch_size: int,
        seed: int,
        ids: list[int],
    ):
        self._engine, self._data, self._probe = engine, data, probe
        self._batch_size, self._seed, self._ids = batch_size, seed, ids
        self.weights = engine.center.repeat(len(ids), 1)
        self._noise = torch.empty_like(self.weights)
        self._generator = torch.Generator(engine.center.device)
        self.steps = 0
        self.diverged = np.full(len(ids), -1)

    @property
    def running(self) -> np.ndarray:
        """Rows of the chains that have not diverged."""
        return np.flatnonzero(self.diverged < 0)

    @property
    def displacements(self) -> torch.Tensor:
        """``sqrt(gamma) (w - w*)``, ``(chain, parameter)``: of order one, so float16 holds it."""
        return (self.weights - self._engine.center) * (self._probe.gamma or 1.0) ** 0.5

    def step(self) -> np.ndarray:
        """One SGLD step of every running chain; their minibatch losses before it, ``(chain,)``."""
        result = np.full(len(self._ids), np.nan)
        rows = self.running
        for row in rows:
            fill_normal(self._noise[row], self._generator, self._seed, self._ids[row], self.steps)
        weights = self.weights[rows]
        if self._probe.n_beta > 0:
            gradient, loss = self._engine.gradients(weights, [self._batch(row) for row in rows])
            result[rows] = loss.double().cpu().numpy()
        else:  # the Gaussian around the trained weights needs no gradient
            gradient = torch.zeros_like(weights)
        self.weights[rows] = sgld_step(
            weights, self._engine.center, gradient, self._noise[rows], self._probe
        )
        self.steps += 1
        return result

    def _batch(self, row: int):
        rng = numpy_generator(self._seed, "batch", self._ids[row], self.steps)
        size = len(self._data)
        return self._data.take(rng.choice(size, self._batch_size, replace=False, shuffle=False))

    def losses(self, inputs: Inputs, block: int, draw: int, bound: float | None) -> np.ndarray:
        """Losses at the current weights, ``(chain, input)``; NaN for chains that diverged."""
        result = np.full((len(self._ids), len(inputs)), np.nan, np.float32)
        rows = self.running
        losses = self._engine.losses(self.weights[rows], inputs, block).numpy()
        bad = ~np.isfinite(losses).all(axis=1)
        if bound is not None:
            bad |= ~(losses.mean(axis=1) <= bound)
        result[rows[~bad]] = losses[~bad]
        for row, values in zip(rows[bad], losses[bad], strict=True):
            self.diverged[row] = draw
            log.warning(
                "chain %d diverged at draw %d (mean loss %.3g): stopped; the others go on",
                self._ids[row],
                draw,
                values.mean(),
            )
        if len(self.running) == 0:
            raise DivergenceError(
                f"sampling: all {len(self._ids)} chains diverged (first at draw "
                f"{self.diverged.min()}); lower step_size ({self._probe.step_size:g}) or n_beta "
                f"({self._probe.n_beta:g}), or raise gamma ({self._probe.gamma:g})"
            )
        return result


class _Record:
    """Where draws go: a journal on disk, or arrays in memory."""

    def __init__(self, folder, settings: dict, chains: int, inputs: int, draws: int, kept: int):
        self._journal = None
        self._kept = kept  # length of a displacement, 0 to keep none
        self.weights, self.done, self.diverged = None, 0, np.full(chains, -1)
        if folder is not None:
            if kept:
                settings = {**settings, "displacements": "float16"}
            self._journal = Journal(folder, settings, chains, inputs, kept)
            self.weights, self.done = self._journal.weights, self._journal.draws
            self.diverged = self._journal.diverged
        else:
            self._losses = np.empty((chains, draws, inputs), np.float32)
            self._batch_losses = np.empty((chains, draws))

    def append(self, losses: np.ndarray, batch_loss: np.ndarray, chains: _Chains) -> None:
        if self._journal is not None:
            moved = chains.displacements if self._kept else None
            self._journal.append(losses, batch_loss, chains.weights, chains.diverged, moved)
        else:
            self._losses[:, self.done] = losses
            self._batch_losses[:, self.done] = batch_loss
        self.done += 1

    def read(self, draws: int) -> tuple[np.ndarray, np.ndarray]:
        if self._journal is not None:
            return self._journal.read(draws)
        return self._losses, self._batch_losses

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


def _tensors(pair) -> list[Tensor]:
    return [part for part in pair if isinstance(part, Tensor)]


def _device_name(device: str | torch.device) -> str:
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.backends.cpu.get_cpu_capability()}"
