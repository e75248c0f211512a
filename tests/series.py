"""Losses of known structure in time, and what tests compare and measure them with."""

import numpy as np

from losskernel.kernel.covariance import correlation, self_covariance
from losskernel.kernel.jackknife import jackknife_error
from losskernel.kernel.stored import StoredKernel


def assert_same(a, b):
    """Two traces have the same losses, to the bit."""
    for name in ("loss", "initial_loss", "batch_loss"):
        np.testing.assert_array_equal(a.dataset[name].values, b.dataset[name].values, strict=True)


def over_chains(statistic, losses):
    """A statistic of all chains and its standard error from leaving out one chain at a time."""
    left_out = [statistic(np.delete(losses, chain, axis=0)) for chain in range(len(losses))]
    return statistic(losses), jackknife_error(left_out)


def euclidean(points):
    """Distances between points, ``(point, point)``."""
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


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


def stored_kernel(losses, initial, coordinates, attributes, groups=4) -> StoredKernel:
    """The kernel of losses (draw, input) as that of gradients is stored: each group in a half."""
    group = np.arange(len(losses)) % groups
    return StoredKernel(
        r=correlation(losses),
        halves=np.array([correlation(losses[group % 2 == half]) for half in range(2)]),
        left_out=np.array([correlation(losses[group != left]) for left in range(groups)]),
        self_covariance=self_covariance(losses),
        losses=losses,
        initial_losses=np.asarray(initial),
        coordinates=coordinates,
        attributes=attributes,
    )
