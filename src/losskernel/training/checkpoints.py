"""Moments of a training run, from which it goes on after a kill as if there was none.

A folder belongs to one run. It holds a checkpoint ``step-<number>.pt`` at each of the steps asked
for, with weights, optimizer state and history, and ``latest.pt``, written in between, from which a
run continues. All randomness is keyed by seed and step, so that no generator's state is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from losskernel.errors import TraceError
from losskernel.files import atomic_path

LATEST = "latest.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a training run.

    Attributes:
        step: optimizer steps taken.
        model: state of the model.
        optimizer: state of the optimizer.
        log: history up to here, see :func:`losskernel.training.train.train`.
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
    """Where :func:`losskernel.training.train.train` leaves the checkpoint of a step."""
    return Path(folder) / f"step-{step:07d}.pt"
