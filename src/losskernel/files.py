"""Writing files so that a reader sees the whole new file or the old one, never a part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from losskernel.errors import LossKernelError

if TYPE_CHECKING:  # most that write files write no tables
    import pandas as pd


@contextmanager
def atomic_path(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends without an error.

    Args:
        path: the file to write; its folder is created.
        sync: force the bytes to disk before the replacement, which then survives a power cut.

    Raises:
        LossKernelError: the disk is full or not writable; nothing is left behind.
    """
    path = Path(path)
    # The suffix stays last: some writers choose a format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if sync:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors has its own type for a full disk
        reason = getattr(error, "strerror", None) or error
        raise LossKernelError(
            f"{path}: cannot be written ({reason}); free disk space or choose another place"
        ) from error
    finally:
        with suppress(OSError):  # it is gone, or its folder never was; the error above says more
            temporary.unlink()


def write_csv(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table without its index, atomically; errors as for :func:`atomic_path`."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
