"""Sampling the probe distribution: chains of SGLD around trained weights, into a loss trace."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from losskernel.errors import ConfigError
from losskernel.progress import bar
from losskernel.sampling.chains import Chains, DivergenceError, Lane
from losskernel.sampling.engines import (
    SMALL,
    SMALL_ON_CPU,
    LossPerInput,
    SequentialEngine,
    make_engine,
    tensor_cores,
)
from losskernel.sampling.fingerprints import loss_fingerprint
from losskernel.sampling.inputs import Inputs, fingerprint, state_fingerprint
from losskernel.sampling.journal import Journal
from losskernel.sampling.parameters import layout_fingerprint, select_parameters
from losskernel.sampling.probe import Probe
from losskernel.sampling.runners import can_fork
from losskernel.trace import LossTrace, settings_attribute

Data = tuple[Tensor, Tensor] | Dataset


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each input in nats, ``(batch,)``, from logits ``(batch, class)``.

    ``log(1 + sum_j exp(z_j - z_y))`` over the classes j other than the target y. The usual
    ``log sum_j exp(z_j) - z_y`` cancels: in float32 it leaves an error of 1e-6, as large as the
    whole loss of an input that is answered with confidence; this form keeps such losses to some
    1e-6 of themselves, and with them what they have in common.

    Args:
        output: logits.
        target: class of each input, or class probabilities, ``(batch, class)``.
    """
    if target.is_floating_point():
        return torch.nn.functional.cross_entropy(output, target, reduction="none")
    at = target.long()[:, None]
    others = (output - output.gather(1, at)).scatter(1, at, -torch.inf)
    return torch.nn.functional.softplus(others.logsumexp(1))


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
    parameters: str | Sequence[str] = "trainable",
    seed: int = 0,
    chain_ids: Sequence[int] | None = None,
    input_coords: dict[str, np.ndarray] | None = None,
    loss_bound: float | None = None,
    journal: str | Path | None = None,
    displacements: bool = False,
    device: str | torch.device | Sequence[str | torch.device] = "cpu",
    engine: str = "auto",
    compiled: bool = False,
    precision: str = "float32",
    eval_precision: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> LossTrace:
    """Sample weights around ``model``'s and record the loss of every probe input at every draw.

    Runs chains of :func:`losskernel.sampling.probe.sgld_step` from the model's current weights. The
    model is copied and the copy put in evaluation mode (dropout off, batch-norm statistics frozen);
    the caller's model is not changed.

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
            :func:`losskernel.sampling.parameters.select_parameters`.
        seed: the one seed; same seed, machine and thread count give the same trace.
        chain_ids: numbers of the chains to run (default ``0..chains-1``); a chain's noise and its
            minibatches depend on its number, not on its company, so chains can be sampled by
            separate jobs and joined with :func:`losskernel.trace.concatenate`. Its losses are then
            the same to the bit with the sequential engine; the batched one multiplies all chains at
            once, and the rounding of such a product depends on how many there are.
        input_coords: per-input arrays (labels, names) to keep with the trace.
        loss_bound: a chain whose mean probe loss exceeds it counts as diverged; non-finite losses
            always do. A diverged chain stops, the others go on, and its losses are NaN from there.
        journal: folder in which every draw is saved as it is made; call again with the same
            arguments to continue after a kill, or with more ``draws`` to extend.
        displacements: keep ``sqrt(gamma) (w - w*)`` of every draw in the journal as float16, two
            bytes a parameter and draw, for :mod:`losskernel.gradients.linear_response`.
        device: where to compute; several, such as ``["cuda:0", "cuda:1"]``, share the chains.
        engine, compiled, precision: see :func:`losskernel.sampling.engines.make_engine`.
        eval_precision: of the recorded losses alone, where it is not ``precision``.
        workers: chains that a CPU runs at once, each with an equal share of PyTorch's threads: in
            forked processes where that share is one thread, on Linux without a GPU, else in threads
            of this process. By default one a thread for a model of 20,000 to 2 million perturbed
            parameters with the sequential engine and data in memory: two chains side by side are
            faster than two threads on each of its small products. Otherwise 1. The default does
            not look at the number of chains, for a chain's draws must not depend on its company.
        progress: show a progress bar.

    Returns:
        The trace, with losses ``(chain, draw, input)``.

    Raises:
        ConfigError: a count is below 1, the burn-in or the seed negative, a chain number repeated,
            ``parameters`` selects nothing, displacements are to be kept without a journal, there
            are to be several workers on a GPU, or TF32 for gradients or losses alone on several.
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
    devices = [device] if isinstance(device, str | torch.device) else list(device)
    names = select_parameters(model, parameters)
    with ExitStack() as stack:
        stack.enter_context(tensor_cores(precision))
        lanes = _lanes(
            (model, loss, names),
            data,
            probe_data,
            devices,
            workers,
            len(chain_ids),
            engine,
            compiled,
            precision,
            eval_precision or precision,
        )
        probe_inputs, data_size = lanes[0].probe_inputs, len(lanes[0].data)
        batch_size = min(batch_size, data_size)
        chain = Chains(lanes, probe, batch_size, eval_batch_size, seed, chain_ids)
        stack.callback(chain.close)
        initial_loss = chain.initial_losses()
        if not np.isfinite(initial_loss).all():
            count = int((~np.isfinite(initial_loss)).sum())
            raise DivergenceError(
                f"model: the loss of {count} inputs is not finite at the trained weights; "
                "check the weights, the inputs and their preprocessing"
            )
        layout = lanes[0].engine.layout
        settings = {
            "probe": settings_attribute(asdict(probe)),
            "parameters": settings_attribute({"names": names}),
            "parameters_layout": layout_fingerprint(layout.shapes, layout.strides),
            "weights_sha256": state_fingerprint(model),
            "inputs_sha256": probe_inputs.fingerprint(),
            "data_size": data_size,
            "burn_in": burn_in,
            "steps_per_draw": steps_per_draw,
            "batch_size": batch_size,
            "seed": seed,
            "chain_ids": settings_attribute({"ids": chain_ids}),
            "engine": type(lanes[0].engine).__name__,
            "precision": precision,
            **_unusual(loss, precision, eval_precision or precision, devices),
            **_beside(model, lanes[0], probe_data is not None),
            "loss_bound": float("inf") if loss_bound is None else float(loss_bound),
        }
        kept = layout.size if displacements else 0
        record = _Record(journal, settings, len(chain_ids), len(probe_inputs), draws, kept)
        stack.callback(record.close)
        resumed_at = min(record.done, draws)
        started = time.perf_counter()
        if record.weights is not None:
            steps = burn_in + record.done * steps_per_draw
            chain.restore(record.weights, steps, record.diverged)
        elif burn_in:
            for _ in bar(range(burn_in), "burn-in", unit="step", show=progress):
                chain.step()
        done = min(record.done, draws)
        with bar(None, "draws", total=draws, initial=done, unit="draw", show=progress) as shown:
            while record.done < draws:
                losses, batch_loss = chain.draw(steps_per_draw, record.done, loss_bound)
                # A draw's time ends before it is saved; the next one's includes the saving.
                started, seconds = time.perf_counter(), time.perf_counter() - started
                record.append(losses, batch_loss, chain, seconds)
                shown.update()
                if np.isfinite(losses).any():
                    shown.set_postfix(mean_loss=f"{np.nanmean(losses):.4g}", refresh=False)
        losses, batch_losses = record.read(draws)
        seconds = record.seconds(draws)
    return LossTrace.build(
        losses,
        initial_loss,
        batch_losses,
        chain_ids,
        input_coords,
        {
            **settings,
            "device": ", ".join(_device_name(device) for device in devices),
            "threads": torch.get_num_threads(),
            "workers": len(lanes),
            "loss": loss_fingerprint(loss),
            "seconds": float(np.nansum(seconds)),
            "seconds_draws": int(np.isfinite(seconds).sum()),
            "resumed_draws": resumed_at,
        },
    )


def _unusual(
    loss: LossPerInput, precision: str, eval_precision: str, devices: Sequence[str | torch.device]
) -> dict:
    """Settings that name only what differs from the default.

    So a journal or a trace made before they were kept still belongs to the same run.
    """
    chosen = {}
    if loss is not cross_entropy:
        chosen["loss"] = loss_fingerprint(loss)
    if eval_precision != precision:
        chosen["eval_precision"] = eval_precision
    kind = torch.device(devices[0]).type
    if kind != "cpu":  # its generator draws other numbers from the same seed
        chosen["noise_device"] = kind
    return chosen


def _beside(model: nn.Module, lane: Lane, apart: bool) -> dict:
    """Fingerprints of what draws depend on beside the probe inputs and the state of the model.

    Args:
        apart: whether gradients come from other data than the probe inputs.
    """
    found = {}
    if apart:
        found["data_sha256"] = lane.data.fingerprint(targets_only=not lane.data.in_memory)
    state = model.state_dict(keep_vars=True)
    hidden = [buffer for name, buffer in model.named_buffers() if name not in state]
    if hidden:  # not persistent, such as the inputs of SeveralLabels
        found["buffers_sha256"] = fingerprint(hidden)
    return found


def _lanes(
    problem: tuple[nn.Module, LossPerInput, list[str]],
    data: Data,
    probe_data: Data | None,
    devices: list,
    workers: int | None,
    chains: int,
    engine: str,
    compiled: bool,
    precision: str,
    eval_precision: str,
) -> list[Lane]:
    """One lane a device, or ``workers`` lanes of one CPU that read the same inputs."""
    if not devices:
        raise ConfigError("sampling: device = [] names no device")
    kinds = {torch.device(device).type for device in devices}
    if workers is not None and (workers < 1 or (workers > 1 and (devices[1:] or kinds != {"cpu"}))):
        raise ConfigError(
            f"sampling: workers = {workers} must be at least 1, and 1 on a GPU or on several "
            "devices, which share the chains themselves"
        )
    lanes = []
    for device in devices:
        inputs = Inputs(data, device)
        probe_inputs = inputs if probe_data is None else Inputs(probe_data, device)
        example = inputs.take(np.arange(min(2, len(inputs))))
        runner = make_engine(
            engine, *problem, example, device, compiled, precision, eval_precision=eval_precision
        )
        lanes.append(Lane(runner, inputs, probe_inputs, threads=1))
    if devices[1:]:
        if compiled and "cuda" in kinds and runner.layout.size <= SMALL:
            raise ConfigError(
                "compiled: a small model becomes a CUDA graph, which belongs to one thread; leave "
                "compiled out, or run one job a GPU with its own chain_ids"
            )
        if precision != eval_precision and "tf32" in (precision, eval_precision):
            raise ConfigError(
                "eval_precision: TF32 is on or off for all GPUs of a process at once; run one job "
                "a GPU with its own chain_ids"
            )
        return lanes[:chains]
    if workers is None:
        side_by_side = (
            kinds == {"cpu"}
            and isinstance(runner, SequentialEngine)
            and SMALL_ON_CPU < runner.layout.size <= SMALL
            and inputs.in_memory
            and probe_inputs.in_memory
        )
        workers = torch.get_num_threads() if side_by_side else 1
    if workers == 1:
        return [Lane(runner, inputs, probe_inputs)]
    threads = max(1, torch.get_num_threads() // workers)
    if can_fork() and threads == 1:
        # Compiled and traced once; every process has its own copy.
        return [Lane(runner, inputs, probe_inputs, 1, process=True)] * min(workers, chains)
    runners = [runner] + [
        make_engine(
            runner.kind, *problem, example, device, compiled, precision, None, eval_precision
        )
        for _ in range(1, min(workers, chains))
    ]
    return [Lane(runner, inputs, probe_inputs, threads) for runner in runners]


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
            self._seconds = np.empty(draws)

    def append(
        self, losses: np.ndarray, batch_loss: np.ndarray, chains: Chains, seconds: float
    ) -> None:
        if self._journal is not None:
            moved = chains.displacements if self._kept else None
            state = chains.weights, chains.diverged
            self._journal.append(losses, batch_loss, *state, moved, seconds)
        else:
            self._losses[:, self.done] = losses
            self._batch_losses[:, self.done] = batch_loss
            self._seconds[self.done] = seconds
        self.done += 1

    def read(self, draws: int) -> tuple[np.ndarray, np.ndarray]:
        if self._journal is not None:
            return self._journal.read(draws)
        return self._losses, self._batch_losses

    def seconds(self, draws: int) -> np.ndarray:
        """Seconds that each draw took, ``(draw,)``; NaN where an older journal did not say."""
        return self._seconds if self._journal is None else self._journal.seconds(draws)

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


def _device_name(device: str | torch.device) -> str:
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.backends.cpu.get_cpu_capability()}"
