"""Losses of known structure in time, for the tests of what is read from a trace."""

import numpy as np


def independent(chains=4, draws=100, inputs=80, seed=0):
    return np.random.default_rng(seed).standard_normal((chains, draws, inputs))


def autoregressive(memory, chains=4, draws=400, inputs=30, seed=0):
    rng = np.random.default_rng(seed)
    losses = np.empty((chains, draws, inputs))
    losses[:, 0] = rng.standard_normal((chains, inputs))
    for draw in range(1, draws):
        fresh = rng.standard_normal((chains, inputs))
        losses[:, draw] = memory * losses[:, draw - 1] + np.sqrt(1 - memory**2) * fresh
    return losses


def structured(seed=0, draws=200):
    """Four chains of 40 inputs in two groups that move together, and noise."""
    rng = np.random.default_rng(seed)
    common = np.repeat(rng.standard_normal((4, draws, 2)), 20, axis=2)
    return common + 0.5 * rng.standard_normal((4, draws, 40))
