"""Runs that gave plausible numbers which were wrong, and what is said of them."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from losskernel import Probe, covariance, sample_losses
from losskernel.cli import main
from losskernel.diagnostics.localization import is_tested_at, localization
from losskernel.diagnostics.verdict import verdict
from losskernel.gradients.linear_response import gram
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.sampling.chains import DivergenceError
from losskernel.sampling.sample import cross_entropy
from networks import Line


def levels(trace):
    judged = verdict(trace)
    return {finding.topic: finding.level for finding in judged.findings}, judged


@pytest.fixture(scope="module")
def digits():
    """A multilayer perceptron of 2,410 weights, trained to a loss of some 0.02 nats."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(250):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, (x, y)


def sample(problem, probe, **changes):
    model, (x, y) = problem
    settings = {"probe_data": (x[:100], y[:100]), "chains": 2, "draws": 50, "batch_size": 100}
    return sample_losses(model, (x, y), probe, progress=False, **settings | changes)


def test_a_loss_above_guessing_is_no_kernel_of_a_trained_network(digits):
    """The gradient's noise, not the probe, moves the weights; no chain diverges on the way."""
    trace = sample(digits, Probe(1e4, 100, 1e-3), burn_in=100, loss_bound=np.inf)
    assert trace.initial_loss.mean() < 0.03
    assert trace.losses.mean() > trace.attributes["guessing_loss"] == pytest.approx(np.log(10))
    found, judged = levels(trace)
    assert found["rise"] == found["step size"] == found["minibatches"] == judged.level == "bad"


def test_chains_are_stopped_beyond_twice_the_loss_of_guessing(digits):
    with pytest.raises(
        DivergenceError, match="all 2 chains diverged .first at draw 0, the last at"
    ):
        sample(digits, Probe(1e9, 100, 1e-3))
    trace = sample(digits, Probe(1e9, 100, 1e-3), loss_bound=np.inf)
    assert trace.losses.mean() > 1e4
    assert levels(trace)[0]["rise"] == "bad"


def half_square(output, target):
    return (output - target) ** 2 / 2


def regression(relative, **changes):
    """Linear regression at ``eps p = relative``, p the precision along the steepest direction."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=rng) * torch.tensor([3.0, 1.0, 0.3])
    y = torch.randn(40, generator=rng)
    precision = 20 * (x.T @ x / 40) + 2 * torch.eye(3)
    steepest = float(torch.linalg.eigvalsh(precision)[-1])
    probe = Probe(20, 2, relative / steepest)
    model = Line(3)
    with torch.no_grad():
        model.w.copy_(torch.linalg.lstsq(x, y).solution)
    options = {"chains": 4, "draws": 400, "burn_in": 100, "steps_per_draw": 2, "batch_size": 40}
    trace = sample_losses(
        model, (x, y), probe, loss=half_square, progress=False, **options | changes
    )
    residual = (x @ model.w.detach() - y).double().numpy()
    covariance_of = np.linalg.inv(precision.double().numpy())
    spread = x.double().numpy() @ covariance_of @ x.double().numpy().T
    exact = np.outer(residual, residual) * spread + spread**2 / 2
    return trace, np.trace(covariance(trace.losses)) / np.trace(exact)


def test_a_step_that_is_long_for_the_curvature_is_found():
    trace, ratio = regression(3.6)
    assert ratio > 3
    found, judged = levels(trace)
    assert found["step size"] == judged.level == "bad"
    told = trace.attributes
    probe = Probe.read(told["probe"])
    assert probe.step_size * (2 + 20 * told["curvature"]) == pytest.approx(3.6, rel=0.01)
    trace, ratio = regression(0.2)
    assert 0.8 < ratio < 1.3
    assert levels(trace)[0]["step size"] == "ok"


def test_a_short_run_is_not_called_ok_without_the_curvature():
    found, judged = levels(regression(3.6, draws=9, steps_per_draw=1, burn_in=0)[0])
    assert found["step size"] == "unknown" and judged.level != "ok"


def test_a_displacement_below_the_rounding_of_the_evaluation_is_found(digits, tmp_path):
    """K is the exact limit at gamma = 1e11, and 1.2 to 1.4 times it at 1e14."""
    model, (x, y) = digits
    data = (x[:100], y[:100])
    gradients = per_sample_gradients(model, data, tmp_path, dtype="float32", progress=False)
    limit = np.diag(gram(gradients, progress=False))
    for gamma, level, least, most in ((1e11, "ok", 0.9, 1.08), (1e14, "bad", 1.15, 1.6)):
        trace = sample(digits, Probe(gamma=gamma), draws=400)
        of_limit = trace.losses.var(axis=(0, 1), dtype=float) / limit * gamma
        assert least < np.median(of_limit) < most
        assert levels(trace)[0]["rounding"] == level


def test_a_loss_with_a_constant_that_hides_its_spread_is_found(digits):
    def lifted(output, target):
        return cross_entropy(output, target) + 1e6

    trace = sample(digits, Probe(gamma=1e6), loss=lifted, draws=400)
    assert levels(trace)[0]["rounding"] == "bad"
    assert levels(sample(digits, Probe(gamma=1e6), draws=400))[0]["rounding"] == "ok"


def test_a_good_chain_is_ok_from_the_command_line(tmp_path, capsys):
    """Softmax regression, whose posterior is all but quadratic: every topic is told and ok."""
    torch.manual_seed(0)
    x = torch.randn(60, 5)
    y = (x[:, :3] + 0.7 * torch.randn(60, 3)).argmax(1)
    model = nn.Linear(5, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    probe = Probe(n_beta=100, gamma=30, step_size=0.3 / 30)
    options = {"chains": 4, "draws": 200, "burn_in": 40, "steps_per_draw": 8, "batch_size": 60}
    trace = sample_losses(model, (x, y), probe, progress=False, **options)
    trace.save(tmp_path / "trace.nc")
    assert main(["trace", "summary", "--trace", str(tmp_path / "trace.nc")]) == 0
    said = capsys.readouterr().out
    assert "verdict: ok" in said, said
    assert "gamma 30 named, 2" in said and "relaxations of 6.67 steps" in said


def test_independent_draws_from_the_command_line(digits, tmp_path, capsys):
    trace = sample(digits, Probe(gamma=1e5), chains=1, draws=1000)
    trace.save(tmp_path / "trace.nc")
    assert main(["trace", "summary", "--trace", str(tmp_path / "trace.nc")]) == 0
    said = capsys.readouterr().out
    assert "verdict: ok" in said, said
    assert "1000 independent draws" in said and "R-hat" not in said and "drift" not in said


@pytest.mark.parametrize(
    ("probe", "sampling"),
    [
        (Probe(1e-9, 100, 2e-4), {"burn_in": 0, "steps_per_draw": 1}),  # 0.6 relaxations
        (Probe(1e-9, 100, 1.6e-2), {"burn_in": 20, "steps_per_draw": 2}),  # 5/3 too wide
        (Probe(1e-9, 100, 3e-3), {"burn_in": 30, "steps_per_draw": 4}),
        (Probe(gamma=100), {}),
    ],
)
def test_a_weight_that_the_loss_does_not_feel_spreads_as_the_effective_gamma_says(probe, sampling):
    """Each of 300 weights is the loss of an input; the minibatches see none of them."""
    x = torch.eye(301)
    model = nn.Linear(301, 1, bias=False)
    nn.init.zeros_(model.weight)
    options = {"chains": 2, "draws": 60, "batch_size": 1, "probe_data": (x[:300], torch.zeros(300))}
    trace = sample_losses(
        model,
        (x[300:], torch.zeros(1)),
        probe,
        loss=lambda output, target: output[..., 0],
        progress=False,
        **options | sampling,
    )
    found = localization(trace)
    variances = trace.losses.var(axis=1, ddof=1, dtype=float).ravel()
    error = variances.std(ddof=1) / np.sqrt(len(variances))
    assert abs(variances.mean() - 1 / found.effective) < 4.5 * error
    assert error < 0.1 * variances.mean()
    assert is_tested_at(trace, 100) == found.agrees == (0.9 <= found.effective / 100 <= 1.1)
    assert found.agrees == (probe.direct or probe.step_size == 3e-3)
    assert not is_tested_at(trace, 120)
