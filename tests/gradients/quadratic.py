"""Quadratic losses, whose kernel is known exactly, and when an estimate agrees with one."""

import numpy as np
import torch
from scipy.stats import t as student
from torch import nn

FALSE_ALARM = 1e-3  # probability that a test fails a correct estimator, for seeds drawn at random
GROUPS = 30


class Weights(nn.Module):
    """Its output is its weights, for losses that are written in terms of them."""

    def __init__(self, weights):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(weights, dtype=torch.float32))

    def forward(self, x):
        return self.w.expand(len(x), -1)


def bound(entries, groups=GROUPS):
    """Largest |t| that a matrix of so many entries exceeds with probability FALSE_ALARM."""
    return student.isf(FALSE_ALARM / entries / 2, groups - 1)


def agree(found, known, error):
    upper = np.triu_indices(len(known))
    apart = np.abs(found - known)[upper] / error[upper]
    assert apart.max() < bound(len(apart))


class Quadratic:
    """Losses ``g_i . x + x' H_i x / 2`` of ``x = w - w*``: K = g g'/gamma + tr(H H)/(2 gamma^2)."""

    def __init__(self, inputs=5, weights=20, seed=0):
        rng = np.random.default_rng(seed)
        self.center = torch.tensor(rng.standard_normal(weights), dtype=torch.float32)
        self.g = torch.tensor(rng.standard_normal((inputs, weights)), dtype=torch.float32)
        h = torch.tensor(rng.standard_normal((inputs, weights, weights)), dtype=torch.float32)
        self.h = (h + h.mT) / 2
        self.model = Weights(self.center)

    def loss(self, output, index):
        x = output - self.center
        bent = torch.einsum("na,nab,nb->n", x, self.h[index], x) / 2
        return (self.g[index] * x).sum(1) + bent

    def kernel(self, gamma):
        linear = (self.g @ self.g.T).double().numpy() / gamma
        bent = torch.einsum("iab,jba->ij", self.h, self.h).double().numpy() / (2 * gamma**2)
        return linear, bent
