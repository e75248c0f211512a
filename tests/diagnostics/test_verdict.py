import warnings

import numpy as np
import pytest

from losskernel.diagnostics.localization import localization
from losskernel.diagnostics.verdict import LEVELS, verdict
from losskernel.trace import LossTrace, settings_attribute

QUIET = {"n_beta": 10, "gamma": 100, "step_size": 2e-3}
STEPS = {"burn_in": 100, "steps_per_draw": 20}
MEASURED = {
    "curvature": 2.0,
    "minibatch_noise_in_span": 0.1,
    "minibatch_noise_per_direction": 1e-3,
    "weight_rounding": 1e-18,
    "guessing_loss": 10.0,
}


def losses(chains=4, draws=300, inputs=30, seed=0):
    """Two groups of inputs that move together, independent from draw to draw."""
    rng = np.random.default_rng(seed)
    common = np.repeat(rng.standard_normal((chains, draws, 2)), inputs // 2, axis=2)
    return 5 + common + rng.standard_normal((chains, draws, inputs))


def trace(values, probe=QUIET, **changes):
    told = {} if probe is None else {"probe": settings_attribute(probe), **STEPS, **MEASURED}
    told |= changes
    told = {name: value for name, value in told.items() if value is not None}
    start = np.full(values.shape[2], 4.0)
    made = LossTrace.build(values, start, values.mean(axis=2), attributes=told)
    return LossTrace(made.dataset.assign(rounding=("input", np.full(values.shape[2], 1e-6))))


def judge(values, probe=QUIET, **changes):
    found = verdict(trace(values, probe, **changes))
    assert all(finding.level in LEVELS for finding in found.findings)
    return {finding.topic: finding for finding in found.findings}, found


CHAINS = ("chains", "localization", "rise", "drift", "R-hat", "sample size", "step size")
OF_ALL = ("noise floor", "rounding")


def test_a_good_run_is_ok_in_every_respect():
    findings, found = judge(losses())
    topics = (*CHAINS, "minibatches", *OF_ALL)
    assert {topic: finding.level for topic, finding in findings.items()} == dict.fromkeys(
        topics, "ok"
    )
    assert tuple(findings) == topics
    assert found.level == "ok"
    assert found.floor == pytest.approx(1 / np.sqrt(1199), rel=0.2)
    # R is 1/2 within groups (14 of the 29 others) and 0 across.
    assert found.spread == pytest.approx(0.25, abs=0.02)


def test_independent_draws_are_judged_by_what_applies_to_them():
    findings, found = judge(losses(), {"n_beta": 0, "gamma": 100})
    assert {topic: finding.level for topic, finding in findings.items()} == dict.fromkeys(
        ("chains", "localization", "rise", "sample size", *OF_ALL), "ok"
    )
    assert found.level == "ok" and found.convergence is None
    assert found.localization.effective == 100 and "1200 independent" in str(
        findings["sample size"]
    )
    for draws, level in ((50, "warning"), (20, "bad")):
        few = judge(losses(draws=draws), {"n_beta": 0, "gamma": 100})[0]
        assert few["sample size"].level == level


@pytest.mark.parametrize(
    ("mean", "guessing", "level", "said"),
    [
        (5, 10, "ok", "17% of the way to guessing"),
        (6, 10, "warning", "33% of the way"),
        (9, 10, "bad", "83% of the way to guessing (10): these weights know little"),
        (9, None, "warning", "1.2 times theirs; the loss of guessing is not known"),
        (5, None, "ok", "0.25 times theirs"),
        (900, None, "bad", "2.2e+02 times theirs"),
        (5, 3, "warning", "no better than guessing (3)"),
    ],
)
def test_the_rise_is_judged_against_guessing(mean, guessing, level, said):
    values = losses()
    findings, _ = judge(values - values.mean() + mean, guessing_loss=guessing)
    assert findings["rise"].level == level and said in findings["rise"].sentence


def test_a_run_says_which_gamma_it_reached():
    """A relaxation takes 10 steps; the recorded run of 300 x 20 steps is 600 of them."""
    assert judge(losses())[1].localization == localization(trace(losses()))
    short = {"steps_per_draw": 1, "burn_in": 0}
    findings, found = judge(losses(draws=60), QUIET | {"step_size": 1e-5}, **short)
    assert findings["localization"].level == "bad"
    assert found.localization.relaxation == pytest.approx(2000)
    assert found.localization.length == pytest.approx(0.03)
    # A random walk of n steps has a sample variance of eps (n + 1) / 6 in expectation.
    assert found.localization.effective == pytest.approx(6 / 1e-5 / 61, rel=0.03)
    said = findings["localization"].sentence
    assert "effective gamma 9.98e+03" in said and "record 40000 steps a chain" in said
    findings, found = judge(losses(), QUIET | {"step_size": 1e-2})  # eps gamma = 1: 4/3 too wide
    assert findings["localization"].level == "warning"
    assert found.localization.effective == pytest.approx(75, rel=0.01)
    assert "lower step_size" in findings["localization"].sentence


def test_chains_that_are_one_are_found_out():
    noise = np.random.default_rng(0).standard_normal((1, 100, 40))
    findings, found = judge(np.repeat(noise, 4, axis=0))
    assert findings["chains"].level == found.level == "bad"
    assert "chains 0 and 1 (of 6 such pairs) move alike" in findings["chains"].sentence
    mostly = noise + 0.005 * np.random.default_rng(1).standard_normal((4, 100, 40))
    assert judge(mostly)[0]["chains"].level == "bad"  # correlated at 0.99997
    drifting = np.random.default_rng(2).standard_normal((4, 100, 40)) + np.arange(100)[:, None]
    assert judge(drifting)[0]["chains"].level == "ok"


def test_rounding_is_judged_against_what_a_loss_varies_by():
    """Losses have a variance of 2; float32 numbers are 1 apart near 1e7, and 8 near 1e8."""
    finding = judge(losses() + 1e7)[0]["rounding"]
    assert finding.level == "warning" and "makes 0.04 of the variance" in finding.sentence
    assert judge(losses() + 1e8)[0]["rounding"].level == "bad"
    assert judge(losses() + 1e5)[0]["rounding"].level == "ok"
    assert judge(losses(), weight_rounding=1e-4)[0]["rounding"].level == "warning"  # of eps 2e-3
    old = LossTrace(trace(losses()).dataset.drop_vars("rounding"))
    assert {f.topic: f.level for f in verdict(old).findings}["rounding"] == "unknown"
    assert judge(0 * losses())[0]["rounding"].level == "bad"


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


@pytest.mark.parametrize(("curved", "level"), [(40, "ok"), (80, "warning"), (150, "bad")])
def test_step_size(curved, level):
    """eps (gamma + n_beta curvature) = 0.2 + 0.02 curvature."""
    finding = judge(losses(), curvature=curved)[0]["step size"]
    assert finding.level == level
    assert f"n_beta curvature) = {0.2 + 0.02 * curved:.2g}" in finding.sentence


def test_what_the_trace_does_not_tell_is_not_called_ok():
    unknown = {"curvature": None, "minibatch_noise_in_span": None}
    findings, _ = judge(losses(), **unknown)
    assert findings["step size"].level == findings["minibatches"].level == "unknown"
    steep = judge(losses(), QUIET | {"step_size": 3e-2}, **unknown)[0]
    assert steep["step size"].level == "bad"
    # A chain of an earlier version without the loss has neither curvature nor minibatches.
    old = judge(losses(), QUIET | {"n_beta": 0}, **unknown)[0]
    assert old["step size"].level == old["minibatches"].level == "ok"


def test_minibatch_noise_is_judged():
    for span, level in ((0.2, "ok"), (0.6, "warning"), (3.0, "bad")):
        finding = judge(losses(), minibatch_noise_in_span=span)[0]["minibatches"]
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
