"""Where a worker's methods run: in the caller's thread, in one of their own, or in a process.

Two threads of one Python take turns at whatever is not inside PyTorch, which for small models is a
quarter of the time; two processes do not. A process is forked, so that model, loss and data need
not be pickled and a script needs no ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import signal
import sys
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from losskernel.errors import LossKernelError

_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


class Here:
    """Calls methods of one object, one at a time, in the caller's thread, at once."""

    def __init__(self, target: object):
        self._target = target

    def prepare(self, method: str, *args: Any) -> Future | _Answer:
        """As :meth:`submit`, for a call before the first of those."""
        return self.submit(method, *args)

    def submit(self, method: str, *args: Any) -> Future | _Answer:
        """Begin a call; ``result()`` of what is returned waits for its outcome."""
        done: Future = Future()
        done.set_result(getattr(self._target, method)(*args))
        return done

    def close(self) -> None:
        """End the thread or process, if there is one."""


class InThread(Here):
    """In a thread that computes with ``threads`` threads of PyTorch."""

    def __init__(self, target: object, threads: int):
        super().__init__(target)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._thread.submit(_limit_threads, threads).result()

    def submit(self, method: str, *args: Any) -> Future:
        return self._thread.submit(getattr(self._target, method), *args)

    def close(self) -> None:
        self._thread.shutdown()


class InProcess(Here):
    """In a process that computes with ``threads`` threads of PyTorch, forked at the first call.

    What the target holds by then is there as it is here, code compiled in :meth:`prepare` among it;
    what either changes afterwards is its own, but for tensors from :func:`shared_copy`. The process
    ends with the thread that forked it, however that ends.
    """

    # Ends of all pipes that are held here. A forked process inherits and closes them: a pipe whose
    # other end is held elsewhere too would not tell its process that this one has ended.
    _held: set[Connection] = set()

    def __init__(self, target: object, threads: int):
        super().__init__(target)
        self._threads = threads
        self._process: Any = None
        self._pipe: Any = None

    def prepare(self, method: str, *args: Any) -> Future:
        with _threads(self._threads):
            return super().submit(method, *args)

    def submit(self, method: str, *args: Any) -> _Answer:
        if self._process is None:
            self._start()
        try:
            self._pipe.send((method, args))
        except OSError as error:
            raise _ended(self._process) from error
        return _Answer(self._process, self._pipe)

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._held.add(self._pipe)
        self._process = context.Process(target=self._serve, args=(theirs,), daemon=True)
        with warnings.catch_warnings():
            # From Python 3.12 on a fork beside other threads warns. The child computes in one
            # thread and takes no lock that theirs might hold.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")
            self._process.start()
        theirs.close()

    def _serve(self, pipe: Connection) -> None:
        _die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
        for held in self._held:
            held.close()
        _limit_threads(self._threads)
        while True:
            try:
                method, args = pipe.recv()
            except EOFError:
                return
            try:
                answer = (True, getattr(self._target, method)(*args))
            except Exception as error:
                answer = (False, error)
            try:
                pipe.send(answer)
            except BrokenPipeError:
                return
            except Exception:  # an error that cannot be pickled, such as one of a local class
                pipe.send((False, LossKernelError(f"{type(answer[1]).__name__}: {answer[1]}")))

    def close(self) -> None:
        if self._process is None:
            return
        self._held.discard(self._pipe)
        self._pipe.close()
        self._process.kill()  # whatever it is at, nobody waits for it
        self._process.join()


class _Answer:
    def __init__(self, process, pipe: Connection):
        self._process, self._pipe = process, pipe

    def result(self) -> Any:
        try:
            succeeded, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise _ended(self._process) from error
        if succeeded:
            return value
        raise value


def _ended(process) -> LossKernelError:
    process.join(1)
    return LossKernelError(
        f"sampling: a worker's process ended (exit status {process.exitcode}), perhaps for want of "
        "memory; use workers=1 to sample in this process"
    )


def _die_with_parent() -> None:
    """Have the system kill this process with its parent, even one that is killed itself.

    Else it would end its draw first, and hold open what it inherited, such as the lock of a journal
    that the user goes on with.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != multiprocessing.parent_process().pid:  # it was quicker
        os._exit(1)


def can_fork() -> bool:
    """Whether a forked process can compute gradients with PyTorch.

    Not where there is an accelerator: PyTorch's threads for it do not survive a fork, even if only
    the CPU is used. Not in a process that may have no children.
    """
    return (
        sys.platform == "linux"
        and not torch.accelerator.is_available()
        and not multiprocessing.current_process().daemon
    )


def shared_copy(tensor: Tensor) -> Tensor:
    """A copy on the CPU that this process and those forked later read and write alike."""
    tensor = tensor.contiguous()
    memory = mmap.mmap(-1, max(1, tensor.numel() * tensor.element_size()))
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape)
    return copy.copy_(tensor)


def _limit_threads(count: int) -> None:
    """Let PyTorch compute in ``count`` threads when called from this one.

    The number is kept by thread, but a thread takes over the process's latest when it first asks
    for it: so it asks at once.
    """
    torch.set_num_threads(count)
    torch.get_num_threads()


@contextmanager
def _threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
