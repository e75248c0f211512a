"""Training that leaves checkpoints along the way and goes on after a kill as if there was none.

A folder belongs to one run. It holds a checkpoint ``step-<number>.pt`` at each of the steps asked
for, with weights, optimizer state and history, and ``latest.pt``, written in between, from which a
run continues. All randomness is keyed by seed and step, so that no generator's state is needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losskernel.errors import ConfigError, DataError, TraceError
from losskernel.files import atomic_path
from losskernel.progress import bar
from losskernel.sampling.fingerprints import loss_fingerprint
from losskernel.sampling.inputs import fingerprint, state_fingerprint
from losskernel.seeds import numpy_generator, torch_seed
from losskernel.training.train import (
    TrainingError,
    TrainingLog,
    TrainingSettings,
    learning_rate_factor,
)

LATEST = "latest.pt"

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a training run.

    Attributes:
        step: optimizer steps taken.
        model: state of the model.
        optimizer: state of the optimizer.
        log: history up to here, see :func:`train_with_checkpoints`.
        identity: what the run was started with, as JSON.
    """

    step: int
    model: dict
    optimizer: dict
    log: dict
    identity: str

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read a checkpoint; nothing in the file is executed.

        Raises:
            TraceError: it is missing or damaged, or something else.
        """
        try:
            return cls(**torch.load(path, map_location="cpu", weights_only=True))
        except FileNotFoundError as error:
            raise TraceError(f"{path}: no such checkpoint; train first") from error
        except Exception as error:  # pickle's own errors have no common base in torch.load
            raise TraceError(
                f"{path}: not a checkpoint of a training run ({type(error).__name__}); delete it "
                "to train again"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write, so that a reader sees all of it or none."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        with atomic_path(path) as temporary:
            torch.save(content, temporary)


def checkpoint_path(folder: str | Path, step: int) -> Path:
    """Where :func:`train_with_checkpoints` leaves the checkpoint of a step."""
    return Path(folder) / f"step-{step:07d}.pt"


def train_with_checkpoints(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    settings: TrainingSettings,
    seed: int,
    folder: str | Path,
    checkpoints: Sequence[int],
    augment: Augment | None = None,
    save_every: int = 500,
    progress: bool = True,
) -> TrainingLog:
    """Minimize the mean cross-entropy with AdamW, as :func:`losskernel.training.train` does.

    Called again after a kill, with the same arguments, it continues from ``latest.pt`` and ends
    with the same weights to the bit (same machine, same number of threads). Leaves ``model`` in
    evaluation mode.

    Args:
        model: maps a batch of (augmented) inputs to logits ``(batch, class)``; its parameters are
            the initialization.
        inputs: shape ``(n, ...)``, of any type that ``augment`` takes.
        targets: classes, shape ``(n,)``.
        settings: optimizer and schedule; ``stop_loss`` must be None, as there is no pause to
            evaluate all inputs. A point of the history is made every ``evaluate_every`` steps.
        seed: of batches, augmentation and dropout.
        folder: of this run's checkpoints.
        checkpoints: steps, 0 being initialization.
        augment: ``augment(batch, generator)`` gives what the model is called with; the batch itself
            if not given.
        save_every: steps between two writings of ``latest.pt``.
        progress: show a progress bar.

    Returns:
        The history; loss (label smoothing included) and accuracy are means over the augmented
        minibatches since the entry before, not over the whole set.

    Raises:
        ConfigError: a checkpoint is beyond the last step, or a setting does not fit.
        DataError: there are no inputs, or not one target an input.
        TraceError: the folder holds another run's checkpoints.
        TrainingError: the loss became NaN or infinite.
    """
    folder = Path(folder)
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise DataError(f"{len(inputs)} inputs and {len(targets)} targets: give one target each")
    if settings.stop_loss is not None:
        raise ConfigError(f"stop_loss = {settings.stop_loss}: set it to null, to run all steps")
    if save_every < 1 or not all(0 <= step <= settings.steps for step in checkpoints):
        raise ConfigError(
            f"checkpoints = {list(checkpoints)}, save_every = {save_every}: give steps from 0 to "
            f"{settings.steps}, and 1 or more"
        )
    identity = json.dumps(
        {
            "settings": asdict(settings),
            "seed": seed,
            "initialization": state_fingerprint(model),
            "data": fingerprint([inputs, targets]),
            **({} if augment is None else {"augment": loss_fingerprint(augment)}),
        },
        sort_keys=True,
    )
    run = _Run(model, settings, seed, identity)
    if (folder / LATEST).exists():
        run.restore(Checkpoint.load(folder / LATEST), folder)
    elif 0 in checkpoints:
        run.checkpoint.save(checkpoint_path(folder, 0))
    batch_size, batches = min(settings.batch_size, len(inputs)), _Batches(len(inputs), seed)
    model.train()
    steps = bar(
        range(run.step + 1, settings.steps + 1),
        "train",
        total=settings.steps,
        initial=run.step,
        unit="step",
        show=progress,
    )
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator
        for step in steps:
            at = batches.take(step - 1, batch_size)
            batch = inputs[at]
            if augment is not None:
                generator = torch.Generator().manual_seed(torch_seed(seed, "augment", step))
                batch = augment(batch, generator)
            run.advance(batch, targets[at])
            if step % settings.evaluate_every == 0 or step == settings.steps:
                run.note()
                steps.set_postfix(
                    loss=f"{run.log.loss[-1]:.4f}",
                    accuracy=f"{run.log.accuracy[-1]:.4f}",
                    refresh=False,
                )
            if step in checkpoints:
                run.checkpoint.save(checkpoint_path(folder, step))
            if step % save_every == 0 or step == settings.steps:
                run.checkpoint.save(folder / LATEST)
    model.eval()
    return run.log


class _Batches:
    """Minibatches reshuffled each epoch; an epoch's incomplete rest is dropped."""

    def __init__(self, count: int, seed: int):
        self._count, self._seed, self._epoch = count, seed, -1

    def take(self, number: int, size: int) -> Tensor:
        """Indices of batch ``number``, from 0."""
        epoch, position = divmod(number, self._count // size)
        if epoch != self._epoch:
            rng = numpy_generator(self._seed, "order", epoch)
            self._order, self._epoch = torch.from_numpy(rng.permutation(self._count)), epoch
        return self._order[position * size : (position + 1) * size]


class _Run:
    """A run in progress: model, optimizer, step and history."""

    def __init__(self, model: nn.Module, settings: TrainingSettings, seed: int, identity: str):
        self._model, self._settings, self._seed, self._identity = model, settings, seed, identity
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
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"training loss is {value} at step {self.step}: lower learning_rate = "
                f"{settings.learning_rate}"
            )
        self._since["loss"] += value * len(labels)
        self._since["correct"] += int((logits.argmax(-1) == labels).sum())
        self._since["count"] += len(labels)

    def note(self) -> None:
        """Add an entry to the history."""
        self.log.step.append(self.step)
        self.log.loss.append(self._since["loss"] / self._since["count"])
        self.log.accuracy.append(self._since["correct"] / self._since["count"])
        self._since = dict.fromkeys(self._since, 0)

    @property
    def checkpoint(self) -> Checkpoint:
        log = asdict(self.log) | {"since": self._since}
        model, optimizer = self._model.state_dict(), self._optimizer.state_dict()
        return Checkpoint(self.step, model, optimizer, log, self._identity)

    def restore(self, checkpoint: Checkpoint, folder: Path) -> None:
        if checkpoint.identity != self._identity:
            here, there = json.loads(self._identity), json.loads(checkpoint.identity)
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
