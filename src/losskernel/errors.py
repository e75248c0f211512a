"""The errors that users can act on: one line each, naming what is wrong and the remedy."""


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
