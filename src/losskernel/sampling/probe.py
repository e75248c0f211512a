r"""The probe distribution, and the step of the chain that samples it where it cannot be drawn.

The probe distribution is the tempered posterior, localized at the trained weights ``w*``
(Adam, Furman and Hoogland 2025, arXiv:2509.26537, Section 2; Lau et al. 2023, arXiv:2308.12108)::

    p(w | D)  \propto  exp(-n_beta * L_n(w)) * N(w | w*, I / gamma)

with ``L_n`` the mean loss over the data. With ``n_beta = 0`` it is the Gaussian
``N(w*, I / gamma)``, which is drawn directly. Else stochastic gradient Langevin dynamics (Welling
and Teh 2011) samples it with minibatch gradients::

    w  <-  w - (eps / 2) * (n_beta * grad L_batch(w) + gamma * (w - w*)) + N(0, eps * I)
"""

from __future__ import annotations

import json
import math
import operator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from losskernel.errors import ConfigError

if TYPE_CHECKING:  # who reads a probe from a file does without torch
    from torch import Tensor


def whole(least: int, **values: int) -> list[int]:
    """Python integers of what may be NumPy's, which JSON does not take.

    Raises:
        ConfigError: naming the first that is no whole number or below ``least``.
    """
    for name, value in values.items():
        if not hasattr(value, "__index__") or isinstance(value, bool):
            raise ConfigError(f"{name} = {value!r} is not a whole number")
        if value < least:
            raise ConfigError(f"{name} = {value} must be at least {least}")
        if value >= 2**63:
            raise ConfigError(f"{name} = {value} must be below 2**63")
    return [operator.index(value) for value in values.values()]


def nonnegative(name: str, value: float) -> float:
    """A Python number of what may be NumPy's, finite and not negative.

    Raises:
        ConfigError: it is not that.
    """
    value = value.item() if hasattr(value, "item") and np.size(value) == 1 else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} = {value!r} is not a number")
    if not math.isfinite(value) or value < 0:
        raise ConfigError(f"{name} = {value} must be a finite number >= 0")
    return value


@dataclass(frozen=True)
class Probe:
    """Settings of the probe distribution and, with ``n_beta > 0``, of its sampler.

    ``Probe(gamma=1e6)`` is the Gaussian ``N(w*, I / gamma)``, drawn independently, without chains.

    Args:
        n_beta: inverse temperature times the number of data points; weight of the mean loss.
            0 leaves the Gaussian ``N(w*, I / gamma)``.
        gamma: localization, in 1 / weight². Larger keeps the weights closer to ``w*``; the standard
            deviation of a weight that the loss does not feel is ``gamma ** -0.5``.
        step_size: the step size eps of SGLD, in weight². For ``n_beta > 0`` alone.

    Raises:
        ConfigError: a value is negative or not finite; ``n_beta = 0`` with a step size or without
            localization; ``n_beta > 0`` with a step size that is missing or 0, or with
            ``eps * gamma >= 4``, where the chain is unstable even without a gradient.
    """

    n_beta: float = 0.0
    gamma: float = math.nan
    step_size: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.settings.items():
            object.__setattr__(self, name, nonnegative(f"probe: {name}", value))
        if self.direct:
            if self.step_size is not None:
                raise ConfigError(
                    f"probe: step_size = {self.step_size:g} has no meaning with n_beta = 0: the "
                    "Gaussian N(w*, I / gamma) is drawn directly, without steps; leave it out"
                )
            if self.gamma == 0:
                raise ConfigError("probe: gamma = 0 with n_beta = 0 is no distribution; raise it")
            return
        _check_step(self.gamma, self.step_size)

    @classmethod
    def read(cls, settings: str | dict) -> Probe | FreeChain:
        """The probe of a trace or journal, from its attribute ``probe`` or what that holds.

        Traces from before the Gaussian was drawn directly have a step size with ``n_beta = 0``:
        they were sampled by a chain, and are a :class:`FreeChain`.
        """
        if isinstance(settings, str):
            settings = json.loads(settings)
        if settings.get("n_beta", 0) == 0 and settings.get("step_size") is not None:
            return FreeChain(settings["gamma"], settings["step_size"])
        return cls(**settings)

    @property
    def settings(self) -> dict[str, float]:
        """The values by name, without a step size where there is none."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def direct(self) -> bool:
        """Whether it is drawn directly: the Gaussian."""
        return self.n_beta == 0

    @property
    def free(self) -> Probe | FreeChain:
        """The law of a weight that the loss does not feel; the probe itself if it is Gaussian."""
        return self if self.direct else FreeChain(self.gamma, self.step_size)

    @property
    def localization_variance(self) -> float:
        """Variance of a weight that the loss does not feel, in weight²: see :attr:`free`."""
        return 1 / self.gamma if self.direct else self.free.localization_variance


@dataclass(frozen=True)
class FreeChain:
    """A chain of SGLD that does not feel the loss.

    How a trace of an earlier version with ``n_beta = 0`` was sampled.

    Args:
        gamma, step_size: as for :class:`Probe`.
    """

    gamma: float
    step_size: float
    n_beta = 0.0
    direct = False

    def __post_init__(self) -> None:
        _check_step(self.gamma, self.step_size)

    @property
    def settings(self) -> dict[str, float]:
        """The values by name, as :meth:`Probe.read` takes them."""
        return {"n_beta": 0.0, **asdict(self)}

    @property
    def free(self) -> FreeChain:
        """Itself."""
        return self

    @property
    def localization_variance(self) -> float:
        r"""Stationary variance of a weight, in weight².

        The discretized chain ``x <- (1 - eps*gamma/2) x + N(0, eps)`` has variance
        ``1 / (gamma * (1 - eps*gamma/4))``: that of the Gaussian, ``1/gamma``, times a step-size
        bias. Infinite for ``gamma = 0``, where the chain is a random walk.
        """
        if self.gamma == 0:
            return math.inf
        return 1 / (self.gamma * (1 - self.step_size * self.gamma / 4))

    def run_variance(self, draws: int, first: int, spacing: int = 1) -> float:
        r"""Expected sample variance of a weight over the draws of one chain, in weight².

        The chain starts at the trained weights: with ``rho = 1 - eps gamma / 2`` and V the
        stationary variance, ``Cov(x_s, x_t) = V (rho^|t-s| - rho^(s+t))``, for ``gamma = 0``
        ``eps min(s, t)``. The sample variance is ``(tr C - sum C / n) / (n - 1)`` in expectation.
        A chain that is short against its relaxation has spread less than the probe distribution.

        Args:
            draws: their number n, at least 2.
            first: steps before the first.
            spacing: steps from one to the next.
        """
        number = np.arange(draws)
        steps = first + spacing * number.astype(float)
        rho = 1 - self.step_size * self.gamma / 2
        if rho == 1:
            trace = self.step_size * steps.sum()
            total = self.step_size * steps @ (2 * (draws - number) - 1)
        else:
            past, variance = np.power(rho, steps), self.localization_variance
            pairs = 2 * (draws - number) @ np.power(rho**spacing, number) - draws  # by distance
            trace = variance * (1 - past**2).sum()
            total = variance * (pairs - past.sum() ** 2)
        return float((trace - total / draws) / (draws - 1))


def _check_step(gamma: float, step_size: float | None) -> None:
    if step_size is None:
        raise ConfigError(
            "probe: n_beta > 0 is sampled by steps of SGLD: give step_size, or leave n_beta out "
            "for the Gaussian N(w*, I / gamma); losskernel.propose_probe proposes one"
        )
    if step_size == 0:
        raise ConfigError("probe: step_size = 0 never moves the weights; choose it above 0")
    if step_size * gamma >= 4:
        raise ConfigError(
            f"probe: step_size * gamma = {step_size * gamma:g} makes the chain "
            "unstable; keep it below 4 (below 0.5 for a small bias)"
        )


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
