"""Writing files so that a reader sees the whole new file or the old one, never a part."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from losskernel.errors import DataError, LossKernelError, TraceError

if TYPE_CHECKING:  # most that write files write no tables
    import pandas as pd
    from numpy.typing import ArrayLike

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


def check_writable(path: str | Path) -> None:
    """Whether a file can be written at ``path``, without writing it.

    Raises:
        LossKernelError: a folder is there, or the nearest folder that exists is none or closed.
    """
    path = Path(path)
    above = next(folder for folder in path.absolute().parents if folder.exists())
    reason = None
    if path.suffix and path.is_dir():  # results that are folders have no suffix
        reason = "it is a folder"
    elif not above.is_dir():
        reason = f"{above} is no folder"
    elif not os.access(above, os.W_OK | os.X_OK):
        reason = f"{above} is not writable"
    if reason is not None:
        raise LossKernelError(f"{path}: cannot be written ({reason}); choose another place")


def locked(folder: Path) -> AbstractContextManager[FileLock]:
    """Lock a folder: one process at a time adds to what is there.

    Returns:
        A context whose value is the lock; its end, ``release()`` or the end of the process frees
        the folder.

    Raises:
        TraceError: another process holds it.
        LossKernelError: the folder cannot be written to.
    """
    # Released by whichever thread closes what it protects.
    lock = FileLock(folder / "lock", thread_local=False)
    try:
        return lock.acquire(timeout=0)
    except Timeout as error:
        raise TraceError(
            f"{folder}: another process writes to it; wait for it or stop it first"
        ) from error
    except (OSError, NotImplementedError) as error:
        if not os.access(folder, os.W_OK):
            raise LossKernelError(
                f"{folder}: cannot be written ({getattr(error, 'strerror', None) or error}); free "
                "disk space or choose another place"
            ) from error
        # A file system without locks: the user has to take care.
        log.warning("%s: the file system has no locks; run one process a folder", folder)
        return nullcontext(lock)


def write_csv(table: pd.DataFrame, path: str | Path, float_format: str | None = None) -> None:
    """Write a table without its index, atomically; errors as for :func:`atomic_path`."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format=float_format)


def write_json(content: object, path: str | Path, **options) -> None:
    """Write JSON, atomically, with options of json.dumps; errors as for :func:`atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, **options))


def write_npz(path: str | Path, **arrays: ArrayLike) -> None:
    """Write a compressed archive of arrays, atomically; errors as for :func:`atomic_path`."""
    # An open file, as NumPy appends .npz to a path that ends otherwise.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_npz(path: str | Path, remedy: str = "make it again") -> dict[str, np.ndarray]:
    """The arrays of an archive, by name.

    Args:
        path: the archive.
        remedy: what to do if it is not one, for the error.

    Raises:
        DataError: there is no such file, or it is no archive of arrays.
    """
    try:
        with np.load(path) as stored:
            return dict(stored)
    except FileNotFoundError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    except Exception as error:  # NumPy raises many types for what is no archive
        raise DataError(f"{path}: not an .npz archive; {remedy}") from error
