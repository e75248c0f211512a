"""An unfinished sampling run on disk: every draw so far and the weights to continue from.

A journal is a folder with ``settings.json``, the append-only ``losses.f32`` (one row of
``chain x input`` float32 a draw), ``batch_losses.f64`` (one row of ``chain`` a draw),
``seconds.f64`` (one number a draw), on request ``displacements.f16`` (one row of
``chain x parameter`` a draw) and ``state.safetensors`` (the weights after the last complete draw).
The state is replaced atomically after its rows are written; rows past it are cut off on resume. So
a kill at any moment loses at most the draw in flight.

Independent draws have no state to continue from: their journal has neither ``state.safetensors``
nor ``batch_losses.f64``, its settings tell how long a row is, and the rows that are complete in all
files count. A kill loses at most the draws in flight.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from losskernel.errors import LossKernelError, TraceError
from losskernel.files import atomic_path, locked, write_json
from losskernel.sampling.probe import FreeChain, Probe
from losskernel.trace import behave_alike

DISPLACEMENTS = "displacements.f16"


class Journal:
    """Opens or creates the journal of one run.

    Args:
        folder: where it lives; created if missing.
        settings: everything that determines the draws, as JSON-able values. Their number is not
            among them: a finished run can be continued to more draws.
        chains, inputs: shape of a row.
        parameters: length of a displacement; 0 keeps none.
        direct: whether it is of independent draws, appended by :meth:`extend`.

    Raises:
        TraceError: the folder holds a run with other settings, cannot be read, or another process
            writes to it.
        LossKernelError: it cannot be written to, here or in :meth:`append`.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: dict,
        chains: int,
        inputs: int,
        parameters: int = 0,
        direct: bool = False,
    ):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        self._chains, self._inputs = chains, inputs
        self.draws = 0
        self.weights: torch.Tensor | None = None
        self.diverged = np.full(chains, -1)
        with ExitStack() as stack:
            self._lock = stack.enter_context(locked(self.folder))
            for leftover in self.folder.glob(".state.*.safetensors"):
                leftover.unlink()  # of a process killed while it wrote; as large as the weights
            self._check_settings(json.loads(json.dumps(settings)))
            rows = {"losses.f32": 4 * chains * inputs}
            if parameters:
                rows[DISPLACEMENTS] = 2 * chains * parameters
            if direct:
                self.draws = complete_rows(self.folder, {**rows, "seconds.f64": 8})
                self._batch_losses = None
            else:
                self._read_state()
                self._batch_losses = self._open("batch_losses.f64", 8 * chains)
            self._losses = self._open("losses.f32", rows["losses.f32"])
            self._seconds = self._open_seconds()
            self._displacements = None
            if parameters:
                self._displacements = self._open(DISPLACEMENTS, rows[DISPLACEMENTS])
            stack.pop_all()  # opened: the lock is kept until close() or the end of the process

    def _check_settings(self, settings: dict) -> None:
        path = self.folder / "settings.json"
        if not path.exists():
            if any(self.folder.glob("*.f32")):
                raise TraceError(f"{path}: is missing; delete the folder to start over")
            write_json(settings, path, indent=1, sort_keys=True)
            return
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise TraceError(f"{path}: unreadable; delete the folder to start over") from error
        alike = behave_alike(settings.pop("behavior", None), found.pop("behavior", None))
        differing = sorted(
            key
            for key in settings.keys() | found.keys()
            if _value(settings.get(key)) != _value(found.get(key))
        )
        if differing:
            key = differing[0]
            raise TraceError(
                f"{self.folder}: holds a run with {key} = {found.get(key)}, not "
                f"{settings.get(key)}; go on with what it was begun with, or choose another folder"
            )
        if not alike:
            raise TraceError(
                f"{self.folder}: holds a run of a model or a loss that computes other numbers from "
                "the same weights; go on with what it was begun with, or choose another folder"
            )

    def _read_state(self) -> None:
        path = self.folder / "state.safetensors"
        if not path.exists():
            return
        try:
            with safe_open(path, "pt") as file:
                self.weights = file.get_tensor("weights")
                self.diverged = file.get_tensor("diverged").numpy()
                self.draws = int(file.get_tensor("draws"))
        except (SafetensorError, OSError) as error:
            raise TraceError(f"{path}: unreadable; delete the folder to start over") from error

    def _open(self, name: str, row_bytes: int):
        path = self.folder / name
        file = open(path, "r+b" if path.exists() else "w+b", buffering=0)
        file.seek(0, os.SEEK_END)
        if file.tell() < self.draws * row_bytes:
            raise TraceError(f"{path}: shorter than its state; delete the folder to start over")
        file.truncate(self.draws * row_bytes)
        file.seek(0, os.SEEK_END)
        return file

    def _open_seconds(self):
        """As :meth:`_open`; journals of earlier versions have no such file: NaN for their draws."""
        path = self.folder / "seconds.f64"
        if self.draws and not path.exists():
            with atomic_path(path) as temporary:
                np.full(self.draws, np.nan).tofile(temporary)
        return self._open(path.name, 8)

    def append(
        self,
        losses: np.ndarray,
        batch_losses: np.ndarray,
        weights: torch.Tensor,
        diverged: np.ndarray,
        displacements: torch.Tensor | None = None,
        seconds: float = np.nan,
    ) -> None:
        """Record one complete draw: losses ``(chain, input)`` and the weights it was taken at.

        ``seconds`` is the time it took. A draw that a kill cut short is made again and counts once.
        """
        self._write(losses, np.float64(seconds), displacements)
        self._rows(self._batch_losses, batch_losses, np.float64)
        state = {
            "weights": weights.cpu().contiguous(),
            "diverged": torch.as_tensor(diverged),
            "draws": torch.tensor(self.draws + 1),
            "inputs": torch.tensor(self._inputs),
        }
        with atomic_path(self.folder / "state.safetensors", sync=False) as temporary:
            save_file(state, temporary)
        self.draws += 1

    def extend(
        self, losses: np.ndarray, displacements: np.ndarray | None, seconds: np.ndarray
    ) -> None:
        """Record independent draws: losses ``(draw, chain, input)``, and what :meth:`append` does.

        Args:
            displacements: ``(draw, chain, parameter)``, if they are kept.
            seconds: ``(draw,)``.
        """
        self._write(losses, seconds, displacements)
        self.draws += len(losses)

    def _write(self, losses: np.ndarray, seconds: np.ndarray, displacements) -> None:
        if self._displacements is not None:
            self._rows(self._displacements, displacements, np.float16)
        self._rows(self._losses, losses, np.float32)
        self._rows(self._seconds, seconds, np.float64)

    def _rows(self, file, values, dtype: type) -> None:
        try:
            view = memoryview(np.ascontiguousarray(values, dtype).tobytes())
            while view:
                view = view[file.write(view) :]
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def read(self, draws: int) -> tuple[np.ndarray, np.ndarray]:
        """First ``draws`` rows: losses ``(chain, draw, input)``, batch losses ``(chain, draw)``."""
        shape = (draws, self._chains, self._inputs)
        losses = np.fromfile(self.folder / "losses.f32", np.float32, int(np.prod(shape)))
        batch = np.full(draws * self._chains, np.nan)  # independent draws have none
        if self._batch_losses is not None:
            batch = np.fromfile(self.folder / "batch_losses.f64", np.float64, len(batch))
        return (
            losses.reshape(shape).swapaxes(0, 1).copy(),
            batch.reshape(draws, self._chains).T.copy(),
        )

    def seconds(self, draws: int) -> np.ndarray:
        """Time of the first ``draws`` draws, ``(draw,)``, NaN where it is not known."""
        return np.fromfile(self.folder / "seconds.f64", np.float64, draws)

    def close(self) -> None:
        """Close the files; the journal can be opened again."""
        for file in (self._losses, self._batch_losses, self._seconds, self._displacements):
            if file is not None:
                file.close()
        self._lock.release()


def _value(setting):
    """What a setting says: JSON by its content, in which 20 and 20.0 are the same."""
    return json.loads(setting) if isinstance(setting, str) and setting[:1] == "{" else setting


def complete_rows(folder: Path, row_bytes: dict[str, int]) -> int:
    """How many rows are complete in all of these files; 0 if one is missing."""
    paths = {folder / name: size for name, size in row_bytes.items()}
    return min(path.stat().st_size // size if path.exists() else 0 for path, size in paths.items())


@dataclass(frozen=True)
class JournalHead:
    """What a journal holds, read without opening it for writing, also while a run goes on.

    Attributes:
        folder: where it is.
        settings: of the run.
        chain_ids: numbers of its chains.
        draws: how many are complete.
        diverged: draw at which a chain diverged, or -1, ``(chain,)``.
        inputs: length of a chain's row of losses; None where it is not told.
    """

    folder: Path
    settings: dict
    chain_ids: list[int]
    draws: int
    diverged: np.ndarray
    inputs: int | None

    @classmethod
    def read(cls, folder: str | Path):
        """Raises a TraceError if the folder is no journal, or holds no complete draw."""
        folder = Path(folder)
        try:
            settings = json.loads((folder / "settings.json").read_text())
            chain_ids = json.loads(settings["chain_ids"])["ids"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TraceError(
                f"{folder}: not the journal of a sampling run; correct the path"
            ) from error
        if (folder / "state.safetensors").exists():
            draws, diverged, inputs = _read_state(folder)
        else:
            draws, diverged = 0, np.full(len(chain_ids), -1)
            inputs = settings.get("inputs")
            if inputs is not None:
                rows = {"losses.f32": 4 * len(chain_ids) * inputs, "seconds.f64": 8}
                draws = complete_rows(folder, rows)
        if not draws:
            raise TraceError(
                f"{folder}: no complete draw yet; try again when the run is past its burn-in"
            )
        return cls(folder, settings, chain_ids, draws, diverged, inputs)

    @property
    def probe(self) -> Probe | FreeChain:
        """The probe distribution; raises a TraceError if the settings do not tell it."""
        try:
            return Probe.read(self.settings["probe"])
        except (ValueError, KeyError, TypeError) as error:
            raise TraceError(f"{self.folder}: does not tell its probe; sample again") from error


def journal_losses(folder: str | Path) -> np.ndarray:
    """Losses of the complete draws so far in the journal of a run, also of one that goes on.

    Returns:
        ``(chain, draw, input)`` float32, NaN from the draw at which a chain diverged.

    Raises:
        TraceError: the folder is no journal, cannot be read, or holds no complete draw yet.
    """
    head = JournalHead.read(folder)
    shape = head.draws, len(head.chain_ids), head.inputs
    losses = np.fromfile(head.folder / "losses.f32", np.float32, count=math.prod(shape))
    if losses.size < math.prod(shape):
        raise TraceError(f"{folder}: losses.f32 is shorter than its state; sample again")
    return losses.reshape(shape).swapaxes(0, 1)


def _read_state(folder: Path) -> tuple[int, np.ndarray, int | None]:
    """Draws, where chains diverged and inputs, from the state after the last draw."""
    try:
        with safe_open(folder / "state.safetensors", "pt") as file:
            inputs = int(file.get_tensor("inputs")) if "inputs" in file.keys() else None
            return int(file.get_tensor("draws")), file.get_tensor("diverged").numpy(), inputs
    except (OSError, SafetensorError) as error:
        raise TraceError(f"{folder}: unreadable as a journal ({error})") from error


def _unwritable(folder: Path, error: OSError) -> LossKernelError:
    return LossKernelError(
        f"{folder}: the journal cannot be written ({error.strerror or error}); free disk space or "
        "choose another place, then run again to continue"
    )
