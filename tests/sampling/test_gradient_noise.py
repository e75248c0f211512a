import numpy as np
import pytest
import torch
from torch import nn

from losskernel import Probe
from losskernel.errors import ConfigError
from losskernel.sampling.gradient_noise import gradient_noise

N, BATCH = 40, 8
PROBE = Probe(n_beta=30, gamma=100, step_size=1e-3)
RNG = np.random.default_rng(0)
# Gradients of |w - c|^2 / 2 are w - c: their covariance is that of the points c, strong along two.
POINTS = RNG.standard_normal((N, 6)) * [3, 2, 0.1, 0.1, 0.1, 0.1]
DATA = (torch.tensor(POINTS, dtype=torch.float32), torch.zeros(N))


class Place(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.w - x


def half_square(output, target):
    return 0.5 * output.square().sum(-1)


def measure(seed=0, probe=PROBE, batch=BATCH, **changes):
    settings = {"loss": half_square, "seed": seed, "engine": "sequential"}
    return gradient_noise(Place(), DATA, probe, batch, **settings | changes)


def test_it_is_the_covariance_of_batches_drawn_without_replacement():
    """Over 30 seeds each ratio agrees within 4.5 standard errors (Student t, 1e-4)."""
    c = np.cov(POINTS, rowvar=False) / BATCH * (1 - BATCH / N)
    factor = PROBE.step_size * PROBE.n_beta**2 / 4
    found = [measure(seed, pairs=16) for seed in range(30)]
    directions = np.array([noise.per_direction for noise in found])
    error = directions.std(ddof=1) / np.sqrt(30)
    assert abs(directions.mean() - factor * np.trace(c) / 6) < 4.5 * error
    # The numerator alone is unbiased; the ratio's bias is of the order of its variance.
    numerators = np.array([noise.in_span * noise.per_direction * 6 for noise in found])
    error = numerators.std(ddof=1) / np.sqrt(30)
    assert abs(numerators.mean() - factor**2 * np.trace(c @ c)) < 4.5 * error
    assert error < 0.15 * factor**2 * np.trace(c @ c)


def test_it_grows_with_the_step_and_with_n_beta_squared():
    base, hot = measure(), measure(probe=Probe(60, 100, 2e-3))
    assert hot.in_span == pytest.approx(8 * base.in_span)
    assert hot.per_direction == pytest.approx(8 * base.per_direction)


def test_a_full_batch_makes_no_noise():
    assert measure(batch=N) == measure(batch=2 * N)
    assert measure(batch=N).in_span == measure(batch=N).per_direction == 0


def test_the_seed_decides_and_the_model_stays_as_it_is():
    model = Place()
    found = gradient_noise(model, DATA, PROBE, BATCH, loss=half_square, engine="sequential")
    assert found == measure() != measure(seed=1)
    assert torch.equal(model.w, torch.ones(6)) and model.w.grad is None


def test_one_pair_is_too_few():
    with pytest.raises(ConfigError, match="pairs = 1 must be at least 2"):
        measure(pairs=1)
