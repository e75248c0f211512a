"""Reading a journal that a running process writes to, without opening it for writing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from losskernel.errors import TraceError
from losskernel.sampling.journal import JournalHead


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
    head = JournalHead.read(folder)
    chains, inputs, draws = len(head.chain_ids), head.inputs, head.draws
    if (folder / "losses.f32").stat().st_size < 4 * draws * chains * inputs:
        raise TraceError(f"{folder}: losses.f32 is shorter than its state; sample again")
    losses = np.fromfile(
        folder / "losses.f32",
        np.float32,
        count=max(0, draws - start) * chains * inputs,
        offset=4 * start * chains * inputs if start < draws else 0,
    )
    return losses.reshape(-1, chains, inputs).swapaxes(0, 1)
