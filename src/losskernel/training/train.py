"""Deterministic training of a classifier whose data fit in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losskernel.errors import ConfigError, DataError, LossKernelError
from losskernel.progress import bar


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
    """Training history, one entry an evaluation, all on the whole training set.

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


def _batches(n: int, batch_size: int, rng: np.random.Generator) -> Iterator[Tensor | slice]:
    """Endless minibatch indices, reshuffled each epoch; an epoch's incomplete rest is dropped."""
    if batch_size >= n:
        while True:
            yield slice(None)
    while True:
        order = torch.from_numpy(rng.permutation(n))
        for start in range(0, n - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def train(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    settings: TrainingSettings,
    seed: int,
    progress: bool = True,
) -> TrainingLog:
    """Minimize the mean cross-entropy with AdamW (Loshchilov & Hutter, arXiv:1711.05101).

    Changes ``model`` in place and leaves it in evaluation mode. Initialization is the caller's:
    the model's parameters are taken as they come.

    Args:
        model: maps a batch of inputs to logits, shape ``(batch, class)``.
        inputs: shape ``(n, ...)``, on the model's device.
        targets: classes, shape ``(n,)``, on the model's device.
        settings: optimizer, schedule and stopping rule.
        seed: order of the batches and the layers' own randomness (dropout). On one machine with
            one number of threads, the same seed and initialization give the same weights.
        progress: show a progress bar.

    Returns:
        The history; its last entry describes the final weights.

    Raises:
        DataError: there are no inputs, or not one target an input.
        TrainingError: the loss became NaN or infinite.
    """
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise DataError(f"{len(inputs)} inputs and {len(targets)} targets: give one target each")
    order_seed, layer_seed = np.random.SeedSequence(seed).spawn(2)
    batches = _batches(len(inputs), settings.batch_size, np.random.default_rng(order_seed))
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, settings.warmup, settings.steps)
    )
    log = TrainingLog()
    steps = bar(range(1, settings.steps + 1), "train", unit="step", show=progress)
    with torch.random.fork_rng():
        torch.manual_seed(int(layer_seed.generate_state(1)[0]))
        model.train()
        for step in steps:
            at = next(batches)
            optimizer.zero_grad()
            loss = F.cross_entropy(
                model(inputs[at]), targets[at], label_smoothing=settings.label_smoothing
            )
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % settings.evaluate_every and step != settings.steps:
                continue
            mean_loss, accuracy = evaluate(model, inputs, targets, settings.label_smoothing)
            if not math.isfinite(mean_loss):
                raise TrainingError(
                    f"training loss is {mean_loss} at step {step}: lower learning_rate = "
                    f"{settings.learning_rate}"
                )
            log.step.append(step)
            log.loss.append(mean_loss)
            log.accuracy.append(accuracy)
            steps.set_postfix(loss=f"{mean_loss:.4f}", accuracy=f"{accuracy:.4f}", refresh=False)
            if settings.stop_loss is not None and accuracy == 1 and mean_loss <= settings.stop_loss:
                break
    steps.close()
    model.eval()
    return log
