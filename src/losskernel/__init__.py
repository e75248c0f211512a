"""The loss kernel: covariances of per-input losses under low-loss perturbations of the weights.

Three calls: :func:`sample_losses` gives a :class:`LossTrace`; :func:`correlation` and
:func:`self_covariance` give the kernel; :func:`nearest_neighbors` what is next to what.
"""

from losskernel.kernel import correlation, covariance, nearest_neighbors, self_covariance
from losskernel.probe import Probe, sgld_step
from losskernel.sampling import sample_losses
from losskernel.trace import LossTrace

__all__ = [
    "LossTrace",
    "Probe",
    "correlation",
    "covariance",
    "nearest_neighbors",
    "sample_losses",
    "self_covariance",
    "sgld_step",
]
