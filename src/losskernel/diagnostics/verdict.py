"""A verdict on a finished run: can its kernel be trusted, and if not, what to change."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from losskernel.diagnostics.convergence import (
    Convergence,
    convergence,
    noise_floor,
    pair_correlation,
)
from losskernel.trace import LossTrace

if TYPE_CHECKING:  # it needs torch, which takes seconds to load
    from losskernel.sampling.gradient_noise import GradientNoise

LEVELS = ("ok", "unknown", "warning", "bad")


@dataclass(frozen=True)
class Finding:
    """One sentence about one topic, with a level of :data:`LEVELS`."""

    topic: str
    level: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.level}: {self.sentence}"


@dataclass(frozen=True)
class Verdict:
    """Findings, and the numbers that they are drawn from.

    Attributes:
        findings: one a topic, in the order of :func:`verdict`.
        convergence: effective sample size and R-hat of the inputs looked at, and the drift.
        floor: :func:`losskernel.diagnostics.convergence.noise_floor`.
        spread: standard deviation of R over pairs of inputs.
    """

    findings: tuple[Finding, ...]
    convergence: Convergence
    floor: float
    spread: float

    @property
    def level(self) -> str:
        """The worst level of all findings."""
        return max((finding.level for finding in self.findings), key=LEVELS.index)


def verdict(
    trace: LossTrace, noise: GradientNoise | None = None, most_inputs: int = 500
) -> Verdict:
    """Judge a trace by what is known from it, and by its minibatch noise if that was measured.

    ============== ======================================== =========================== ===========
    topic          ok                                       warning                     bad
    ============== ======================================== =========================== ===========
    chains         none diverged                            some diverged
    drift          within 3 standard errors                 beyond                      and beyond
                                                                                        a quarter of
                                                                                        the rise
    R-hat          median <= 1.05, 95 % of inputs <= 1.1    beyond                      median > 1.1
    sample size    median >= 400                            >= 100                      < 100
    step size      eps gamma <= 0.5                         <= 2                        > 2
    minibatches    noise in the span <= 0.25                <= 1                        > 1
    noise floor    sd of R >= 2 floors                      >= 1.2 floors               < 1.2 floors
    ============== ======================================== =========================== ===========

    ``unknown`` is what the trace cannot tell: too few draws, no loss that varies, no settings, or
    minibatch noise that was not given. The rise is that of the mean loss over the one at the
    trained weights. 400 is 100 for each of four chains (Vehtari et al. 2021).

    Args:
        trace: of the healthy chains.
        noise: from :func:`losskernel.sampling.gradient_noise.gradient_noise`.
        most_inputs: inputs, evenly spaced, whose R-hat and sample size are computed.

    Raises:
        TraceError: every chain diverged, or there is a single draw or input.
    """
    losses = trace.losses
    checks = convergence(losses, most_inputs)
    floor, spread = noise_floor(losses), pair_correlation(losses)[1]
    rise = float(losses.mean(dtype=float) - trace.initial_loss.mean(dtype=float))
    settings = json.loads(trace.attributes.get("probe", "{}"))
    draws = losses.shape[0] * losses.shape[1]
    findings = (
        _chains(trace.diverged),
        _drift(checks, rise),
        _rhat(checks.rhat, len(losses)),
        _sample_size(checks.ess, draws),
        _step_size(settings),
        _minibatches(settings, noise),
        _noise_floor(floor, spread, draws),
    )
    return Verdict(findings, checks, floor, spread)


def _graded(value: float, ok: float, warning: float) -> str:
    """Level of a value of which less is better."""
    return "ok" if value <= ok else "warning" if value <= warning else "bad"


def _chains(diverged: np.ndarray) -> Finding:
    if not diverged.any():
        return Finding("chains", "ok", "no chain diverged")
    return Finding(
        "chains",
        "warning",
        f"{diverged.sum()} of {len(diverged)} chains diverged and are left out, which favors calm "
        "chains: halve the step size",
    )


def _drift(checks: Convergence, rise: float) -> Finding:
    drift, error = checks.drift, checks.drift_error
    if not math.isfinite(error):
        return Finding("drift", "unknown", "too few draws to tell a drift: sample more")
    said = f"the mean loss moves by {drift:+.2g} ± {error:.1g} between the halves of the run"
    if abs(drift) <= 3 * error:
        return Finding("drift", "ok", f"{said}: no drift")
    large = abs(drift) > abs(rise) / 4
    remedy = "the chains have not settled: raise burn_in, or leave out the first draws"
    return Finding("drift", "bad" if large else "warning", f"{said}: {remedy}")


def _rhat(rhat: np.ndarray, chains: int) -> Finding:
    rhat = rhat[~np.isnan(rhat)]
    if len(rhat) == 0:
        sentence = "no R-hat: no loss varies, or too few draws (4 a chain, 8 of a single one)"
        return Finding("R-hat", "unknown", sentence)
    median, above = np.median(rhat), (rhat > 1.1).mean()
    compared = "chains" if chains > 1 else "parts of the only chain"
    said = f"split R-hat {median:.3f} (median input; {above:.0%} of inputs above 1.1)"
    if median <= 1.05 and above <= 0.05:
        return Finding("R-hat", "ok", f"{said}: the {compared} agree")
    return Finding(
        "R-hat",
        "bad" if median > 1.1 else "warning",
        f"{said}: the {compared} sample different places; raise burn_in and draws, or center by "
        "chain and raise gamma if they stay apart",
    )


def _sample_size(ess: np.ndarray, draws: int) -> Finding:
    ess = ess[~np.isnan(ess)]
    if len(ess) == 0:
        sentence = "no sample size: no loss varies, or fewer than 4 draws a chain"
        return Finding("sample size", "unknown", sentence)
    median = float(np.median(ess))
    said = f"effective sample size {median:.0f} of {draws} draws (median input)"
    if median >= 400:
        return Finding("sample size", "ok", said)
    every = draws / median
    remedy = f"sample {math.ceil(400 / median)} times as many draws"
    if every > 2:
        remedy += f", or raise steps_per_draw {math.ceil(every)} times where evaluation is dear"
    return Finding("sample size", "warning" if median >= 100 else "bad", f"{said}: {remedy}")


def _step_size(settings: dict) -> Finding:
    if not {"step_size", "gamma"} <= settings.keys():
        return Finding("step size", "unknown", "the trace does not tell gamma and step_size")
    product = settings["step_size"] * settings["gamma"]
    level = _graded(product, 0.5, 2)
    bias = 1 / (1 - product / 4) - 1
    said = f"eps gamma = {product:.2g} widens a free weight's variance by {bias:.0%}"
    return Finding("step size", level, said + ("" if level == "ok" else ": lower step_size"))


def _minibatches(settings: dict, noise: GradientNoise | None) -> Finding:
    topic = "minibatches"
    if settings.get("n_beta") == 0:
        return Finding(topic, "ok", "no gradient and no minibatch noise (n_beta = 0)")
    if noise is None:
        sentence = (
            "minibatch noise is not in the trace: measure it with "
            "losskernel.sampling.gradient_noise.gradient_noise(model, data, probe, batch_size)"
        )
        return Finding(topic, "unknown", sentence)
    level = _graded(noise.in_span, 0.25, 1)
    said = (
        f"minibatch noise is {noise.in_span:.2g} of the injected noise where losses change, "
        f"{noise.per_direction:.1g} on average"
    )
    if level == "ok":
        return Finding(topic, level, said)
    factor = noise.in_span / 0.25
    remedy = f": divide step_size or multiply batch_size by {math.ceil(factor)}"
    return Finding(topic, level, f"{said}, so the chain is hotter than n_beta says{remedy}")


def _noise_floor(floor: float, spread: float, draws: int) -> Finding:
    topic = "noise floor"
    if floor == 0:
        return Finding(topic, "unknown", "no noise floor: no loss varies")
    ratio = spread / floor
    said = f"R varies by {spread:.3f} over pairs, {ratio:.1f} times its noise floor {floor:.3f}"
    if ratio >= 2:
        return Finding(topic, "ok", f"{said}: correlations beyond {3 * floor:.2f} are resolved")
    signal = spread**2 - floor**2
    level = "warning" if ratio >= 1.2 else "bad"
    if level == "bad":
        remedy = "the kernel is mostly sampling noise; sample several times as many draws"
    else:  # floor^2 falls as 1 / draws until spread = 2 floor, where signal = 3 floor^2
        factor = 3 * floor**2 / signal
        remedy = f"single pairs are uncertain; about {math.ceil(factor * draws)} draws give 2"
    return Finding(topic, level, f"{said}: {remedy}")
