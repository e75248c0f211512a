"""Deterministic training of a classifier whose data fit in memory, resumable if asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losskernel.errors import ConfigError, DataError, LossKernelError, TraceError
from losskernel.progress import bar
from losskernel.sampling.fingerprints import loss_fingerprint
from losskernel.sampling.inputs import fingerprint, state_fingerprint
from losskernel.seeds import numpy_generator, torch_seed
from losskernel.training.checkpoints import LATEST, Checkpoint, checkpoint_path


class TrainingError(LossKernelError, FloatingPointError):
    """The training loss is no longer a finite number."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        steps: most optimizer steps.
        batch_size: inputs a step; the whole set when it is not larger.
        learning_rate: AdamW's, at its peak.
        betas: AdamW's decay rates of the two moments.
        weight_decay: AdamW's decoupled weight decay, on every parameter.
        warmup: steps of linear warm-up; afterwards the rate falls linearly to 0 at ``steps``.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).
        evaluate_every: steps between two evaluations on the whole training set.
        stop_loss: stop at the first evaluation with a training accuracy of 100 % and a mean
            training loss (label smoothing included) of at most this; None: run all ``steps``.

    Raises:
        ConfigError: a setting is out of range.
    """

    steps: int
    batch_size: int = 512
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup: int = 50
    label_smoothing: float = 0.0
    evaluate_every: int = 50
    stop_loss: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: give a positive integer")
        if not 0 <= self.warmup < self.steps:
            raise ConfigError(
                f"warmup = {self.warmup}: give 0 or more, fewer than steps = {self.steps}"
            )
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate = {self.learning_rate}: give a positive number")
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay = {self.weight_decay}: give 0 or more")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing = {self.label_smoothing}: give a value in [0, 1)")


@dataclass
class TrainingLog:
    """Training history, one entry every ``evaluate_every`` steps and one at the end.

    Attributes:
        step: optimizer steps taken.
        loss: mean loss, label smoothing included, in nats.
        accuracy: share of inputs classified correctly, in [0, 1].
    """

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)


def learning_rate_factor(step: int, warmup: int, steps: int) -> float:
    """Share of the peak rate at ``step`` (from 0): linear warm-up, then linear decay to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return (steps - step) / (steps - warmup)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    batch_size: int = 4096,
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, in evaluation mode; the model's mode is restored.

    Args:
        model: maps a batch of inputs to logits, shape ``(batch, class)``.
        inputs: shape ``(n, ...)``.
        targets: classes, shape ``(n,)``.
        label_smoothing: as in training.
        batch_size: inputs a forward pass.

    Returns:
        Mean loss in nats, accuracy in [0, 1]; both NaN when there are no inputs.
    """
    if len(targets) == 0:
        return math.nan, math.nan
    was_training = model.training
    model.eval()
    loss, correct = 0.0, 0
    for batch, labels in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
        logits = model(batch)
        loss += F.cross_entropy(
            logits, labels, reduction="sum", label_smoothing=label_smoothing
        ).item()
        correct += int((logits.argmax(-1) == labels).sum())
    model.train(was_training)
    return loss / len(targets), correct / len(targets)


Augment = Callable[[Tensor, torch.Generator], Tensor]


def train(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    settings: TrainingSettings,
    seed: int,
    folder: str | Path | None = None,
    checkpoints: Sequence[int] = (),
    augment: Augment | None = None,
    save_every: int = 500,
    progress: bool = True,
) -> TrainingLog:
    """Minimize the mean cross-entropy with AdamW (Loshchilov & Hutter, arXiv:1711.05101).

    Changes ``model`` in place and leaves it in evaluation mode. Initialization is the caller's:
    the model's parameters are taken as they come. With ``folder``, a call after a kill, with the
    same arguments, continues from its ``latest.pt`` and ends with the same weights to the bit (same
    machine, same number of threads).

    Args:
        model: maps a batch of (augmented) inputs to logits, shape ``(batch, class)``.
        inputs: shape ``(n, ...)``, on the model's device, of any type that ``augment`` takes.
        targets: classes, shape ``(n,)``, on the model's device.
        settings: optimizer, schedule and stopping rule.
        seed: of batches, augmentation and dropout. On one machine with one number of threads, the
            same seed and initialization give the same weights.
        folder: of this run's checkpoints, and of no other's.
        checkpoints: steps to keep a checkpoint of, 0 being initialization.
        augment: ``augment(batch, generator)`` gives what the model is called with; the batch itself
            if not given.
        save_every: steps between two writings of ``latest.pt``.
        progress: show a progress bar.

    Returns:
        The history; its last entry describes the final weights. With ``augment``, loss and accuracy
        are means over the augmented minibatches since the entry before.

    Raises:
        ConfigError: a checkpoint is beyond the last step, or a setting does not fit.
        DataError: there are no inputs, or not one target an input.
        TraceError: the folder holds another run's checkpoints.
        TrainingError: the loss became NaN or infinite.
    """
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise DataError(f"{len(inputs)} inputs and {len(targets)} targets: give one target each")
    if settings.stop_loss is not None and (folder or augment):
        raise ConfigError(f"stop_loss = {settings.stop_loss}: set it to null, to run all steps")
    if save_every < 1 or not all(0 <= step <= settings.steps for step in checkpoints):
        raise ConfigError(
            f"checkpoints = {list(checkpoints)}, save_every = {save_every}: give steps from 0 to "
            f"{settings.steps}, and 1 or more"
        )
    run = _Run(model, settings, seed)
    if folder is not None:
        started = {
            "settings": asdict(settings),
            "seed": seed,
            "initialization": state_fingerprint(model),
            "data": fingerprint([inputs, targets]),
            **({} if augment is None else {"augment": loss_fingerprint(augment)}),
        }
        run.identity = json.dumps(started, sort_keys=True)
        if (latest := Path(folder) / LATEST).exists():
            run.restore(Checkpoint.load(latest), latest.parent)
        elif 0 in checkpoints:
            run.checkpoint.save(checkpoint_path(folder, 0))
    batches = _batches(len(inputs), settings.batch_size, seed, folder is not None, run.step)
    steps = bar(
        range(run.step + 1, settings.steps + 1),
        "train",
        total=settings.steps,
        initial=run.step,
        unit="step",
        show=progress,
    )
    model.train()
    with torch.random.fork_rng():  # dropout draws from the global generator
        for step in steps:
            at = next(batches)
            batch, labels = inputs[at], targets[at]
            if augment is not None:
                generator = torch.Generator().manual_seed(torch_seed(seed, "augment", step))
                batch = augment(batch, generator)
            run.advance(batch, labels)
            noted = step % settings.evaluate_every == 0 or step == settings.steps
            if noted:
                whole = (inputs, targets, settings.label_smoothing)
                loss, accuracy = run.note(None if augment else evaluate(model, *whole))
                steps.set_postfix(loss=f"{loss:.4f}", accuracy=f"{accuracy:.4f}", refresh=False)
            if step in checkpoints and folder is not None:
                run.checkpoint.save(checkpoint_path(folder, step))
            if folder is not None and (step % save_every == 0 or step == settings.steps):
                run.checkpoint.save(Path(folder) / LATEST)
            stop = settings.stop_loss
            if noted and stop is not None and accuracy == 1 and loss <= stop:
                break
    steps.close()
    model.eval()
    return run.log


def _batches(
    count: int, size: int, seed: int, resumable: bool, first: int
) -> Iterator[Tensor | slice]:
    """Endless minibatches, from number ``first``; an epoch's incomplete rest is dropped.

    They are reshuffled each epoch. A run that can be continued keys the order by the epoch; others
    draw one order after the other, as the networks of the results have been trained.
    """
    if size >= count:
        while True:
            yield slice(None)
    epoch, done = divmod(first, count // size)
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
    while True:
        keyed = numpy_generator(seed, "order", epoch) if resumable else rng
        order = torch.from_numpy(keyed.permutation(count))
        yield from order[: count // size * size].split(size)[done:]
        epoch, done = epoch + 1, 0


class _Run:
    """A run in progress: model, optimizer, step and history."""

    def __init__(self, model: nn.Module, settings: TrainingSettings, seed: int):
        self._model, self._settings, self._seed, self.identity = model, settings, seed, ""
        self._optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self.step, self.log = 0, TrainingLog()
        self._since = {"loss": 0.0, "correct": 0, "count": 0}  # the last entry of the history

    def advance(self, batch: Tensor, labels: Tensor) -> None:
        settings = self._settings
        factor = learning_rate_factor(self.step, settings.warmup, settings.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        self.step += 1
        torch.manual_seed(torch_seed(self._seed, "dropout", self.step))
        self._optimizer.zero_grad()
        logits = self._model(batch)
        loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        loss.backward()
        self._optimizer.step()
        self._since["loss"] += self._finite(loss.item()) * len(labels)
        self._since["correct"] += int((logits.argmax(-1) == labels).sum())
        self._since["count"] += len(labels)

    def _finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise TrainingError(
                f"training loss is {loss} at step {self.step}: lower learning_rate = "
                f"{self._settings.learning_rate}"
            )
        return loss

    def note(self, found: tuple[float, float] | None) -> tuple[float, float]:
        """Add loss and accuracy to the history; if not given, those of the batches since."""
        since = self._since
        loss, accuracy = found or tuple(since[k] / since["count"] for k in ("loss", "correct"))
        self.log.step.append(self.step)
        self.log.loss.append(self._finite(loss))
        self.log.accuracy.append(accuracy)
        self._since = dict.fromkeys(since, 0)
        return loss, accuracy

    @property
    def checkpoint(self) -> Checkpoint:
        log = asdict(self.log) | {"since": self._since}
        model, optimizer = self._model.state_dict(), self._optimizer.state_dict()
        return Checkpoint(self.step, model, optimizer, log, self.identity)

    def restore(self, checkpoint: Checkpoint, folder: Path) -> None:
        if checkpoint.identity != self.identity:
            here, there = json.loads(self.identity), json.loads(checkpoint.identity)
            other = next(key for key in here if here[key] != there.get(key))
            raise TraceError(
                f"{folder}: holds checkpoints of a run with other {other}; "
                "delete the folder or choose another"
            )
        self._model.load_state_dict(checkpoint.model)
        self._optimizer.load_state_dict(checkpoint.optimizer)
        self.step = checkpoint.step
        self._since = checkpoint.log["since"]
        self.log = TrainingLog(**{k: v for k, v in checkpoint.log.items() if k != "since"})
