"""Writing files so that a reader sees the whole new file or the old one, never a part."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from safetensors import SafetensorError

from losskernel.errors import LossKernelError, TraceError

if TYPE_CHECKING:  # most that write files write no tables
    import pandas as pd

log = logging.getLogger(__name__)


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


def locked(folder: Path) -> IO:
    """A lock file in a folder, open and locked: one process at a time adds to what is there.

    The system frees it when the file is closed, or the process ends.

    Raises:
        TraceError: another process holds it.
        LossKernelError: the folder cannot be written to.
    """
    try:
        file = open(folder / "lock", "w")
    except OSError as error:
        raise LossKernelError(
            f"{folder}: cannot be written ({error.strerror or error}); free disk space or choose "
            "another place"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise TraceError(
            f"{folder}: another process writes to it; wait for it or stop it first"
        ) from error
    except OSError:  # a file system without locks: the user has to take care
        log.warning("%s: the file system has no locks; run one process a folder", folder)
    return file


def write_csv(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table without its index, atomically; errors as for :func:`atomic_path`."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
