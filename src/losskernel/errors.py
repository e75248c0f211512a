"""The errors that users can act on: one line each, naming what is wrong and the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager


class LossKernelError(Exception):
    """Base class. The command line prints its message as one line and exits with status 1."""


class DataError(LossKernelError):
    """An image folder, an archive, a WordNet corpus or a label is not what was expected."""


class WeightsError(LossKernelError):
    """Weights cannot be read, or do not fit the model."""


class TraceError(LossKernelError):
    """A trace or a journal cannot be read, or does not fit what is asked of it."""


class ConfigError(LossKernelError, ValueError):
    """A setting is unknown, of the wrong type, or out of range."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports of packages that not every user needs: without one, a line names its extra.

    Args:
        extra: of those in ``pyproject.toml``.

    Raises:
        LossKernelError: an import failed.
    """
    try:
        yield
    except ImportError as error:
        raise LossKernelError(f"{error}; pip install 'losskernel[{extra}]'") from error
