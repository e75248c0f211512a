"""Sampling the probe distribution, by independent draws or chains of SGLD, into a loss trace."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from losskernel.errors import ConfigError, DataError
from losskernel.progress import bar
from losskernel.sampling.ambient import own_torch_settings
from losskernel.sampling.chains import Chains, DivergenceError, Lane
from losskernel.sampling.checks import check_data, check_losses
from losskernel.sampling.draws import Draws, draws_at_once, has_convolutions
from losskernel.sampling.engines import (
    SMALL,
    SMALL_ON_CPU,
    LossPerInput,
    SequentialEngine,
    make_engine,
    without_tf32,
)
from losskernel.sampling.fingerprints import loss_fingerprint
from losskernel.sampling.inputs import Inputs, hidden_state, state_fingerprint, usable_device
from losskernel.sampling.journal import Journal
from losskernel.sampling.parameters import layout_fingerprint, select_parameters
from losskernel.sampling.probe import FreeChain, Probe, whole
from losskernel.sampling.runners import can_fork
from losskernel.sampling.stability import curvature, noise_moments
from losskernel.sampling.yardsticks import yardsticks
from losskernel.trace import LossTrace, checked_coords, settings_attribute

Data = tuple[Tensor, Tensor] | Dataset


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each input in nats, ``(batch,)``, from logits ``(batch, class)``.

    ``log(1 + sum_j exp(z_j - z_y))`` over the classes j other than the target y. The usual
    ``log sum_j exp(z_j) - z_y`` cancels: in float32 it leaves an error of 1e-6, as large as the
    whole loss of an input that is answered with confidence; this form keeps such losses to some
    1e-6 of themselves, and with them what they have in common.

    Args:
        output: logits; -inf for a class that is not legal.
        target: class of each input, or class probabilities, ``(batch, class)``.

    Raises:
        DataError: the output is no matrix of logits, or the targets are neither of the two.
    """
    if not isinstance(output, Tensor):
        raise DataError(
            f"loss: the model returns a {type(output).__name__}, and the default loss needs the "
            "logits alone; pass loss=lambda output, target: ..., which picks them"
        )
    shapes = f"outputs of shape {tuple(output.shape)} and targets of shape {tuple(target.shape)}"
    if output.ndim < 2 or output.shape[1] == 1:
        raise DataError(
            f"loss: {shapes}; the default, cross-entropy, needs an output for each of at least 2 "
            "classes: pass loss= of a regression or of a yes-or-no answer"
        )
    if target.is_floating_point():
        if target.shape != output.shape:
            raise DataError(
                f"targets: floating-point, and no class probabilities ({shapes}); give integer "
                "labels, or pass loss= of a regression"
            )
        return torch.nn.functional.cross_entropy(output, target, reduction="none")
    if target.shape != output.shape[:1] + output.shape[2:]:
        raise DataError(f"targets: {shapes}; give one integer label an input, of shape (batch,)")
    at = target.long()[:, None]
    # The smallest number in place of -inf, whose logsumexp alone has no gradient.
    lowest = torch.finfo(output.dtype).min
    try:
        others = (output - output.gather(1, at)).clamp(min=lowest).scatter(1, at, lowest)
    except (RuntimeError, IndexError) as error:
        if "out of bounds" not in str(error):
            raise
        raise DataError(
            f"targets: a label is not one of 0 to {output.shape[1] - 1}, the model's outputs; "
            "number the classes from 0 on, and leave out inputs without a label, such as -100"
        ) from error
    return torch.nn.functional.softplus(others.logsumexp(1))


@own_torch_settings()
def sample_losses(
    model: nn.Module,
    data: Data | None,
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
    device: str | torch.device = "cpu",
    engine: str = "auto",
    compiled: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> LossTrace:
    """Sample weights around ``model``'s and record the loss of every probe input at every draw.

    With ``n_beta = 0`` the draws are independent, ``w = w* + gamma^-1/2 z``: no step, no gradient,
    no burn-in; z depends on the seed and the numbers of chain and draw alone, and is the same for
    every gamma. Else chains of :func:`losskernel.sampling.probe.sgld_step` run from the model's
    current weights. The model is copied and the copy put in evaluation mode (dropout off,
    batch-norm statistics frozen); the caller's model is not changed.

    Args:
        model: the trained network; called as ``model(inputs)``.
        data: what the minibatch gradients come from: ``(inputs, targets)`` tensors or a map-style
            data set of such pairs. None if there are ``probe_data`` and ``n_beta = 0``.
        probe: localization and, for chains, inverse temperature and step size.
        loss: ``loss(output, target)`` returning one value per input, ``(batch,)``.
        probe_data: the inputs whose losses are recorded; ``data`` itself if not given.
        chains: number of independent chains; of independent draws, of groups of draws, which are
            as good as one.
        draws: recorded draws a chain.
        burn_in: steps of a chain before the first draw, not recorded.
        steps_per_draw: SGLD steps from one draw to the next.
        batch_size: inputs a minibatch of a chain, drawn without replacement (at most all of
            ``data``).
        eval_batch_size: probe inputs evaluated at once; bounds memory.
        parameters: which parameters are perturbed; see
            :func:`losskernel.sampling.parameters.select_parameters`.
        seed: the one seed; same seed, machine and thread count give the same trace.
        chain_ids: numbers of the chains to run (default ``0..chains-1``); a chain's noise and its
            minibatches depend on its number, not on its company, so chains can be sampled by
            separate jobs and joined with :func:`losskernel.trace.concatenate`. Its losses are then
            the same to the bit with the sequential engine; the batched one multiplies all chains at
            once, and the rounding of such a product depends on how many there are.
        input_coords: per-input arrays (labels, names) to keep with the trace; see
            :func:`losskernel.trace.checked_coords`.
        loss_bound: a chain whose mean probe loss exceeds it counts as diverged; non-finite losses
            always do. A diverged chain stops, the others go on, and its losses are NaN from there.
            By default twice the loss of guessing, ``log(classes)``, or twice that at the trained
            weights if it is larger; none for a loss of your own, whose guessing is not known. An
            independent draw has no bound unless one is given, and is then an error beyond it:
            without it the others would be biased.
        journal: folder in which draws are saved as they are made; call again with the same
            arguments to continue after a kill, or with more ``draws`` to extend. A kill loses the
            draw that is made, or the at most 16 of a chain that are made together.
        displacements: keep ``sqrt(gamma) (w - w*)`` of every draw in the journal as float16, two
            bytes a parameter and draw, for :mod:`losskernel.gradients.linear_response`.
        device: where to compute. Several GPUs take jobs of their own, each with its ``chain_ids``.
        engine, compiled: see :func:`losskernel.sampling.engines.make_engine`.
        workers: chains or draws that a CPU makes at once, each with an equal share of PyTorch's
            threads: in forked processes where that share is one thread, on Linux without a GPU,
            else in threads of this process. By default one a thread for a model of up to 2 million
            perturbed parameters and data in memory: two chains side by side are faster than two
            threads on each of its small products. Otherwise 1, and for chains of less than 20,000
            parameters, which one pass moves together. The default does not look at the number of
            chains, for a chain's draws must not depend on its company.
        progress: show a progress bar.

    Returns:
        The trace, with losses ``(chain, draw, input)``.

    Raises:
        ConfigError: a count is below 1, the burn-in or the seed negative, a chain number repeated,
            ``parameters`` selects nothing, displacements are to be kept without a journal, there
            are to be several workers on a GPU, independent draws are given a burn-in or steps, or
            ``input_coords`` cannot be saved.
        DataError: the data are empty or missing, the loss has the wrong shape, or the losses fail
            :func:`losskernel.sampling.checks.check_losses`.
        TraceError: the journal belongs to a run with other settings.
        DivergenceError: every chain diverged, or a loss of an independent draw is not finite.
    """
    _check_sampler(probe, burn_in, steps_per_draw)
    if probe.direct and probe_data is not None:
        data, probe_data = probe_data, None
    if data is None:
        raise DataError("data: None; give (inputs, targets), or probe_data alone if n_beta = 0")
    chains, draws, steps_per_draw, batch_size, eval_batch_size = whole(
        1,
        chains=chains,
        draws=draws,
        steps_per_draw=steps_per_draw,
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
    )
    burn_in, seed = whole(0, burn_in=burn_in, seed=seed)
    chain_ids = range(chains) if chain_ids is None else chain_ids
    chain_ids = [whole(0, chain_ids=number)[0] for number in chain_ids]
    if not chain_ids or len(set(chain_ids)) < len(chain_ids):
        raise ConfigError(f"sampling: chain_ids = {chain_ids} must be distinct numbers from 0 up")
    if displacements and journal is None:
        raise ConfigError("sampling: displacements = True needs a journal, where they are kept")
    device = usable_device(device)
    names = select_parameters(model, parameters)
    with ExitStack() as stack:
        stack.enter_context(without_tf32())
        lanes = _lanes(
            (model, loss, names),
            data,
            probe_data,
            device,
            workers,
            len(chain_ids) * (draws if probe.direct else 1),
            engine,
            compiled,
            probe.direct,
        )
        probe_inputs, first = lanes[0].probe_inputs, lanes[0].engine
        input_coords = checked_coords(input_coords, len(probe_inputs))
        inputs_sha256 = probe_inputs.fingerprint()
        default_loss = loss is cross_entropy
        behavior = check_losses(
            first, probe_inputs, default_loss, not probe.direct, of=(model, loss)
        )
        if probe_data is not None:
            check_data(first, lanes[0].data, default_loss)
        sampler: Draws | Chains
        if probe.direct:
            bound = (loss_bound, displacements)
            sampler = Draws(lanes, probe.gamma, eval_batch_size, seed, chain_ids, *bound)
            of_sampler = {
                "draws_at_once": draws_at_once(first),
                "inputs": len(probe_inputs),
                "parameter_count": first.layout.size,
            }
        else:
            batch_size = min(batch_size, len(lanes[0].data))
            sampler = Chains(lanes, probe, batch_size, eval_batch_size, seed, chain_ids)
            of_sampler = {
                "data_size": len(lanes[0].data),
                "burn_in": burn_in,
                "steps_per_draw": steps_per_draw,
                "batch_size": batch_size,
            }
        stack.callback(sampler.close)
        initial_loss = sampler.initial_losses()
        if not np.isfinite(initial_loss).all():
            count = int((~np.isfinite(initial_loss)).sum())
            raise DivergenceError(
                f"model: the loss of {count} inputs is not finite at the trained weights; "
                "check the weights, the inputs and their preprocessing"
            )
        logits = loss is cross_entropy
        measured = yardsticks(
            model, loss, probe_inputs, eval_batch_size, first.center, initial_loss, logits
        )
        if loss_bound is None and not probe.direct:
            loss_bound = _default_bound(journal, measured.guessing, initial_loss)
        settings = {
            "probe": settings_attribute(probe.settings),
            "parameters": settings_attribute({"names": names}),
            "parameters_layout": layout_fingerprint(first.layout.shapes, first.layout.strides),
            "weights_sha256": state_fingerprint(model),
            "inputs_sha256": inputs_sha256,
            "behavior": behavior,
            **of_sampler,
            "seed": seed,
            "chain_ids": settings_attribute({"ids": chain_ids}),
            "engine": type(first).__name__,
            "precision": "float32",  # the only one; an older run may have had another
            **_unusual(loss, device),
            **_beside(model, lanes[0], probe_data is not None),
            "loss_bound": float("inf") if loss_bound is None else float(loss_bound),
        }
        shape = len(chain_ids), len(probe_inputs)
        record: Journal | _Memory
        if journal is None:
            record = _Memory(*shape, draws)
        else:
            kept = first.layout.size if displacements else 0
            told = {"displacements": "float16"} if displacements else {}
            record = Journal(journal, settings | told, *shape, kept, probe.direct)
            stack.callback(record.close)
        resumed_at = min(record.draws, draws)
        with bar(None, "draws", total=draws, initial=resumed_at, unit="draw", show=progress) as at:
            if isinstance(sampler, Draws):
                _draw(sampler, record, draws, at)
            else:
                lengths = draws, burn_in, steps_per_draw
                _run(sampler, record, lengths, loss_bound, displacements, at)
        losses, batch_losses = record.read(draws)
        seconds = record.seconds(draws)
        found = measured.attributes
        if isinstance(sampler, Chains) and not compiled:
            found |= _step_bounds(sampler, lanes[0], probe, batch_size, seed, draws)
    trace = LossTrace.build(
        losses,
        initial_loss,
        batch_losses,
        chain_ids,
        input_coords,
        {
            **settings,
            **found,
            "device": _device_name(device),
            "threads": torch.get_num_threads(),
            "workers": len(lanes),
            "loss": loss_fingerprint(loss),
            "seconds": float(np.nansum(seconds)),
            "seconds_draws": int(np.isfinite(seconds).sum()),
            "resumed_draws": resumed_at,
        },
    )
    rounding = ("input", measured.rounding.astype(np.float32))
    return LossTrace(trace.dataset.assign(rounding=rounding))


def _default_bound(
    journal: str | Path | None, guessing: float | None, initial_loss: np.ndarray
) -> float | None:
    """What a run is bounded by if its caller does not say; an older journal keeps its own."""
    settings = None if journal is None else Path(journal) / "settings.json"
    if settings is not None and settings.exists():
        with suppress(ValueError, KeyError):  # damaged: told when the journal is opened
            return float(json.loads(settings.read_text())["loss_bound"])
    if guessing is None:
        return None
    return 2 * max(guessing, float(initial_loss.mean(dtype=float)))


# Gradients that measuring the curvature and the minibatch noise takes, 2 in 5 and 4 pairs and one;
# and how many times as many a run has taken where that is done.
_BOUND_GRADIENTS, _BOUND_SHARE = 19, 10


def _step_bounds(
    sampler: Chains, lane: Lane, probe: Probe, batch_size: int, seed: int, draws: int
) -> dict[str, float]:
    """Curvature and minibatch noise where a chain has got to, for the verdict.

    Not of a run so short that they would take a good share of its time.
    """
    running = np.flatnonzero(sampler.diverged < 0)
    if sampler.steps * len(running) < _BOUND_SHARE * _BOUND_GRADIENTS:
        return {}
    engine, data = lane.engine, lane.data
    weights = sampler.weights[running[0]].to(engine.center.device)
    spread = probe.free.run_variance(max(draws, 2), 1) ** 0.5
    steepest = curvature(engine, data, weights, spread, batch_size, seed, iterations=5)
    total, squares = noise_moments(engine, data, weights, batch_size, 4, seed)
    factor = probe.step_size * probe.n_beta**2 / 4
    return {
        "curvature": steepest,
        "minibatch_noise_per_direction": factor * total / len(weights),
        "minibatch_noise_in_span": factor * squares / total if total else 0.0,
    }


def _check_sampler(probe: Probe, burn_in: int, steps_per_draw: int) -> None:
    if not isinstance(probe, Probe | FreeChain):
        raise ConfigError(f"probe: {probe!r} is no losskernel.Probe; pass Probe(gamma=...)")
    if isinstance(probe, FreeChain):
        raise ConfigError(
            "probe: n_beta = 0 is no longer sampled by a chain; pass Probe(gamma=...), which draws "
            "N(w*, I / gamma) directly"
        )
    for name, value, none in (("burn_in", burn_in, 0), ("steps_per_draw", steps_per_draw, 1)):
        if probe.direct and value != none:
            raise ConfigError(
                f"sampling: {name} = {value} has no meaning with n_beta = 0: the draws are "
                "independent and take no steps; leave it out"
            )


def _draw(sampler: Draws, record: Journal | _Memory, draws: int, progress: tqdm) -> None:
    """Make the independent draws that are missing."""
    started = time.perf_counter()
    for losses, moved in sampler.between(record.draws, draws):
        # The time of draws ends before they are saved; that of the next includes the saving.
        started, seconds = time.perf_counter(), time.perf_counter() - started
        record.extend(losses, moved, np.full(len(losses), seconds / len(losses)))
        progress.update(len(losses))
        progress.set_postfix(mean_loss=f"{losses.mean():.4g}", refresh=False)


def _run(
    sampler: Chains,
    record: Journal | _Memory,
    lengths: tuple[int, int, int],
    loss_bound: float | None,
    displacements: bool,
    progress: tqdm,
) -> None:
    """Run the chains on, from their start or from where a journal ends.

    Args:
        lengths: draws, burn-in and steps a draw.
    """
    draws, burn_in, steps_per_draw = lengths
    started = time.perf_counter()
    if record.weights is not None:
        steps = burn_in + record.draws * steps_per_draw
        sampler.restore(record.weights, steps, record.diverged)
    elif burn_in:
        for _ in bar(range(burn_in), "burn-in", unit="step", show=not progress.disable):
            sampler.step()
    while record.draws < draws:
        losses, batch_loss = sampler.draw(steps_per_draw, record.draws, loss_bound)
        started, seconds = time.perf_counter(), time.perf_counter() - started
        if isinstance(record, _Memory):
            record.append(losses, batch_loss, seconds)
        else:
            moved = sampler.displacements if displacements else None
            state = sampler.weights, sampler.diverged
            record.append(losses, batch_loss, *state, moved, seconds)
        progress.update()
        if np.isfinite(losses).any():
            progress.set_postfix(mean_loss=f"{np.nanmean(losses):.4g}", refresh=False)


def _unusual(loss: LossPerInput, device: torch.device) -> dict:
    """Settings that name only what differs from the default.

    So a journal or a trace made before they were kept still belongs to the same run.
    """
    chosen = {}
    if loss is not cross_entropy:
        chosen["loss"] = loss_fingerprint(loss)
    if device.type != "cpu":  # its generator draws other numbers from the same seed
        chosen["noise_device"] = device.type
    return chosen


def _beside(model: nn.Module, lane: Lane, apart: bool) -> dict:
    """Fingerprints of what draws depend on beside the probe inputs and the state of the model.

    Args:
        apart: whether gradients come from other data than the probe inputs.
    """
    found = {}
    if apart:
        found["data_sha256"] = lane.data.fingerprint(few=not lane.data.in_memory)
    return found | hidden_state(model)


def _lanes(
    problem: tuple[nn.Module, LossPerInput, list[str]],
    data: Data,
    probe_data: Data | None,
    device: torch.device,
    workers: int | None,
    most: int,
    engine: str,
    compiled: bool,
    direct: bool,
) -> list[Lane]:
    """A lane a worker; all read the same inputs.

    Args:
        most: lanes that there is work for.
        direct: whether they make independent draws.
    """
    on_cpu = device.type == "cpu"
    if workers is not None and (workers < 1 or (workers > 1 and not on_cpu)):
        raise ConfigError(f"sampling: workers = {workers} must be at least 1, and 1 on a GPU")
    if direct and engine == "auto" and on_cpu and has_convolutions(problem[0]):
        engine = "sequential"
    inputs = Inputs(data, device)
    probe_inputs = inputs if probe_data is None else Inputs(probe_data, device)
    example = inputs.take(np.arange(min(2, len(inputs))))
    runner = make_engine(engine, *problem, example, device, compiled)
    if workers is None:
        side_by_side = (
            on_cpu
            and (direct or isinstance(runner, SequentialEngine))
            and (direct or SMALL_ON_CPU < runner.layout.size)
            and runner.layout.size <= SMALL
            and inputs.in_memory
            and probe_inputs.in_memory
        )
        workers = torch.get_num_threads() if side_by_side else 1
    if workers == 1:
        return [Lane(runner, inputs, probe_inputs)]
    threads = max(1, torch.get_num_threads() // workers)
    if can_fork() and threads == 1:
        # Compiled and traced once; every process has its own copy.
        return [Lane(runner, inputs, probe_inputs, 1, process=True)] * min(workers, most)
    runners = [runner] + [
        make_engine(runner.kind, *problem, example, device, compiled)
        for _ in range(1, min(workers, most))
    ]
    return [Lane(runner, inputs, probe_inputs, threads) for runner in runners]


class _Memory:
    """Draws of a run without a journal, as a :class:`Journal` keeps them."""

    weights = None  # nothing to go on from

    def __init__(self, chains: int, inputs: int, draws: int):
        self.draws = 0
        self._losses = np.empty((chains, draws, inputs), np.float32)
        self._batch_losses = np.full((chains, draws), np.nan)
        self._seconds = np.empty(draws)

    def append(self, losses: np.ndarray, batch_losses: np.ndarray, seconds: float) -> None:
        self._batch_losses[:, self.draws] = batch_losses
        self.extend(losses[None], None, np.array([seconds]))

    def extend(self, losses: np.ndarray, displacements: None, seconds: np.ndarray) -> None:
        rows = slice(self.draws, self.draws + len(losses))
        self._losses[:, rows] = losses.swapaxes(0, 1)
        self._seconds[rows] = seconds
        self.draws += len(losses)

    def read(self, draws: int) -> tuple[np.ndarray, np.ndarray]:
        return self._losses, self._batch_losses

    def seconds(self, draws: int) -> np.ndarray:
        return self._seconds


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.backends.cpu.get_cpu_capability()}"
