import json
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from losskernel.errors import ConfigError
from losskernel.sampling.probe import FreeChain, Probe, sgld_step


def test_step_is_the_formula():
    probe = Probe(n_beta=10, gamma=2, step_size=0.04)
    new = sgld_step(
        torch.tensor([1.0, -1.0]),
        torch.tensor([0.5, 0.0]),
        torch.tensor([0.3, 0.0]),
        torch.tensor([1.0, -2.0]),
        probe,
    )
    # w - eps/2 (n_beta g + gamma (w - w*)) + sqrt(eps) z, by hand
    expected = [1 - 0.02 * (3 + 1) + 0.2, -1 - 0.02 * (0 - 2) - 0.4]
    torch.testing.assert_close(new, torch.tensor(expected))


def test_step_leaves_its_arguments_alone():
    arguments = [torch.randn(3, 5) for _ in range(4)]
    copies = [tensor.clone() for tensor in arguments]
    sgld_step(*arguments, Probe(10, 2, 0.1))
    assert all(torch.equal(a, b) for a, b in zip(arguments, copies, strict=True))


def test_localization_variance_is_the_fixed_point_of_the_chain():
    probe = Probe(n_beta=5, gamma=3, step_size=0.2)
    variance = 0.0
    for _ in range(200):  # x <- (1 - eps gamma/2) x + N(0, eps)
        variance = (1 - probe.step_size * probe.gamma / 2) ** 2 * variance + probe.step_size
    assert probe.localization_variance == pytest.approx(variance, rel=1e-12)
    assert Probe(1, 0, 0.1).localization_variance == math.inf
    assert probe.free == FreeChain(3, 0.2)
    assert Probe(gamma=4).localization_variance == 0.25 and Probe(gamma=4).free == Probe(gamma=4)


@pytest.mark.parametrize("probe", [Probe(gamma=3), Probe(2, 3, 0.1), FreeChain(3, 0.1)])
def test_a_probe_is_read_back_from_its_settings(probe):
    assert Probe.read(probe.settings) == Probe.read(json.dumps(probe.settings)) == probe


def test_numpy_scalars_are_as_good_as_numbers():
    probe = Probe(np.int64(2), np.float32(0.5), np.float64(0.1))
    assert probe == Probe(2, 0.5, 0.1)
    assert json.dumps(probe.settings) == '{"n_beta": 2, "gamma": 0.5, "step_size": 0.1}'


def test_a_trace_of_an_earlier_version_without_the_loss_was_made_by_a_chain():
    found = Probe.read('{"gamma": 3, "n_beta": 0, "step_size": 0.2}')
    assert found == FreeChain(3, 0.2) and not found.direct
    assert found.localization_variance == pytest.approx(1 / 3 / 0.85)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ((-1, 1, 0.1), "n_beta = -1"),
        ((1, -2, 0.1), "gamma = -2"),
        ((1, math.nan, 0.1), "gamma = nan"),
        ((math.inf, 1, 0.1), "n_beta = inf"),
        ((1, 1, 0), "step_size = 0"),
        ((1, 40, 0.1), "step_size \\* gamma = 4"),
        ((1, 40), "n_beta > 0 is sampled by steps of SGLD: give step_size"),
        ((0, 40, 0.1), "step_size = 0.1 has no meaning with n_beta = 0.*drawn directly.*leave"),
        ((0, 0), "gamma = 0 with n_beta = 0 is no distribution"),
        ((), "gamma = nan"),
        ((0, "1e4"), "gamma = '1e4' is not a number"),
        ((True, 1, 0.1), "n_beta = True is not a number"),
    ],
)
def test_settings_out_of_range_are_named(settings, named):
    with pytest.raises(ConfigError, match=named):
        Probe(*settings)


@pytest.mark.parametrize("sampler", ["SGLD", "SGMCMC"])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_chain_equals_devinterp_given_the_same_noise(sampler, dtype, rounding):
    optim = pytest.importorskip(
        "devinterp.optim", reason="the peer to compare with, devinterp, is not installed"
    )
    probe = Probe(n_beta=7.5, gamma=12, step_size=0.02)
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    parameters = list(theirs.parameters())
    ours = [parameter.detach().clone() for parameter in parameters]
    center = [parameter.clone() for parameter in ours]
    settings = {"lr": probe.step_size, "localization": probe.gamma, "nbeta": probe.n_beta}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # devinterp keeps its SGLD as a deprecated name
        if sampler == "SGLD":
            optimizer = optim.SGLD(parameters, **settings)
        else:
            optimizer = optim.SGMCMC.sgld(parameters, **settings)

    def gradients(weights):
        named = dict(zip(dict(theirs.named_parameters()), weights, strict=True))
        weights = {name: tensor.detach().requires_grad_() for name, tensor in named.items()}
        loss = nn.functional.mse_loss(torch.func.functional_call(theirs, weights, (x,)), y)
        return torch.autograd.grad(loss, list(weights.values()))

    for step in range(25):
        x, y = torch.randn(6, 5, dtype=dtype), torch.randn(6, 3, dtype=dtype)
        optimizer.zero_grad()
        nn.functional.mse_loss(theirs(x), y).backward()
        gradient = gradients(ours)
        torch.manual_seed(step)
        optimizer.step()
        torch.manual_seed(step)
        # The peer draws in the default type, whatever the parameters' is.
        noise = [torch.normal(0.0, 1.0, tensor.shape).to(dtype) for tensor in ours]
        ours = [
            sgld_step(w, w0, g, z, probe)
            for w, w0, g, z in zip(ours, center, gradient, noise, strict=True)
        ]
    for mine, other, start in zip(ours, parameters, center, strict=True):
        assert (mine - start).abs().max() > 0.1  # the chain moved: rounding is not all there is
        torch.testing.assert_close(mine, other.detach(), rtol=rounding, atol=rounding)


@pytest.mark.parametrize("gamma", [0, 1e-3, 10, 30])
@pytest.mark.parametrize(("draws", "first", "spacing"), [(2, 1, 1), (7, 3, 2), (50, 500, 5)])
def test_the_variance_within_a_run_is_that_of_its_covariance_in_time(gamma, draws, first, spacing):
    chain = FreeChain(gamma, 0.1)
    steps, rho = first + spacing * np.arange(draws), 1 - 0.1 * gamma / 2
    earlier, apart = np.minimum.outer(steps, steps), np.abs(np.subtract.outer(steps, steps))
    # Cov(x_s, x_t) = rho^|t - s| eps (1 + rho^2 + ...), one term a step up to the earlier one
    law = rho**apart * 0.1 * np.cumsum(rho ** (2.0 * np.arange(steps[-1])))[earlier - 1]
    expected = (np.trace(law) - law.sum() / draws) / (draws - 1)
    assert chain.run_variance(draws, first, spacing) == pytest.approx(expected, rel=1e-9)
