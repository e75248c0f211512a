"""The kernel from pairs of gradients against kernels that are known exactly."""

import json
import math

import numpy as np
import pytest
import torch
from quadratic import FALSE_ALARM, GROUPS, Quadratic, Weights, agree
from scipy.stats import t as student
from torch import nn

from losskernel import Probe, gradient_covariance, sample_losses
from losskernel.data.arithmetic import probe_subset
from losskernel.errors import ConfigError, DataError, TraceError
from losskernel.experiments.arithmetic.setup import network_model, tables
from losskernel.gradients import sources
from losskernel.gradients.covariance import lobatto
from losskernel.kernel.covariance import covariance as loss_covariance
from losskernel.training.train import TrainingSettings, train
from networks import ARITHMETIC, mlp


def estimate(model, loss, inputs, **options):
    index = torch.arange(inputs)
    options = {"groups": GROUPS, "progress": False, **options}
    return gradient_covariance(model, (index, index), loss=loss, **options)


@pytest.mark.parametrize("gamma", [1.0, 40.0])
def test_quadratic_losses(gamma):
    problem = Quadratic()
    found = estimate(problem.model, problem.loss, 5, gamma=gamma, pairs=60)
    linear, bent = problem.kernel(gamma)
    agree(found.kernel, linear + bent, found.error())
    agree(found.linear, linear, found.error(of="linear"))
    np.testing.assert_allclose(found.kernel, found.linear + found.nonlinear)
    # x' H x / 2 has the mean tr(H) / (2 gamma)
    rise, error = found.rise
    known = float(problem.h.diagonal(dim1=1, dim2=2).sum(1).mean()) / (2 * gamma)
    assert abs(rise - known) < student.isf(FALSE_ALARM / 2, 59) * error


def test_a_journal_goes_on_in_its_own_blocks(tmp_path, monkeypatch):
    """Also where other blocks are measured, as after an update of PyTorch."""
    problem = Quadratic()

    def run(pairs, block, journal):
        monkeypatch.setattr(sources, "_block_size", lambda *_: block)
        options = {"gamma": 4.0, "journal": tmp_path / journal}
        return estimate(problem.model, problem.loss, 5, pairs=pairs, **options)

    run(4, 2, "updated")
    found, whole = run(6, 5, "updated"), run(6, 2, "whole")
    np.testing.assert_array_equal(found.kernel, whole.kernel)
    np.testing.assert_array_equal(found.losses, whole.losses)


def test_numpy_numbers_are_as_good_as_python_s(tmp_path):
    problem = Quadratic()
    options = {"gamma": np.float32(4), "pairs": np.int64(4), "groups": np.int32(4)}
    options |= {"seed": np.int64(3), "width": np.uint16(50), "n_beta": np.float64(0)}
    found = estimate(problem.model, problem.loss, 5, journal=tmp_path, **options)
    plain = {"gamma": 4, "pairs": 4, "groups": 4, "seed": 3, "width": 50}
    expected = estimate(problem.model, problem.loss, 5, journal=tmp_path, **plain)
    np.testing.assert_array_equal(found.kernel, expected.kernel)


def hermite(x, order):
    values = [torch.ones_like(x), x]
    for k in range(1, order):
        values.append(x * values[k] - k * values[k - 1])
    return values[order]


def test_weights_of_the_quadrature():
    for nodes in range(3, 8):
        places, weights = lobatto(nodes)
        degrees = np.arange(2 * nodes - 2)
        np.testing.assert_allclose(weights @ places[:, None] ** degrees, 1 / (degrees + 1))
        assert (weights > 0).all()
        assert weights @ places ** len(degrees) > (1 + 1e-9) / (len(degrees) + 1)


@pytest.mark.parametrize(("degree", "nodes"), [(3, 3), (4, 3), (6, 4)])
def test_polynomials_up_to_the_degree_of_the_quadrature(degree, nodes):
    """Losses ``sum a_idk He_k(sqrt(gamma) x_d)``, whose covariance is ``sum k! a_idk a_jdk``."""
    rng, gamma, inputs, weights = np.random.default_rng(degree), 9.0, 4, 3000
    factorials = np.array([math.factorial(k + 1) for k in range(degree)])
    a = rng.standard_normal((inputs, weights, degree)) / np.sqrt(factorials)
    coefficients = torch.tensor(a, dtype=torch.float32)
    center = torch.tensor(rng.standard_normal(weights), dtype=torch.float32)

    def loss(output, index):
        x = (output - center) * math.sqrt(gamma)
        powers = torch.stack([hermite(x, k + 1) for k in range(degree)], 2)
        return (coefficients[index] * powers).sum((1, 2))

    found = estimate(Weights(center), loss, inputs, gamma=gamma, pairs=200, nodes=nodes)
    agree(found.kernel, np.einsum("idk,jdk,k->ij", a, a, factorials), found.error())
    agree(found.linear, np.einsum("id,jd->ij", a[..., 0], a[..., 0]), found.error(of="linear"))
    # Their sum is less noisy, and tells weights of another rule.
    apart = np.trace(found.kernel) - (a**2 * factorials).sum()
    assert abs(apart) < student.isf(FALSE_ALARM / 2, GROUPS - 1) * found.error(np.trace)
    # Errors are small enough to tell the degrees apart: without the highest this does not hold.
    lower = np.einsum("idk,jdk,k->ij", a[..., :-1], a[..., :-1], factorials[:-1])
    with pytest.raises(AssertionError):
        agree(found.kernel, lower, found.error())


def problem(seed=0):
    return mlp(4, 6, 3, seed), (torch.randn(12, 4), torch.arange(12) % 3)


def test_a_network_against_its_own_losses():
    """An arithmetic network far outside of its basin, entry by entry, by pairs and by losses."""
    kept, _ = tables(ARITHMETIC, 1.0, 51)
    model = network_model(ARITHMETIC, 51)
    training = TrainingSettings(400, 91, 0.005, weight_decay=0.1)
    train(model, kept.inputs, kept.targets, training, 51, progress=False)
    inputs = probe_subset(kept, 24, 51)
    data, gamma = (inputs.inputs, inputs.targets), 20.0
    options = {"gamma": gamma, "pairs": 240, "groups": GROUPS, "seed": 6, "progress": False}
    found = gradient_covariance(model, data, nodes=6, **options)
    sampled = sample_losses(
        model, data, Probe(gamma=gamma), chains=2, draws=10_000, seed=5, progress=False
    ).losses.reshape(-1, 24)
    parts = np.array([loss_covariance(part) for part in np.array_split(sampled, GROUPS)])
    known, error = parts.mean(0), parts.std(0, ddof=1) / math.sqrt(GROUPS)
    assert found.linear_share < 0.2
    agree(found.kernel, known, np.hypot(error, found.error()))
    assert found.reliability[1] > found.reliability[0] > 0.9
    # Simpson's rule is not enough here.
    simpson = gradient_covariance(model, data, **options)
    with pytest.raises(AssertionError):
        agree(simpson.kernel, known, np.hypot(error, simpson.error()))


def test_draws_are_those_of_the_probe():
    """A linear loss tells where it is evaluated: at the draws of all gammas, and of losses."""
    w = torch.tensor([1.0, 2.0])
    model, index = Weights(w), torch.arange(1)

    def loss(output, index):
        return (output - w) @ torch.tensor([1.0, -3.0])

    one, other = (
        estimate(model, loss, 1, gamma=gamma, pairs=20).losses[:, 0] * math.sqrt(gamma)
        for gamma in (1.0, 100.0)
    )
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    sampled = sample_losses(
        model, (index, index), Probe(gamma=1.0), loss=loss, chains=2, draws=20, progress=False
    ).losses[:, :, 0]
    first, second = one.reshape(-1, 2).T
    np.testing.assert_allclose(first, sampled[0], rtol=1e-5)
    together = sampled[0] / 2 + math.sqrt(3 / 4) * sampled[1]
    np.testing.assert_allclose(second, together, rtol=1e-4, atol=1e-5)


def same(one, other):
    for name in ("kernel", "linear", "left_out", "halves", "losses", "initial_losses"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("width", [16, 2**18])
def test_more_pairs_extend_a_finished_journal(tmp_path, width):
    model, data = problem()
    options = {"gamma": 8.0, "groups": 4, "width": width, "progress": False}
    whole = gradient_covariance(model, data, pairs=9, **options)
    gradient_covariance(model, data, pairs=5, journal=tmp_path, **options)
    same(gradient_covariance(model, data, pairs=9, journal=tmp_path, **options), whole)
    assert not list(tmp_path.glob("draw-*"))
    with pytest.raises(TraceError, match="holds 9 pairs, more than 7"):
        gradient_covariance(model, data, pairs=7, journal=tmp_path, **options)


def test_a_journal_refuses_what_it_was_not_begun_with(tmp_path):
    model, data = problem()
    options = {"gamma": 8.0, "pairs": 4, "journal": tmp_path, "progress": False}
    gradient_covariance(model, data, **options)
    with pytest.raises(TraceError, match="other gamma = 8.0, not 9.0"):
        gradient_covariance(model, data, **{**options, "gamma": 9.0})
    with pytest.raises(TraceError, match="other nodes = 3, not 4"):
        gradient_covariance(model, data, nodes=4, **options)
    with pytest.raises(TraceError, match="other seed"):
        gradient_covariance(model, data, seed=1, **options)
    with pytest.raises(TraceError, match="other weights_sha256"):
        gradient_covariance(problem(seed=1)[0], data, **options)
    with pytest.raises(TraceError, match="other inputs_sha256"):
        gradient_covariance(model, (data[0] + 1, data[1]), **options)

    class Otherwise(nn.Sequential):
        """The same weights under other code."""

        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(TraceError, match="code of the model differs"):
        gradient_covariance(Otherwise(*model), data, **options)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(TraceError, match=r"lacks settings.json"):
        gradient_covariance(model, data, **options)


def test_a_journal_refuses_what_shows_in_the_last_inputs_alone(tmp_path):
    """Buffers that are no part of the state, of which the first inputs have no use."""

    class Scaled(nn.Linear):
        def __init__(self, scale):
            super().__init__(3, 3)
            self.register_buffer("scale", scale, persistent=False)

        def forward(self, x):
            return super().forward(x) * self.scale[x[:, 2].long(), None]

    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    x[:, 2] = torch.arange(12) >= 9
    one, other = Scaled(torch.ones(2)), Scaled(torch.tensor([1.0, 3.0]))
    other.load_state_dict(one.state_dict())
    options = {"gamma": 50.0, "journal": tmp_path, "progress": False}
    gradient_covariance(one, (x, torch.arange(12) % 3), pairs=4, **options)
    with pytest.raises(TraceError, match="other buffers_sha256"):
        gradient_covariance(other, (x, torch.arange(12) % 3), pairs=8, **options)


def test_a_journal_of_before_has_simpsons_rule_and_no_data(tmp_path):
    model, data = problem()
    options = {"gamma": 8.0, "groups": 4, "progress": False}
    gradient_covariance(model, data, pairs=4, journal=tmp_path, **options)
    path = tmp_path / "settings.json"
    old = json.loads(path.read_text())
    assert [old.pop(key) for key in ("nodes", "n_beta", "fisher")] == [3, 0.0, None]
    del old["behavior"]
    path.write_text(json.dumps(old))
    whole = gradient_covariance(model, data, pairs=6, **options)
    same(gradient_covariance(model, data, pairs=6, journal=tmp_path, **options), whole)
    path.write_text(json.dumps(old | {"n_beta": 2.0, "fisher": ["0", 12]}))
    with pytest.raises(TraceError, match="other n_beta = 2.0, not 0.0"):
        gradient_covariance(model, data, pairs=8, journal=tmp_path, **options)


def test_bad_settings_are_refused_in_one_line():
    model, data = problem()
    for options, told in (
        ({"gamma": 0.0}, "gamma"),
        ({"gamma": math.inf}, "gamma"),
        ({"gamma": 1.0, "pairs": 3}, "pairs"),
        ({"gamma": 1.0, "groups": 5}, "groups"),
        ({"gamma": 1.0, "nodes": 2}, "nodes"),
        ({"gamma": 1.0, "pairs": 5, "nodes": 5}, "pairs = 5 must be at least 6 for 5 nodes"),
        ({"gamma": 1.0, "width": 0}, "width"),
        ({"gamma": 1.0, "seed": -1}, "seed"),
        ({"gamma": 1.0, "engine": "fast"}, "engine"),
    ):
        with pytest.raises(ConfigError, match=told):
            gradient_covariance(model, data, progress=False, **options)
    with pytest.raises(DataError, match="holds NaN or an infinite number"):
        gradient_covariance(model, (data[0] * math.nan, data[1]), gamma=1.0, progress=False)


def test_the_folder_says_what_it_holds(tmp_path):
    model, data = problem()
    gradient_covariance(model, data, gamma=8.0, pairs=4, journal=tmp_path, progress=False)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["gamma"] == 8.0 and settings["engine"] == "layers"
    assert len(list(tmp_path.glob("pair-*.npz"))) == 4
