"""A short pilot that proposes localization and step size from a target rise of the mean loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from losskernel.errors import ConfigError
from losskernel.progress import bar
from losskernel.sampling.ambient import own_torch_settings
from losskernel.sampling.checks import check_data, check_losses
from losskernel.sampling.engines import LossPerInput, make_engine
from losskernel.sampling.inputs import Inputs
from losskernel.sampling.parameters import select_parameters
from losskernel.sampling.probe import Probe, nonnegative, whole
from losskernel.sampling.sample import Data, DivergenceError, cross_entropy, sample_losses
from losskernel.sampling.stability import curvature, noise_moments, perturbed
from losskernel.seeds import numpy_generator

# Bounds on the step size eps, each in units that do not depend on the model.
DRIFT = 0.3  # eps gamma: variance of a free weight 1/13 too large, half forgotten in 5 steps
CURVATURE = 1.0  # eps (gamma + n_beta lambda_max); the chain is unstable from 4 on
GRADIENT_NOISE = 0.25  # minibatch noise over injected noise in the span of the gradients

# Which estimator when; docs/estimators.md begins with the same lines.
ESTIMATORS = """\
Losses at independent draws, sample_losses(model, data, Probe(gamma=...)): where a draw of all \
inputs takes milliseconds and thousands can be made; the noise of R is 1/sqrt(draws).
Pairs of gradients, gradient_covariance(model, data, gamma=...): where a draw takes a second, or \
the losses are mostly linear in the displacement; tens of pairs, with errors in proportion to K.
Chains of SGLD, Probe(n_beta, gamma, step_size): where the tempered posterior itself is wanted; \
believe them from 20 relaxations on, at the gamma that losskernel trace summary calls effective."""

_TOLERANCE = 0.05  # relative, of the rise
_EVALUATIONS = 16  # of the rise, in one search
_RELAXATIONS = 3.0  # burn-in of a pilot chain, in times that a free weight takes to forget by e
_MOST_BURN_IN = 200


@dataclass(frozen=True)
class Pilot:
    """A proposed probe and what it was chosen by. Losses are in the unit of the loss, say nats.

    Attributes:
        probe: the proposal.
        initial_loss: mean loss at the trained weights, of the inputs of the pilot.
        target: rise of the mean loss that was asked for.
        rise: rise measured under the proposal.
        rise_error: its standard error, over perturbations or chains.
        linear_share: of the variance of the losses under ``N(w*, I / gamma)`` that part which
            changes its sign with the displacement: near 1 the kernel is near its linear limit.
        curvature: largest absolute eigenvalue of the Hessian of a minibatch's mean loss at
            perturbed weights, in loss / weight²; 0 for ``n_beta = 0``, where it is not needed.
        gradient_noise: expected variance that minibatches add to a step over the one injected, in
            the span of the gradients; see :func:`losskernel.sampling.stability.noise_moments`.
        found: what was found, in sentences.
    """

    probe: Probe
    initial_loss: float
    target: float
    rise: float
    rise_error: float
    linear_share: float
    curvature: float
    gradient_noise: float
    found: str

    @property
    def words(self) -> str:
        """What was found, and in three lines which estimator to use when."""
        return f"{self.found}\n{ESTIMATORS}"


@own_torch_settings()
def propose_probe(
    model: nn.Module,
    data: Data,
    n_beta: float = 0.0,
    rise: float | None = None,
    *,
    relative_rise: float = 0.1,
    loss: LossPerInput = cross_entropy,
    probe_data: Data | None = None,
    most_inputs: int = 512,
    directions: int = 4,
    chains: int = 4,
    batch_size: int = 256,
    eval_batch_size: int = 1000,
    parameters: str | Sequence[str] = "trainable",
    seed: int = 0,
    device: str | torch.device = "cpu",
    engine: str = "auto",
    progress: bool = True,
) -> Pilot:
    """Propose gamma and step size at which the mean loss rises by a given amount.

    First for ``n_beta = 0``: gamma from the mean loss under ``N(w*, I / gamma)``, by a search along
    log gamma with the same random directions, each with its opposite, at every gamma. For
    ``n_beta > 0`` the gradient holds the loss back, so that a smaller gamma gives the rise: the
    search goes on with short chains of the sampler itself, the same random numbers at every gamma.

    The step size is the largest with ``eps gamma <= 0.3``, at which effective and named gamma agree
    within a tenth, ``eps (gamma + n_beta lambda_max) <= 1`` and minibatch noise at most a quarter
    of the injected noise in the span of the gradients; the curvature lambda_max (eight power
    iterations, gradients differing by one standard deviation of the probe) and the noise are
    measured at perturbed weights.

    ::

        pilot = propose_probe(model, data, n_beta=100)
        print(pilot.words)
        trace = sample_losses(model, data, pilot.probe)

    Args:
        model, data, loss, probe_data, parameters, seed, device, engine: as for
            :func:`losskernel.sampling.sample.sample_losses`.
        batch_size, eval_batch_size: likewise.
        n_beta: inverse temperature of the probe.
        rise: target in units of the loss; if not given, ``relative_rise``.
        relative_rise: target as a share of the mean loss at the trained weights. Of little use
            where that loss vanishes: give ``rise`` then.
        most_inputs: probe inputs that the pilot evaluates, chosen at random.
        directions: Gaussian perturbations, each used with both signs, at least 2.
        chains: short chains, at least 2.
        progress: show a progress bar of the gammas that are tried.

    Raises:
        DataError: as for :func:`losskernel.sampling.sample.sample_losses`.
        ConfigError: the target is not above 0, a count is below 2, ``n_beta`` is out of range, or
            no gamma gives the rise.
    """
    directions, chains = whole(2, directions=directions, chains=chains)  # for a standard error
    most_inputs, batch_size, eval_batch_size = whole(
        1, most_inputs=most_inputs, batch_size=batch_size, eval_batch_size=eval_batch_size
    )
    rise = None if rise is None else nonnegative("rise", rise)
    n_beta, (seed,) = nonnegative("n_beta", n_beta), whole(0, seed=seed)
    source = Inputs(data if probe_data is None else probe_data, device)
    count = min(most_inputs, len(source))
    rng = numpy_generator(seed, "order")
    chosen = np.sort(rng.choice(len(source), count, replace=False))
    shown = source.take(chosen)
    inputs = Inputs(shown, device)
    names = select_parameters(model, parameters)
    example = inputs.take(np.arange(min(2, count)))
    runner = make_engine(engine, model, loss, names, example, device)
    inputs.check_finite(chosen)
    check_losses(runner, source, loss is cross_entropy, n_beta > 0, of=(model, loss))
    train = Inputs(data, device) if n_beta and probe_data is not None else source
    if train is not source:
        check_data(runner, train, loss is cross_entropy)
    initial = float(runner.losses(runner.center[None], inputs, eval_batch_size).double().mean())
    target = relative_rise * initial if rise is None else rise
    if not (math.isfinite(target) and target > 0):
        raise ConfigError(
            f"pilot: target rise {target:g} of a mean loss of {initial:g} must be above 0; "
            "give rise in units of the loss"
        )

    shares = {}

    def gaussian(gamma: float) -> tuple[float, float]:
        means, odd, even = [], [], []
        for number in range(directions):
            rows = [perturbed(runner.center, gamma, seed, number, sign) for sign in (1, -1)]
            losses = runner.losses(torch.stack(rows), inputs, eval_batch_size)
            means.append(float(losses.double().mean()) - initial)
            odd.append((losses[0] - losses[1]).double().numpy() / 2)
            even.append(losses.double().mean(0).numpy())
        with np.errstate(invalid="ignore"):  # a loss may be infinite far out
            parts = np.square(odd).sum(), np.var(even, axis=0, ddof=1).sum() * directions
        shares[gamma] = float(parts[0] / max(sum(parts), 1e-300))
        return _mean_and_error(means)

    def linear(gamma: float) -> str:
        return f" At n_beta = 0 {shares[gamma]:.0%} of the variance of the losses is linear."

    size = float(runner.center.double().square().mean())
    start = 100 / size if size > 0 else 1.0  # a perturbation of a tenth of the weights
    gamma, *found = _solve(gaussian, target, start, 1e12, progress)
    if n_beta == 0:
        probe = Probe(gamma=gamma)
        words = _said(probe, initial, target, found) + linear(gamma)
        return Pilot(probe, initial, target, *found, shares[gamma], 0.0, 0.0, words)
    weights = perturbed(runner.center, gamma, seed)
    steepest = curvature(runner, train, weights, gamma**-0.5, batch_size, seed)
    total, squares = noise_moments(runner, train, weights, batch_size, 8, seed)
    bounds = _Bounds(n_beta, steepest, squares / total if total else 0.0)

    def chain(gamma: float) -> tuple[float, float]:
        probe = bounds.probe(gamma)
        try:
            trace = sample_losses(
                model,
                data,
                probe,
                loss=loss,
                probe_data=shown,
                chains=chains,
                draws=4,
                burn_in=min(_burn_in(probe), _MOST_BURN_IN),
                steps_per_draw=3,
                batch_size=batch_size,
                eval_batch_size=eval_batch_size,
                parameters=parameters,
                seed=seed,
                device=device,
                engine=engine,
                progress=False,
            )
        except DivergenceError:
            return math.inf, math.inf
        if trace.diverged.any():
            return math.inf, math.inf
        return _mean_and_error(trace.losses.mean(axis=(1, 2), dtype=float) - initial)

    without_gradient = gamma
    gamma, *found = _solve(chain, target, gamma, 1e3, progress)
    probe = bounds.probe(gamma)
    noise = bounds.noise(probe)
    words = (
        f"{_said(probe, initial, target, found)} Without the gradient gamma would be "
        f"{without_gradient:.3g}. The step size is bounded by the {bounds.limiting(probe)}; "
        f"minibatch noise adds {noise:.2g} of the injected noise where losses change."
    )
    if _burn_in(probe) > _MOST_BURN_IN:
        words += (
            f" A weight forgets its start in some {_burn_in(probe)} steps, more than the pilot's "
            f"{_MOST_BURN_IN}: the loss may rise further. Lower n_beta, raise batch_size if its "
            "noise is the bound, or take a long burn-in."
        )
    words += linear(without_gradient)
    share = shares[without_gradient]
    return Pilot(probe, initial, target, *found, share, steepest, noise, words)


def _said(probe: Probe, initial: float, target: float, found: Sequence[float]) -> str:
    step = " raises" if probe.direct else f" and step_size = {probe.step_size:.3g} raise"
    words = (
        f"gamma = {probe.gamma:.3g}{step} the mean loss from {initial:.4g} by {found[0]:.3g} "
        f"± {found[1]:.1g} (target {target:.3g})."
    )
    if abs(found[0] - target) > 2 * _TOLERANCE * target:
        words += " The target is not met: the loss jumps there, or the search ended before it."
    if found[1] > 0.3 * found[0]:
        words += (
            " The rise is uncertain: watch the first draws. A pilot of more directions and chains "
            "is surer."
        )
    return words


@dataclass(frozen=True)
class _Bounds:
    """What bounds the step size: n_beta, the curvature, and ``tr(C^2) / tr(C)`` of gradients."""

    n_beta: float
    curvature: float
    variance: float

    def shares(self, probe: Probe) -> dict[str, float]:
        """How much of each bound the step size uses up."""
        return {
            "localization": probe.step_size * probe.gamma / DRIFT,
            "curvature": probe.step_size * (probe.gamma + self.n_beta * self.curvature) / CURVATURE,
            "minibatch noise": self.noise(probe) / GRADIENT_NOISE,
        }

    def noise(self, probe: Probe) -> float:
        return probe.step_size * self.n_beta**2 * self.variance / 4

    def probe(self, gamma: float) -> Probe:
        """The probe with the largest step size; every share is proportional to it."""
        largest = Probe(self.n_beta, gamma, DRIFT / gamma)
        return Probe(self.n_beta, gamma, largest.step_size / max(self.shares(largest).values()))

    def limiting(self, probe: Probe) -> str:
        shares = self.shares(probe)
        return max(shares, key=shares.get)


def _burn_in(probe: Probe) -> int:
    return math.ceil(2 * _RELAXATIONS / (probe.step_size * probe.gamma))


def _mean_and_error(values) -> tuple[float, float]:
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        return math.inf, math.inf
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


Rise = Callable[[float], tuple[float, float]]


def _solve(
    rise: Rise, target: float, start: float, reach: float, progress: bool
) -> tuple[float, float, float]:
    """The gamma at which a falling ``rise(gamma)`` meets the target; the rise there and its error.

    Steps by up to 10 until the target lies between two gammas, then between these by interpolation
    of log rise over log gamma, which is a line of slope -1 where the loss is quadratic. Ends within
    5 % of the target, or with the smallest gamma found whose rise is below it.

    Args:
        rise: mean and standard error at a gamma.
        target: above 0.
        start: where to begin.
        reach: largest factor from ``start`` that is tried.
        progress: show a bar; it ends early where fewer gammas are enough.
    """
    above = below = None  # (log gamma, log(rise / target)) on either side
    safe = None
    at = math.log(start)
    for _ in bar(range(_EVALUATIONS), "pilot, at most", unit="gamma", show=progress):
        found = rise(math.exp(at))
        miss = math.log(found[0] / target) if found[0] > 0 else -math.inf
        if abs(math.expm1(miss)) <= _TOLERANCE:
            return math.exp(at), *found
        if miss > 0:
            above = (at, miss)
        else:
            below, safe = (at, miss), (math.exp(at), *found)
        if above and below:
            share = above[1] / (above[1] - below[1])
            if not 0.1 < share < 0.9:  # also if a rise is infinite, or none
                share = 0.5
            at = above[0] + share * (below[0] - above[0])
        else:
            at += max(-math.log(10), min(math.log(10), 1.3 * miss))
            if abs(at - math.log(start)) > math.log(reach):
                break
    if above is None or safe is None:
        raise ConfigError(
            f"pilot: the mean loss rises by {found[0]:.3g} at gamma = "
            f"{math.exp((above or below)[0]):.3g}, the last one tried, against a target of "
            f"{target:.3g}; change the target, or n_beta: a smaller one lets the loss rise"
        )
    return safe
