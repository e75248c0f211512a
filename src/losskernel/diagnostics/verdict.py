"""A verdict on a finished run: can its kernel be trusted, and if not, what to change."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from losskernel.diagnostics.convergence import Convergence, convergence, copies
from losskernel.diagnostics.localization import RELAXATIONS, Localization, localization
from losskernel.kernel.alignment import pair_correlation
from losskernel.kernel.noise import noise_floor
from losskernel.sampling.probe import FreeChain, Probe
from losskernel.trace import LossTrace

LEVELS = ("ok", "unknown", "warning", "bad")
MOST_INPUTS = 500  # evenly spaced ones, whose R-hat and sample size are computed


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
        localization: named and effective gamma; None where the trace does not tell.
        convergence: effective sample size and R-hat of the inputs looked at, and the drift; None of
            independent draws, which have no use for them.
        floor: :func:`losskernel.kernel.noise.noise_floor`.
        spread: standard deviation of R over pairs of inputs.
    """

    findings: tuple[Finding, ...]
    localization: Localization | None
    convergence: Convergence | None
    floor: float
    spread: float

    @property
    def level(self) -> str:
        """The worst level of all findings."""
        return max((finding.level for finding in self.findings), key=LEVELS.index)


def verdict(trace: LossTrace, guessing: float | None = None) -> Verdict:
    """Judge a trace by what it tells.

    ============== ======================================== =========================== ===========
    topic          ok                                       warning                     bad
    ============== ======================================== =========================== ===========
    chains         none diverged                            some diverged               two the same
    localization   effective gamma within a tenth, 20       within a factor of 2        beyond
                   relaxations
    rise           to 1/4 of the way to guessing            to 1/2                      beyond
    drift          within 3 standard errors                 beyond                      and beyond
                                                                                        a quarter of
                                                                                        the rise
    R-hat          median <= 1.05, 95 % of inputs <= 1.1    beyond                      median > 1.1
    sample size    median >= 400                            >= 100                      < 100
    step size      eps (gamma + n_beta curvature) <= 1      <= 2                        > 2
    minibatches    noise in the span <= 0.25                <= 1                        > 1
    noise floor    sd of R >= 2 floors                      >= 1.2 floors               < 1.2 floors
    rounding       <= 1 % of the variance of a loss         <= 5 %                      beyond
    ============== ======================================== =========================== ===========

    Of independent draws there is no drift, no R-hat, no step size and no minibatch, and the sample
    size is their number. ``unknown`` is what the trace cannot tell: too few draws, no loss that
    varies, no settings, or what earlier versions did not measure. The rise is that of the mean loss
    over the one at the trained weights; where the loss of guessing is not known, it is ok up to
    that loss itself, and bad from a hundred times it. 400 is 100 for each of four chains (Vehtari
    et al. 2021).

    Args:
        trace: of the healthy chains.
        guessing: mean loss of guessing, in the unit of the loss, for a loss of your own; traces of
            the default loss know it.

    Raises:
        TraceError: every chain diverged, or there is a single draw or input.
    """
    losses, told = trace.losses, trace.attributes
    floor, spread = noise_floor(losses), pair_correlation(losses)[1]
    initial, mean = (float(x.mean(dtype=float)) for x in (trace.initial_loss, losses))
    probe = Probe.read(told["probe"]) if "probe" in told else None
    reached = None
    if probe is not None and (probe.direct or "steps_per_draw" in told):
        reached = localization(trace)
    draws, direct = losses.shape[0] * losses.shape[1], probe is not None and probe.direct
    checks = None if direct else convergence(losses, MOST_INPUTS)
    findings = [
        _chains(trace),
        _localization(reached),
        _rise(initial, mean, told.get("guessing_loss", guessing)),
    ]
    if direct:
        findings.append(_draws(draws))
    else:
        findings += [
            _drift(checks, mean - initial),
            _rhat(checks.rhat, len(losses)),
            _sample_size(checks.ess, draws),
            _step_size(probe, told.get("curvature")),
            _minibatches(probe, told),
        ]
    findings += [_noise_floor(floor, spread, draws), _rounding(trace, probe)]
    return Verdict(tuple(findings), reached, checks, floor, spread)


def _graded(value: float, ok: float, warning: float) -> str:
    """Level of a value of which less is better."""
    return "ok" if value <= ok else "warning" if value <= warning else "bad"


def _chains(trace: LossTrace) -> Finding:
    diverged, names = trace.diverged, trace.dataset["chain"].values[~trace.diverged]
    if pairs := copies(trace.losses):
        first, second = (names[place] for place in pairs[0])
        return Finding(
            "chains",
            "bad",
            f"chains {first} and {second} (of {len(pairs)} such pairs) move alike and are no two "
            "samples: give each its own number or seed, and see that model and loss draw no random "
            "numbers of their own",
        )
    if not diverged.any():
        return Finding("chains", "ok", "no chain diverged")
    return Finding(
        "chains",
        "warning",
        f"{diverged.sum()} of {len(diverged)} chains diverged and are left out, which favors calm "
        "chains: halve the step size",
    )


def _localization(found: Localization | None) -> Finding:
    topic = "localization"
    if found is None or found.gamma == 0:
        why = "gamma = 0" if found else "the trace does not tell its probe and steps"
        return Finding(topic, "unknown", f"no gamma to compare what was reached with: {why}")
    if found.relaxation == 0:
        said = f"independent draws of the Gaussian at gamma = {found.gamma:.3g}, which they reach"
        return Finding(topic, "ok", said)
    said = (
        f"effective gamma {found.effective:.3g} (in theory, of a weight that the loss does not "
        f"feel), named {found.gamma:.3g}; a chain's draws span {found.length:.2g} relaxations of "
        f"{found.relaxation:.3g} steps"
    )
    if found.agrees and found.length >= RELAXATIONS:
        return Finding(topic, "ok", said)
    remedies = []
    if found.length < RELAXATIONS:
        remedies.append(f"record {math.ceil(RELAXATIONS * found.relaxation)} steps a chain")
    if found.effective < found.gamma:
        remedies.append("lower step_size to 0.3 / gamma")
    level = "warning" if 0.5 <= found.effective / found.gamma <= 2 else "bad"
    return Finding(topic, level, f"{said}: {' and '.join(remedies)}, or name the gamma reached")


def _rise(initial: float, mean: float, guessing: float | None) -> Finding:
    said = f"the mean loss is {mean:.3g}, {mean - initial:+.2g} against the trained weights"
    if guessing is None:
        times = (mean - initial) / abs(initial) if initial else math.inf
        level = "ok" if mean <= initial else _graded(times, 1, 100)
        said += f" ({times:.2g} times theirs; the loss of guessing is not known)"
    elif initial >= guessing:
        return Finding(
            "rise",
            "warning",
            f"{said}; there it is {initial:.3g} already, no better than guessing ({guessing:.3g})",
        )
    else:
        share = (mean - initial) / (guessing - initial)
        level = _graded(share, 0.25, 0.5)
        said += f", {share:.0%} of the way to guessing ({guessing:.3g})"
    remedy = "" if level == "ok" else ": these weights know little of the task; raise gamma"
    return Finding("rise", level, said + remedy)


def _draws(draws: int) -> Finding:
    said = f"{draws} independent draws"
    level = "ok" if draws >= 400 else "warning" if draws >= 100 else "bad"
    return Finding("sample size", level, said + ("" if level == "ok" else ": make 400 or more"))


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


def _step_size(probe: Probe | FreeChain | None, curvature: float | None) -> Finding:
    topic = "step size"
    if probe is None:
        return Finding(topic, "unknown", "the trace does not tell gamma and step_size")
    pull = probe.step_size * probe.gamma
    if curvature is None and probe.n_beta > 0:
        level = max("unknown", _graded(pull, 1, 2), key=LEVELS.index)
        said = f"eps gamma = {pull:.2g}; the curvature of the loss is not in the trace"
        return Finding(topic, level, f"{said} (of an earlier version, or of a short run)")
    total = pull + probe.step_size * probe.n_beta * (curvature or 0)
    level = _graded(total, 1, 2)
    said = f"eps (gamma + n_beta curvature) = {total:.2g}"
    if total < 4:
        said += f" widens the steepest direction's variance by {1 / (1 - total / 4) - 1:.0%}"
    return Finding(topic, level, said + ("" if level == "ok" else ": lower step_size"))


def _minibatches(probe: Probe | FreeChain | None, told: dict) -> Finding:
    topic = "minibatches"
    if probe is not None and probe.n_beta == 0:
        return Finding(topic, "ok", "no gradient and no minibatch noise (n_beta = 0)")
    span, mean = (told.get(f"minibatch_noise_{name}") for name in ("in_span", "per_direction"))
    if span is None:
        sentence = (
            "minibatch noise is not in the trace (of an earlier version, or of a short run): "
            "sample more steps"
        )
        return Finding(topic, "unknown", sentence)
    level = _graded(span, 0.25, 1)
    said = (
        f"minibatch noise is {span:.2g} of the injected noise where losses change, "
        f"{mean:.1g} on average"
    )
    if level == "ok":
        return Finding(topic, level, said)
    factor = span / 0.25
    remedy = f": divide step_size or multiply batch_size by {math.ceil(factor)}"
    return Finding(topic, level, f"{said}, so the chain is hotter than n_beta says{remedy}")


def _rounding(trace: LossTrace, probe: Probe | FreeChain | None) -> Finding:
    """Errors of rounding against what a loss varies by: of the losses, and of the weights."""
    topic, losses = "rounding", trace.losses
    variance = losses.var(axis=(0, 1), dtype=float)
    if not variance.any():
        sentence = "no recorded loss varies: raise the displacement (a smaller gamma)"
        return Finding(topic, "bad", sentence)
    # The distance to the next float32 number is the least error that a recorded loss has.
    error = np.spacing(np.abs(losses).mean(axis=(0, 1), dtype=np.float32)) / 12**0.5
    measured = np.full(len(variance), np.nan)
    if "rounding" in trace.dataset:
        measured = trace.dataset["rounding"].values
    known = np.isfinite(measured).any()
    error = np.where(np.isfinite(measured), np.maximum(measured, error), error)
    looked_at = np.isfinite(measured) if known else variance > 0
    # An error of so many times the deviation makes up this share of the variance found.
    share = float(
        np.median(np.minimum(1, error[looked_at] ** 2 / np.maximum(variance, 1e-300)[looked_at]))
    )
    if probe is not None and "weight_rounding" in trace.attributes:
        step = 1 / probe.gamma if probe.direct else probe.step_size  # a chain rounds at every step
        share = max(share, trace.attributes["weight_rounding"] / step)
    level = _graded(share, 0.01, 0.05)
    if level == "ok" and not known:
        level = "unknown"
    said = f"rounding makes {share:.1g} of the variance of a loss (median input)"
    if not known:
        said += " or more: that of the evaluation was not measured"
    remedy = (
        ""
        if level in ("ok", "unknown")
        else (
            ": lower gamma, subtract what the loss has in addition, or take the exact limit "
            "(losskernel limit)"
        )
    )
    return Finding(topic, level, said + remedy)


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
