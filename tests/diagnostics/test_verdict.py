import warnings

import numpy as np
import pytest

from losskernel.diagnostics.verdict import LEVELS, verdict
from losskernel.sampling.gradient_noise import GradientNoise
from losskernel.trace import LossTrace, settings_attribute

QUIET = {"n_beta": 0, "gamma": 100, "step_size": 1e-3}


def losses(chains=4, draws=300, inputs=30, seed=0):
    """Two groups of inputs that move together, independent from draw to draw."""
    rng = np.random.default_rng(seed)
    common = np.repeat(rng.standard_normal((chains, draws, 2)), inputs // 2, axis=2)
    return 5 + common + rng.standard_normal((chains, draws, inputs))


def trace(values, probe=QUIET):
    attributes = {} if probe is None else {"probe": settings_attribute(probe)}
    start = np.full(values.shape[2], 4.0)
    return LossTrace.build(values, start, values.mean(axis=2), attributes=attributes)


def judge(values, probe=QUIET, noise=None):
    found = verdict(trace(values, probe), noise)
    assert all(finding.level in LEVELS for finding in found.findings)
    return {finding.topic: finding for finding in found.findings}, found


def test_a_good_run_is_ok_in_every_respect():
    findings, found = judge(losses())
    assert {topic: finding.level for topic, finding in findings.items()} == dict.fromkeys(
        ("chains", "drift", "R-hat", "sample size", "step size", "minibatches", "noise floor"),
        "ok",
    )
    assert found.level == "ok"
    assert found.floor == pytest.approx(1 / np.sqrt(1199), rel=0.2)
    # R is 1/2 within groups (14 of the 29 others) and 0 across.
    assert found.spread == pytest.approx(0.25, abs=0.02)


def test_a_diverged_chain_is_left_out_and_told():
    values = losses()
    values[2, 50:] = np.nan
    findings, found = judge(values)
    assert findings["chains"].level == found.level == "warning"
    assert "1 of 4 chains diverged" in findings["chains"].sentence
    assert findings["R-hat"].level == "ok"


@pytest.mark.parametrize(("shift", "level"), [(0.2, "warning"), (0.6, "bad")])
def test_a_drift_is_judged_against_the_rise(shift, level):
    """The rise is 1 (4 to 5 nats). The mean of a half errs by 0.03."""
    values = losses()
    values[:, 150:] += shift
    findings, _ = judge(values)
    assert findings["drift"].level == level
    assert "raise burn_in" in findings["drift"].sentence


@pytest.mark.parametrize(("apart", "level"), [(0.6, "warning"), (1.0, "bad")])
def test_chains_in_different_places(apart, level):
    """R-hat is sqrt(1 + v / 2) with v the variance of 4 places: 1.07 and 1.18 in the median."""
    values = losses() + apart * np.random.default_rng(1).standard_normal((4, 1, 30))
    findings, found = judge(values)
    assert findings["R-hat"].level == level
    assert f"{np.median(found.convergence.rhat):.3f}" in findings["R-hat"].sentence


@pytest.mark.parametrize(("draws", "level"), [(50, "warning"), (8, "bad")])
def test_few_draws(draws, level):
    findings, found = judge(losses(draws=draws))
    assert findings["sample size"].level == level
    ess = np.median(found.convergence.ess)
    assert f"sample {int(np.ceil(400 / ess))} times as many" in findings["sample size"].sentence


def test_correlated_draws_call_for_more_steps_a_draw():
    values = np.repeat(losses(draws=60), 5, axis=1)
    findings, _ = judge(values)
    assert findings["sample size"].level == "warning"
    assert "raise steps_per_draw" in findings["sample size"].sentence


@pytest.mark.parametrize(("step", "level"), [(5e-3, "ok"), (1e-2, "warning"), (3e-2, "bad")])
def test_step_size(step, level):
    assert judge(losses(), QUIET | {"step_size": step})[0]["step size"].level == level


def test_minibatch_noise_is_judged_if_measured():
    probe = QUIET | {"n_beta": 10}
    assert judge(losses(), probe)[0]["minibatches"].level == "unknown"
    for span, level in ((0.2, "ok"), (0.6, "warning"), (3.0, "bad")):
        finding = judge(losses(), probe, GradientNoise(1e-3, span))[0]["minibatches"]
        assert finding.level == level
        assert ("multiply batch_size by" in finding.sentence) == (level != "ok")
    assert "batch_size by 12" in finding.sentence


def test_the_draws_that_a_resolved_kernel_takes_are_told_rightly():
    """R of 0.2 in 9 % of pairs, 0.057 over all, against a floor of 0.071.

    Both spreads err by 1 % (4,950 pairs), the advised draws by 6 %, the ratio they give by 5 %.
    """
    rng = np.random.default_rng(0)

    def weak(draws):
        common = np.repeat(rng.standard_normal((2, draws, 10)), 10, axis=2)
        return 5 + 0.5 * common + rng.standard_normal((2, draws, 100))

    finding, found = judge(weak(100))
    assert finding["noise floor"].level == "warning"
    assert 1.2 <= found.spread / found.floor < 2
    advised = int(finding["noise floor"].sentence.split("about ")[1].split()[0])
    later = judge(weak(advised // 2))[1]
    assert later.spread / later.floor == pytest.approx(2, rel=0.1)


def test_noise_alone_is_bad():
    values = np.random.default_rng(0).standard_normal((4, 100, 40))
    findings, found = judge(values)
    assert findings["noise floor"].level == found.level == "bad"
    assert "mostly sampling noise" in findings["noise floor"].sentence


@pytest.mark.parametrize("draws", [2, 3, 4, 7, 8, 9, 40])
@pytest.mark.parametrize("stuck", [(), (0, 3), tuple(range(6))], ids=["none", "two", "all"])
@pytest.mark.parametrize("chains", [1, 2])
def test_single_chains_few_draws_and_constant_losses_raise_no_warning(chains, draws, stuck):
    values = losses(chains, draws, inputs=6)
    values[..., list(stuck)] = 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        findings, found = judge(values, probe=None)
    known = len(stuck) < 6 and draws >= (8 if chains == 1 else 4)
    assert (findings["R-hat"].level == "unknown") == (not known)
    assert np.isnan(found.convergence.rhat[list(stuck)]).all()
    assert findings["step size"].level == findings["minibatches"].level == "unknown"
    assert (findings["noise floor"].level == "unknown") == (len(stuck) == 6)


def test_inputs_stuck_at_different_losses_are_not_hidden():
    values = losses(chains=2)
    values[0, :, :20], values[1, :, :20] = 1.0, 2.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        findings, found = judge(values)
    assert np.isinf(found.convergence.rhat[:20]).all()
    assert findings["R-hat"].level == "bad"
