"""Reading a journal that a running process writes to, without opening it for writing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from losskernel.errors import TraceError


def journal_losses(folder: str | Path, start: int = 0) -> np.ndarray:
    """Losses of the complete draws so far in the journal of a run, also of one that goes on.

    Args:
        folder: the journal (:mod:`losskernel.sampling.journal`) of
            :func:`losskernel.sampling.sample.sample_losses`.
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
    """Complete draws and number of inputs, as the state after the last draw tells."""
    try:
        with safe_open(folder / "state.safetensors", "numpy") as state:
            draws, inputs = (int(state.get_tensor(name)) for name in ("draws", "inputs"))
    except FileNotFoundError as error:
        raise TraceError(
            f"{folder}: no complete draw yet; try again when the run is past its burn-in"
        ) from error
    except (OSError, SafetensorError) as error:
        raise TraceError(f"{folder}: unreadable as a journal ({error})") from error
    if (folder / "losses.f32").stat().st_size < 4 * draws * chains * inputs:
        raise TraceError(f"{folder}: losses.f32 is shorter than its state; sample again")
    return draws, inputs
