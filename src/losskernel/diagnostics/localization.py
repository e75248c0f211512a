"""How far from the trained weights a run really got, beside the localization that it names.

A chain of SGLD forgets where it was in ``2 / (eps gamma)`` steps. One that is short against this
has spread as far as its step size and length allow, whatever gamma it names; one with a large step
spreads further. What its draws tell is told of the *effective* gamma: one over the variance that a
weight which the loss does not feel has, in expectation, over the draws of one chain
(:meth:`losskernel.sampling.probe.FreeChain.run_variance`). Independent draws have no such trouble.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from losskernel.errors import TraceError
from losskernel.sampling.probe import FreeChain, Probe
from losskernel.trace import LossTrace

AGREEMENT = 0.1  # relative, of named and effective gamma, up to which a setting counts as tested
RELAXATIONS = 20  # least length of a run: its own mean then takes a tenth of the variance


@dataclass(frozen=True)
class Localization:
    """Named and effective localization of a trace.

    Attributes:
        gamma: as named, in 1 / weight².
        effective: one over the variance that a free weight has over the draws of a chain.
        relaxation: steps in which a chain forgets where it was; 0 for independent draws, infinite
            for ``gamma = 0``.
        length: of the recorded run of a chain, in relaxations; infinite for independent draws.
    """

    gamma: float
    effective: float
    relaxation: float
    length: float

    @property
    def agrees(self) -> bool:
        """Whether named and effective gamma agree within a tenth."""
        return self.gamma > 0 and abs(self.effective / self.gamma - 1) <= AGREEMENT


def localization(trace: LossTrace) -> Localization:
    """Of a trace, from its probe, burn-in, steps a draw and the numbers of its draws.

    Draws that were left out at the start, ``trace.dataset.isel(draw=slice(100, None))``, count as
    burn-in.

    Raises:
        TraceError: the trace does not tell its probe, or a chain of it has a single draw.
    """
    told = trace.attributes
    if "probe" not in told:
        raise TraceError("the trace does not tell its probe: no localization is known")
    probe = Probe.read(told["probe"])
    if probe.direct:
        return Localization(probe.gamma, probe.gamma, 0.0, math.inf)
    free: FreeChain = probe.free
    numbers = trace.dataset["draw"].values
    if len(numbers) < 2:
        raise TraceError("a chain of a single draw has no spread: sample more draws")
    if "steps_per_draw" not in told:
        raise TraceError("the trace does not tell its steps a draw: no localization is known")
    steps = told["steps_per_draw"] * int(np.median(np.diff(numbers)))
    first = told["burn_in"] + told["steps_per_draw"] * (int(numbers[0]) + 1)
    pull = free.step_size * free.gamma
    return Localization(
        free.gamma,
        1 / free.run_variance(len(numbers), first, steps),
        2 / pull if pull else math.inf,
        len(numbers) * steps * pull / 2,
    )


def is_tested_at(trace: LossTrace, gamma: float) -> bool:
    """Whether a trace tells of the kernel at this gamma: named so, and reached within a tenth."""
    found = localization(trace)
    return found.agrees and math.isclose(found.gamma, gamma, rel_tol=1e-6)
