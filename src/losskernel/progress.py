"""The progress bar of everything that takes long."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tqdm import tqdm


def bar(
    iterable: Iterable | None = None,
    description: str = "",
    *,
    total: int | None = None,
    initial: int = 0,
    unit: str = "it",
    show: bool = True,
) -> tqdm:
    """A progress bar on standard error: live in a terminal, a line every ten seconds in a log.

    Args:
        iterable: what to go through; None if the caller calls ``update``.
        description: text before the bar.
        total: number of items, if ``iterable`` has no length.
        initial: items already done, as in a resumed run.
        unit: name of an item.
        show: whether there is a bar at all.
    """
    live = sys.stderr.isatty()
    return tqdm(
        iterable,
        description,
        total=total,
        initial=initial,
        unit=unit,
        disable=not show,
        mininterval=0.1 if live else 10,
        delay=0 if live else 1,  # what is over at once leaves no trace in a log
    )
