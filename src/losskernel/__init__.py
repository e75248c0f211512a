"""The loss kernel: covariances of per-input losses under low-loss perturbations of the weights.

Three calls: :func:`sample_losses` gives a :class:`LossTrace`; :func:`correlation` and
:func:`self_covariance` give the kernel; :func:`nearest_neighbors` what is next to what.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from losskernel.gradients.covariance import GradientCovariance, gradient_covariance
    from losskernel.kernel.covariance import correlation, covariance, self_covariance
    from losskernel.kernel.neighbors import nearest_neighbors
    from losskernel.sampling.pilot import propose_probe
    from losskernel.sampling.probe import Probe, sgld_step
    from losskernel.sampling.sample import sample_losses
    from losskernel.trace import LossTrace

__all__ = [
    "GradientCovariance",
    "LossTrace",
    "Probe",
    "correlation",
    "covariance",
    "gradient_covariance",
    "nearest_neighbors",
    "propose_probe",
    "sample_losses",
    "self_covariance",
    "sgld_step",
]

_MODULES = {
    "gradients.covariance": ("GradientCovariance", "gradient_covariance"),
    "kernel.covariance": ("correlation", "covariance", "self_covariance"),
    "kernel.neighbors": ("nearest_neighbors",),
    "sampling.pilot": ("propose_probe",),
    "sampling.probe": ("Probe", "sgld_step"),
    "sampling.sample": ("sample_losses",),
    "trace": ("LossTrace",),
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    """Import a public name when it is first used: torch takes seconds, a figure does without it."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"losskernel.{module}"), name)
    if name == "__version__":
        return version("losskernel")
    raise AttributeError(f"module 'losskernel' has no attribute '{name}'")
