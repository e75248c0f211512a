"""The sampled kernel against loss covariances that are known exactly, or known to be zero.

With quadratic losses, the full batch and step size eps, the chain is a linear recursion with normal
noise. Its stationary law is exactly ``N(m, S)``, ``S = P^-1 (I - eps P / 4)^-1`` with
``P = n_beta H + gamma I`` the precision of the probe distribution, H the Hessian of the mean loss.
"""

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from losskernel import Probe, covariance, sample_losses
from networks import Affine
from series import over_chains

FALSE_ALARM = 1e-3  # probability that a test fails a correct sampler, for seeds drawn at random


def half_square(output, target):
    return 0.5 * output.square().sum(-1)


class Quadratic:
    """Losses ``l_i = |M_i w - c_i|^2 / 2`` of n inputs, 4 weights, and their exact covariance.

    The inputs are those of two tasks that share no weight, so that their losses do not covary.
    """

    n, weights = 6, 4

    def __init__(self, probe):
        rng = np.random.default_rng(11)
        self.probe = probe
        self.center = rng.standard_normal(self.weights)
        self.matrix = 0.8 * rng.standard_normal((self.n, 2, self.weights))
        self.matrix[:3, :, 2:] = self.matrix[3:, :, :2] = 0
        self.offset = rng.standard_normal((self.n, 2))
        self.hessians = np.einsum("nki,nkj->nij", self.matrix, self.matrix)
        precision = probe.n_beta * self.hessians.mean(0) + probe.gamma * np.eye(self.weights)
        pull = probe.n_beta * np.einsum("nki,nk->i", self.matrix, self.offset) / self.n
        self.mean = np.linalg.solve(precision, pull + probe.gamma * self.center)
        self.precision = precision

    def weight_covariance(self, step_size):
        identity = np.eye(self.weights)
        return np.linalg.inv(self.precision @ (identity - step_size * self.precision / 4))

    def kernel(self, step_size):
        """Cov(l_i, l_j) = tr(H_i S H_j S) / 2 + g_i' S g_j with g_i the gradient at the mean."""
        s = self.weight_covariance(step_size)
        residual = self.matrix @ self.mean - self.offset
        gradient = np.einsum("nki,nk->ni", self.matrix, residual)
        trace = np.einsum("aij,jk,bkl,li->ab", self.hessians, s, self.hessians, s)
        return trace / 2 + gradient @ s @ gradient.T

    def mean_losses(self, step_size):
        s = self.weight_covariance(step_size)
        residual = self.matrix @ self.mean - self.offset
        return 0.5 * (np.einsum("nij,ji->n", self.hessians, s) + (residual**2).sum(1))

    def sample(self, seed, chains=32, draws=200):
        x = torch.tensor(np.dstack([self.matrix, self.offset]), dtype=torch.float32)
        trace = sample_losses(
            Affine(self.center),
            (x, torch.zeros(self.n)),
            self.probe,
            loss=half_square,
            chains=chains,
            draws=draws,
            burn_in=60,  # the slowest direction forgets its start to 1e-5
            seed=seed,
            engine="batched",
            progress=False,
        )
        return trace.losses.astype(float)


@pytest.fixture(scope="module")
def quadratic():
    problem = Quadratic(Probe(n_beta=1.5, gamma=1.0, step_size=0.4))
    eigenvalues = np.linalg.eigvalsh(problem.precision)
    assert 0.4 < (problem.probe.step_size * eigenvalues).min()  # chains mix within a few steps
    return problem, {seed: problem.sample(seed) for seed in range(5)}


def test_kernel_and_mean_losses_of_a_quadratic_loss(quadratic):
    """Each entry within its Monte Carlo error, over five seeds; and the errors are small.

    The error is the jackknife's over the 32 independent chains, so the distance over the error is
    Student t with 31 degrees of freedom; Bonferroni over seeds and entries keeps the false alarms.
    """
    problem, traces = quadratic
    step_size = problem.probe.step_size
    upper = np.triu_indices(problem.n)

    def statistic(losses):
        return np.concatenate([covariance(losses)[upper], losses.mean(axis=(0, 1))])

    def expected(step_size):
        return np.concatenate([problem.kernel(step_size)[upper], problem.mean_losses(step_size)])

    count = len(traces) * len(expected(0))
    limit = student.ppf(1 - FALSE_ALARM / count / 2, df=31)
    distances, without_bias = [], []
    for losses in traces.values():
        estimate, error = over_chains(statistic, losses)
        distances.append((estimate - expected(step_size)) / error)
        without_bias.append((estimate - expected(0)) / error)
    assert np.abs(distances).max() < limit
    kernel = problem.kernel(step_size)
    assert np.abs(kernel[:3, 3:]).max() < 1e-12 < 0.05 < np.diag(kernel).min()
    # The same criterion finds the step-size bias (a factor of 1.1 to 1.4 in the weights' variance).
    assert all(np.abs(distance).max() > limit for distance in without_bias)
