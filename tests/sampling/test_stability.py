import numpy as np
import pytest
import torch
from torch import nn

from losskernel.sampling.engines import SequentialEngine
from losskernel.sampling.inputs import Inputs
from losskernel.sampling.stability import curvature, noise_moments

N, BATCH = 40, 8
RNG = np.random.default_rng(0)
# Gradients of |w - c|^2 / 2 are w - c: their covariance is that of the points c, strong along two.
POINTS = RNG.standard_normal((N, 6)) * [3, 2, 0.1, 0.1, 0.1, 0.1]
DATA = Inputs((torch.tensor(POINTS, dtype=torch.float32), torch.zeros(N)))


class Place(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.w - x


ENGINE = SequentialEngine(Place(), lambda output, _: 0.5 * output.square().sum(-1), ["w"])


def moments(seed=0, batch=BATCH, pairs=16):
    return noise_moments(ENGINE, DATA, ENGINE.center, batch, pairs, seed)


def test_noise_is_the_covariance_of_batches_drawn_without_replacement():
    """Over 30 seeds both traces agree within 4.5 standard errors (Student t, 1e-4)."""
    c = np.cov(POINTS, rowvar=False) / BATCH * (1 - BATCH / N)
    found = np.array([moments(seed) for seed in range(30)])
    error = found.std(axis=0, ddof=1) / np.sqrt(30)
    exact = np.array([np.trace(c), np.trace(c @ c)])
    assert (np.abs(found.mean(axis=0) - exact) < 4.5 * error).all()
    assert (error < 0.15 * exact).all()
    assert moments(0) == moments(0) != moments(1)


def test_a_full_batch_makes_no_noise():
    assert moments(batch=N) == moments(batch=2 * N) == (0, 0)


def test_curvature_is_the_largest_eigenvalue_of_the_hessian():
    found = curvature(ENGINE, DATA, ENGINE.center, 0.1, BATCH, seed=0)  # the Hessian is I
    assert found == pytest.approx(1, rel=1e-4)
