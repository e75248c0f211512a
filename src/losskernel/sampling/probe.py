r"""The probe distribution and the step of the chain that samples it.

The probe distribution is the tempered posterior, localized at the trained weights ``w*``
(Adam, Furman and Hoogland 2025, arXiv:2509.26537, Section 2; Lau et al. 2023, arXiv:2308.12108)::

    p(w | D)  \propto  exp(-n_beta * L_n(w)) * N(w | w*, I / gamma)

with ``L_n`` the mean loss over the data. Stochastic gradient Langevin dynamics (Welling and Teh
2011) samples it with minibatch gradients::

    w  <-  w - (eps / 2) * (n_beta * grad L_batch(w) + gamma * (w - w*)) + N(0, eps * I)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from losskernel.errors import ConfigError

if TYPE_CHECKING:  # who reads a probe from a file does without torch
    from torch import Tensor


@dataclass(frozen=True)
class Probe:
    """Settings of the probe distribution and of its sampler.

    Args:
        n_beta: inverse temperature times the number of data points; weight of the mean loss.
            0 leaves the Gaussian ``N(w*, I / gamma)``.
        gamma: localization, in 1 / weight². Larger keeps the weights closer to ``w*``; the standard
            deviation of a weight that the loss does not feel is ``gamma ** -0.5``.
        step_size: the step size eps of SGLD, in weight².

    Raises:
        ConfigError: a value is negative or not finite, the step size is 0, or
            ``eps * gamma >= 4``, where the chain is unstable even without a gradient.
    """

    n_beta: float
    gamma: float
    step_size: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"probe: {name} = {value} must be a finite number >= 0")
        if self.step_size == 0:
            raise ConfigError("probe: step_size = 0 never moves the weights; choose it above 0")
        if self.step_size * self.gamma >= 4:
            raise ConfigError(
                f"probe: step_size * gamma = {self.step_size * self.gamma:g} makes the chain "
                "unstable; keep it below 4 (below 0.5 for a small bias)"
            )

    @property
    def localization_variance(self) -> float:
        r"""Stationary variance of a weight that the loss does not feel, in weight².

        The discretized chain ``x <- (1 - eps*gamma/2) x + N(0, eps)`` has variance
        ``1 / (gamma * (1 - eps*gamma/4))``: that of the probe distribution, ``1/gamma``, times a
        step-size bias. Infinite for ``gamma = 0``, where the chain is a random walk.
        """
        if self.gamma == 0:
            return math.inf
        return 1 / (self.gamma * (1 - self.step_size * self.gamma / 4))


def sgld_step(weights: Tensor, center: Tensor, gradient: Tensor, noise: Tensor, probe: Probe):
    """One SGLD step, a pure function of its arguments.

    Args:
        weights: current weights ``w``; any shape, for example ``(chains, parameters)``.
        center: trained weights ``w*``; broadcastable to ``weights``.
        gradient: gradient of the *mean* minibatch loss at ``weights``; same shape.
        noise: standard normal draws; same shape.
        probe: inverse temperature, localization and step size.

    Returns:
        ``w - (eps/2) (n_beta * gradient + gamma (w - w*)) + sqrt(eps) * noise``, a new tensor.
    """
    drift = probe.n_beta * gradient + probe.gamma * (weights - center)
    return weights - (probe.step_size / 2) * drift + math.sqrt(probe.step_size) * noise
