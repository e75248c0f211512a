"""Independent draws of the Gaussian probe."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn

from losskernel import Probe, covariance, sample_losses
from losskernel.errors import ConfigError, DataError, TraceError
from losskernel.sampling.chains import DivergenceError
from losskernel.sampling.journal import journal_losses
from losskernel.sampling.probe import FreeChain
from networks import mlp

ENGINES = pytest.mark.parametrize("engine", ["batched", "sequential"])
torch.manual_seed(0)
X, Y = torch.randn(12, 5), torch.arange(12) % 3


def sample(model=None, data=(X, Y), probe=None, **changes):
    settings = {"chains": 2, "draws": 20, "seed": 3, "progress": False}
    return sample_losses(
        model or mlp(5, 7, 3), data, probe or Probe(gamma=50), **settings | changes
    )


def itself(output, target):
    return output[..., 0]


def weights_of(gamma, **changes):
    """Displacements of 400 weights, ``(draw, weight)``: each is the loss of an input."""
    model = nn.Linear(400, 1, bias=False)
    nn.init.zeros_(model.weight)
    data = (torch.eye(400), torch.zeros(400))
    trace = sample(model, data, Probe(gamma=gamma), loss=itself, **changes)
    return trace.losses.reshape(-1, 400)


@ENGINES
def test_the_draws_have_the_law_of_the_probe(engine):
    weights = weights_of(9.0, chains=3, draws=40, engine=engine)
    assert kstest(weights.ravel() * 3, "norm").pvalue > 1e-4
    off = np.corrcoef(weights)[np.triu_indices(120, 1)]  # of draws with each other
    assert np.abs(off).max() < 5.5 / np.sqrt(400)  # 7140 pairs, false alarm 3e-4
    assert abs(off.mean()) < 4.5 / np.sqrt(400 * len(off))


def test_every_gamma_sees_the_same_draws():
    np.testing.assert_allclose(weights_of(4.0) * 2, weights_of(1e6) * 1e3, rtol=1e-6)
    assert np.abs(np.corrcoef(weights_of(4.0)[0], weights_of(4.0, seed=4))[0, 1:]).max() < 0.3


@ENGINES
def test_the_kernel_of_quadratic_losses_is_exact(engine):
    """K = g_i . g_j / gamma + tr(H_i H_j) / (2 gamma^2), entry by entry within its error."""
    rng = np.random.default_rng(0)
    slope, root = rng.standard_normal((6, 4)), rng.standard_normal((6, 2, 4))
    hessian = root.swapaxes(1, 2) @ root
    gamma, draws = 2.0, 20_000 if engine == "batched" else 4000

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(4))

        def forward(self, x):
            at = x[:, 4:].unflatten(1, (2, 4)) @ self.w
            return (x[:, :4] @ self.w + at.square().sum(1) / 2)[:, None]

    x = torch.tensor(np.concatenate([slope, root.reshape(6, 8)], 1), dtype=torch.float32)
    data = (x, torch.zeros(6))
    options = {"loss": itself, "chains": 1, "draws": draws, "engine": engine}
    losses = sample(Quadratic(), data, Probe(gamma=gamma), **options).losses[0].astype(float)
    exact = slope @ slope.T / gamma
    exact += np.einsum("iab,jba->ij", hessian, hessian) / 2 / gamma**2
    centered = losses - losses.mean(0)
    products = centered[:, :, None] * centered[:, None]
    error = products.std(axis=0) / np.sqrt(draws)
    assert (np.abs(covariance(losses) - exact) < 4.5 * error).all()  # 21 entries, 1.4e-4
    assert (error < 0.1 * np.sqrt(np.outer(np.diag(exact), np.diag(exact)))).all()


def test_engines_agree():
    found = [sample(engine=engine).losses for engine in ("batched", "sequential")]
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)
    assert np.ptp(found[0], axis=(0, 1)).min() > 1e-2


@pytest.mark.bits
@ENGINES
def test_a_draw_does_not_depend_on_its_company(engine):
    whole = sample(engine=engine, chains=3, draws=21).losses
    alone = sample(engine=engine, chain_ids=[2], draws=19).losses
    assert np.array_equal(alone[0], whole[2, :19])


@pytest.mark.bits
@ENGINES
@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_and_extended_equals_whole(tmp_path, engine, workers):
    whole = sample(engine=engine, draws=40)
    for draws in (1, 5, 16, 33, 33, 40):
        found = sample(engine=engine, draws=draws, journal=tmp_path, workers=workers)
        assert np.array_equal(found.losses, whole.losses[:, :draws])
        assert np.array_equal(journal_losses(tmp_path), found.losses)
    assert found.attributes["resumed_draws"] == 33 and found.attributes["seconds_draws"] == 40
    assert np.isnan(found.dataset["batch_loss"]).all()
    assert np.array_equal(
        sample(engine=engine, draws=9, journal=tmp_path).losses[1], whole.losses[1, :9]
    )


@pytest.mark.parametrize("torn", ["losses.f32", "seconds.f64", "displacements.f16"])
def test_rows_that_are_not_complete_in_all_files_are_made_again(tmp_path, torn):
    keep = {"journal": tmp_path, "displacements": True}
    whole = sample(draws=20, **keep)
    path = tmp_path / torn
    before = path.read_bytes()
    path.write_bytes(before[: len(before) * 3 // 4 - 1])
    found = sample(draws=20, **keep)
    assert found.attributes["resumed_draws"] == 14
    assert np.array_equal(found.losses, whole.losses)
    assert torn == "seconds.f64" or path.read_bytes() == before


def test_the_probe_and_its_data(tmp_path):
    found = sample(data=None, probe_data=(X, Y), journal=tmp_path)
    assert np.array_equal(found.losses, sample().losses)
    for source in (found.attributes, json.loads((tmp_path / "settings.json").read_text())):
        assert json.loads(source["probe"]) == {"n_beta": 0, "gamma": 50}
        assert Probe.read(source["probe"]) == Probe(gamma=50)
        assert not {"burn_in", "steps_per_draw", "batch_size", "data_size"} & source.keys()
    with pytest.raises(TraceError, match="holds a run with probe = "):
        sample(probe=Probe(gamma=51), journal=tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"burn_in": 5}, ConfigError, "burn_in = 5 has no meaning with n_beta = 0"),
        ({"steps_per_draw": 2}, ConfigError, "steps_per_draw = 2 has no meaning"),
        ({"probe": FreeChain(50, 1e-3)}, ConfigError, "no longer sampled by a chain; pass Probe"),
        ({"data": None}, DataError, "data: None; give"),
        (
            {"data": None, "probe_data": (X, Y), "probe": Probe(1, 50, 1e-3)},
            DataError,
            "data: None; give",
        ),
        ({"displacements": True}, ConfigError, "needs a journal"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        sample(**changes)


def test_a_loss_that_is_not_finite_names_the_draw_and_the_remedy(tmp_path):
    def fragile(output, target):
        return torch.where(output[..., 0] > 0.5, torch.inf, output[..., 0])

    model = nn.Linear(5, 1, bias=False)
    nn.init.zeros_(model.weight)
    free = sample(model, (X[:1], Y[:1]), loss=itself).losses[..., 0]
    first = int(np.argmax((free > 0.5).any(0)))
    assert first > 0
    with pytest.raises(DivergenceError, match=rf"draw {first} of chain \d is inf; raise gamma"):
        sample(model, (X[:1], Y[:1]), loss=fragile, journal=tmp_path)
    with pytest.raises(DivergenceError, match=rf"draw {first} of chain"):
        sample(model, (X[:1], Y[:1]), loss=itself, loss_bound=0.5)


def test_a_small_model_with_convolutions_is_evaluated_draw_by_draw():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(6, 3))
    assert sample(model, (X[:, None], Y)).attributes["engine"] == "SequentialEngine"
    assert sample().attributes["engine"] == "BatchedEngine"
