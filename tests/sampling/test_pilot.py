"""The pilot on a quadratic loss, for which every quantity that it proposes by is known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from losskernel.errors import ConfigError
from losskernel.sampling.pilot import ESTIMATORS, _solve, propose_probe
from losskernel.sampling.probe import Probe
from networks import Affine

WEIGHTS, N = 20, 30
RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((N, WEIGHTS)) * np.geomspace(3, 0.1, WEIGHTS)
CENTER = 1 + RNG.standard_normal(WEIGHTS)
HESSIAN = ROWS.T @ ROWS / N  # of the mean of (a_i . (w - w*))^2 / 2
DATA = (torch.tensor(np.column_stack([ROWS, ROWS @ CENTER]), dtype=torch.float32), torch.zeros(N))


def loss(output, target):
    return 2 + 0.5 * output.square()


def propose(n_beta=0, rise=None, **changes):
    settings = {"loss": loss, "engine": "sequential", "seed": 3, "batch_size": N}
    return propose_probe(Affine(CENTER), DATA, n_beta, rise, **settings | changes)


def test_without_gradient_the_rise_is_that_of_the_gaussian():
    """Mean rise tr(H) / 2 gamma; at the proposal it is within 5 standard errors of the target."""
    found = propose(directions=40)
    assert found.initial_loss == pytest.approx(2) and found.target == pytest.approx(0.2)
    assert found.rise == pytest.approx(0.2, rel=0.05)
    exact = np.trace(HESSIAN) / 2 / found.probe.gamma
    assert abs(exact - found.rise) < 5 * found.rise_error
    assert found.rise_error < 0.1 * found.rise
    assert found.probe == Probe(gamma=found.probe.gamma)
    assert found.curvature == found.gradient_noise == 0
    assert f"gamma = {found.probe.gamma:.3g}" in found.words
    assert found.words.endswith(ESTIMATORS) and ESTIMATORS.count("\n") == 2


def test_the_share_of_the_linear_part_is_that_of_the_quadratic_losses():
    """Of (a . d - 1)^2 / 2: |a|^2 / gamma is linear, the rest |a|^4 / (2 gamma^2), by input."""
    assert propose().linear_share < 1e-3  # no loss has a slope there
    square = (ROWS**2).sum(1)
    for rise, error in ((0.01, 0.02), (1.0, 0.1)):
        shifted = {"loss": lambda output, target: 0.5 * (output - 1) ** 2}
        found = propose(rise=rise, directions=40, **shifted)
        linear = square.sum() / found.probe.gamma
        rest = (square**2).sum() / 2 / found.probe.gamma**2
        assert found.linear_share == pytest.approx(linear / (linear + rest), abs=error)
        assert f"{found.linear_share:.0%} of the variance of the losses is linear" in found.words


def test_the_rise_may_be_given_in_units_of_the_loss():
    small, large = propose(rise=0.01), propose(rise=1.0)
    assert small.target == 0.01 and large.target == 1.0
    # The same directions at every gamma: a quadratic loss rises by exactly 1 / gamma.
    scaled = small.rise * small.probe.gamma
    assert large.rise * large.probe.gamma == pytest.approx(scaled, rel=1e-3)


def test_the_gradient_allows_a_smaller_gamma():
    """At n_beta the rise is tr(H (n_beta H + gamma)^-1) / 2, and the chain's step-size bias."""
    found = propose(n_beta=20, chains=8)
    assert found.probe.gamma < 0.9 * propose().probe.gamma
    assert found.rise == pytest.approx(found.target, rel=0.05)
    precision = 20 * HESSIAN + found.probe.gamma * np.eye(WEIGHTS)
    bias = np.eye(WEIGHTS) - found.probe.step_size * precision / 4
    exact = np.trace(HESSIAN @ np.linalg.inv(precision @ bias)) / 2
    # Student t with 7 degrees of freedom: 7 standard errors is 2e-4.
    assert abs(exact - found.rise) < 7 * found.rise_error
    assert found.rise_error < 0.1 * found.rise
    largest = np.linalg.eigvalsh(HESSIAN).max()
    assert found.curvature == pytest.approx(largest, rel=0.02)
    assert found.gradient_noise == 0  # the batch is all of the data


@pytest.mark.parametrize("n_beta", [5, 1e3])
def test_the_step_size_keeps_every_bound_and_meets_one(n_beta):
    found = propose(n_beta, rise=1e-3, batch_size=10)
    probe = found.probe
    shares = {
        "localization": probe.step_size * probe.gamma / 0.3,
        "curvature": probe.step_size * (probe.gamma + n_beta * found.curvature),
        "minibatch noise": found.gradient_noise / 0.25,
    }
    assert max(shares.values()) == pytest.approx(1)
    assert f"bounded by the {max(shares, key=shares.get)}" in found.words
    assert (found.gradient_noise > 0) and (found.curvature > 0)


def test_the_seed_decides_and_the_model_stays_as_it_is():
    model = Affine(CENTER).train()
    settings = {"loss": loss, "engine": "sequential", "batch_size": 10}
    first = propose_probe(model, DATA, 5, seed=1, **settings)
    assert first == propose_probe(model, DATA, 5, seed=1, **settings)
    assert first.probe != propose_probe(model, DATA, 5, seed=2, **settings).probe
    assert model.training and torch.equal(model.w, Affine(CENTER).w)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rise": 0}, "target rise 0 of a mean loss of 2 must be above 0"),
        ({"rise": math.nan}, "rise = nan must be a finite number"),
        ({"directions": 1}, "directions = 1 must be at least 2"),
        ({"chains": 1}, "chains = 1 must be at least 2"),
        ({"n_beta": -1}, "n_beta = -1 must be"),
        # The gradient holds the rise below weights / (2 n_beta) = 0.001 at every gamma.
        ({"n_beta": 1e4, "rise": 0.1}, "against a target of 0.1; change the target, or n_beta"),
    ],
)
def test_what_cannot_be_proposed_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        propose(**changes)


def test_the_search_meets_the_target_of_any_falling_curve():
    for curve in (lambda g: 3 / g, lambda g: 3 / g**2.5, lambda g: 3 / g + 20 / g**3):
        for start in (1e-4, 1.0, 1e5):
            gamma, rise, error = _solve(lambda g, c=curve: (c(g), 0.1), 0.2, start, 1e12, False)
            assert rise == curve(gamma) == pytest.approx(0.2, rel=0.05) and error == 0.1


def test_a_jump_over_the_target_ends_on_its_quiet_side():
    gamma, rise, _ = _solve(lambda g: (math.inf if g < 7 else 0.01 / g, 0), 0.2, 1.0, 1e12, False)
    assert 7 <= gamma < 7.1 and rise == 0.01 / gamma


def test_the_page_on_estimators_begins_with_the_same_lines():
    page = Path(__file__).parents[2] / "docs/estimators.md"
    lines = [
        line[2:].replace("`", "") for line in page.read_text().splitlines() if line[:2] == "- "
    ]
    assert lines == ESTIMATORS.splitlines()


def test_the_bar_is_shown_where_it_is_asked_for(monkeypatch):
    shown = []
    monkeypatch.setattr(
        "losskernel.sampling.pilot.bar",
        lambda items, *_, show, **__: shown.append(show) or items,
    )
    assert propose(progress=True).probe == propose(progress=False).probe
    assert shown == [True, False]
