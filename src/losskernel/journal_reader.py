"""Reading a journal that a running process writes to, without opening it for writing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from losskernel.errors import TraceError

_ATTEMPTS = 10


def journal_losses(folder: str | Path, start: int = 0) -> np.ndarray:
    """Losses of the complete draws so far in the journal of a run, also of one that goes on.

    Args:
        folder: the journal (:mod:`losskernel.journal`) of
            :func:`losskernel.sampling.sample_losses`.
        start: draws to leave out at the beginning, say those read before.

    Returns:
        ``(chain, draw, input)`` float32, NaN from the draw at which a chain diverged.

    Raises:
        TraceError: the folder is no journal, cannot be read, or holds no complete draw yet.
    """
    folder = Path(folder)
    try:
        chains = len(
            json.loads(json.loads((folder / "settings.json").read_text())["chain_ids"])["ids"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TraceError(
            f"{folder}: not the journal of a sampling run; correct the path"
        ) from error
    draws, inputs = _shape(folder, chains)
    losses = np.fromfile(
        folder / "losses.f32",
        np.float32,
        count=max(0, draws - start) * chains * inputs,
        offset=4 * start * chains * inputs if start < draws else 0,
    )
    return losses.reshape(-1, chains, inputs).swapaxes(0, 1)


def _shape(folder: Path, chains: int) -> tuple[int, int]:
    """Complete draws and number of inputs.

    A draw's losses are written before its batch losses and those before the state, so the number of
    batch losses tells how many rows the losses have, but for the moment between the two writes.
    """
    for _ in range(_ATTEMPTS):
        try:
            rows = (folder / "batch_losses.f64").stat().st_size // (8 * chains)
            size = (folder / "losses.f32").stat().st_size
            with safe_open(folder / "state.safetensors", "numpy") as state:
                draws = int(state.get_tensor("draws"))
            settled = rows == (folder / "batch_losses.f64").stat().st_size // (8 * chains)
            settled &= draws in (rows, rows - 1)
        except FileNotFoundError as error:
            raise TraceError(
                f"{folder}: no complete draw yet; try again when the run is past its burn-in"
            ) from error
        except (OSError, SafetensorError) as error:
            raise TraceError(f"{folder}: unreadable as a journal ({error})") from error
        if settled and rows and size % (4 * chains * rows) == 0:
            return draws, size // (4 * chains * rows)
    raise TraceError(
        f"{folder}: {size} bytes of losses do not make {rows} draws of {chains} chains; the run is "
        "in the middle of a draw, try again"
    )
