"""The sampled kernel against loss covariances that are known exactly, or known to be zero.

With quadratic losses, the full batch and step size eps, the chain is a linear recursion with normal
noise. Its stationary law is exactly ``N(m, S)``, ``S = P^-1 (I - eps P / 4)^-1`` with
``P = n_beta H + gamma I`` the precision of the probe distribution, H the Hessian of the mean loss.
"""

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from torch import nn

from losskernel import Probe, correlation, covariance, sample_losses, self_covariance

FALSE_ALARM = 1e-3  # probability that a test fails a correct sampler, for seeds drawn at random


class Affine(nn.Module):
    """Output ``M w - c`` with M and c the input: half its square is a quadratic loss in w."""

    def __init__(self, weights):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(weights, dtype=torch.float32))

    def forward(self, x):
        return x[..., :-1] @ self.w - x[..., -1]


def half_square(output, target):
    return 0.5 * output.square().sum(-1)


class Quadratic:
    """Losses ``l_i = |M_i w - c_i|^2 / 2`` of n inputs, 3 weights, and their exact covariance."""

    n, weights = 6, 3

    def __init__(self, probe):
        rng = np.random.default_rng(11)
        self.probe = probe
        self.center = rng.standard_normal(self.weights)
        self.matrix = 0.8 * rng.standard_normal((self.n, 2, self.weights))
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
            burn_in=40,  # the slowest direction forgets its start to 1e-5
            seed=seed,
            engine="batched",
            progress=False,
        )
        return trace.losses.astype(float)


def jackknife(statistic, losses):
    """A statistic of all chains and its standard error from leaving out one chain at a time."""
    chains = len(losses)
    left_out = np.stack([statistic(np.delete(losses, c, axis=0)) for c in range(chains)])
    return statistic(losses), np.sqrt(chains - 1) * left_out.std(axis=0)


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
        estimate, error = jackknife(statistic, losses)
        distances.append((estimate - expected(step_size)) / error)
        without_bias.append((estimate - expected(0)) / error)
    assert np.abs(distances).max() < limit
    # The same criterion finds the step-size bias (a factor of 1.1 to 1.4 in the weights' variance).
    assert all(np.abs(distance).max() > limit for distance in without_bias)


def test_errors_of_the_kernel_are_as_large_as_stated(quadratic):
    """The 5 x 21 distances have the mean square of their t distribution, not a smaller one."""
    problem, traces = quadratic
    upper = np.triu_indices(problem.n)
    kernel = problem.kernel(problem.probe.step_size)
    exact, scale = kernel[upper], np.sqrt(np.outer(np.diag(kernel), np.diag(kernel)))[upper]
    distances = []
    for losses in traces.values():
        estimate, error = jackknife(lambda losses: covariance(losses)[upper], losses)
        assert (error < 0.1 * scale).all()  # small enough to see an error of a factor
        distances.append((estimate - exact) / error)
    # Entries of a seed are correlated, seeds are not: 5 to 105 independent squares of mean 1.07.
    # A mean square below 0.04 or above 5 has probability about 1e-3 even with only 5.
    assert 0.04 < np.mean(np.square(distances)) < 5


class Coordinates(nn.Module):
    """The output for input i is the weight w_i."""

    def __init__(self, size):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return self.w[x]


def test_step_size_bias_is_that_of_the_discretized_chain_and_halves_with_the_step():
    """Variance of a weight V = 1 / (l (1 - eps l / 4)), so 1 - 1 / (l V) is eps l / 4."""
    size, h, gamma = 2000, 3.0, 1.0
    precision = h + gamma
    index = torch.arange(size)

    def loss(output, target):  # mean loss over the data h/2 |w|^2; the recorded loss is w itself
        return torch.where(target == 1, output, 0.5 * size * h * output.square())

    bias, error = {}, {}
    for relative in (0.8, 0.4, 0.2):  # eps times the precision
        trace = sample_losses(
            Coordinates(size),
            (index, torch.zeros(size)),
            Probe(n_beta=1, gamma=gamma, step_size=relative / precision),
            loss=loss,
            probe_data=(index, torch.ones(size)),
            chains=8,
            draws=60,
            burn_in=80,  # (1 - 0.2/2)^160 = 5e-8 of the variance
            batch_size=size,
            eval_batch_size=size,
            engine="batched",
            progress=False,
        )
        # Centered over the independent chains at equal draw: unbiased whatever the autocorrelation.
        variances = self_covariance(trace.losses, center="draw")
        variance = variances.mean()
        bias[relative] = 1 - 1 / (precision * variance)
        # Coordinates are independent. d(1 - 1/(l V)) = dV / (l V^2)
        error[relative] = variances.std() / np.sqrt(size) / (precision * variance**2)
    # 5 comparisons at 4.4 standard errors: false alarm 5e-5
    for relative in bias:
        assert abs(bias[relative] - relative / 4) < 4.4 * error[relative]
        assert bias[relative] > 8 * error[relative]
    for large, small in ((0.8, 0.4), (0.4, 0.2)):
        difference = np.hypot(error[large], 2 * error[small])
        assert abs(bias[large] - 2 * bias[small]) < 4.4 * difference


class TwoTasks(nn.Module):
    """Linear regression on two tasks; the last column of the input is the task, 0 or 1."""

    def __init__(self, shared):
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Linear(4, 1)
        self.second = self.first if shared else nn.Linear(4, 1)

    def forward(self, x):
        features, task = x[..., :-1], x[..., -1]
        return torch.where(task == 0, self.first(features)[..., 0], self.second(features)[..., 0])


def cross_task_p_value(shared, seed, permutations=999):
    """Are cross-task correlations larger than chance? p-value of a permutation test, exact level.

    If the tasks do not interact, the losses of the first task in one chain are independent of those
    of the second in any chain, so pairing chains at random leaves the distribution of the mean
    squared cross-task correlation as it is.
    """
    rng = np.random.default_rng(8)
    per_task, chains = 15, 24
    x = np.concatenate([rng.standard_normal((2 * per_task, 4)), np.zeros((2 * per_task, 1))], 1)
    x[per_task:, -1] = 1
    y = rng.standard_normal(2 * per_task)
    trace = sample_losses(
        TwoTasks(shared),
        (torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)),
        Probe(n_beta=2, gamma=1, step_size=0.3),
        loss=lambda output, target: 0.5 * (output - target).square(),
        chains=chains,
        draws=40,
        burn_in=20,
        seed=seed,
        progress=False,
    )
    losses = trace.losses

    def statistic(order):
        paired = np.concatenate([losses[..., :per_task], losses[order][..., per_task:]], axis=2)
        return np.mean(correlation(paired)[:per_task, per_task:] ** 2)

    observed = statistic(np.arange(chains))
    shuffled = [statistic(rng.permutation(chains)) for _ in range(permutations)]
    return (1 + sum(value >= observed for value in shuffled)) / (1 + permutations)


def test_tasks_with_disjoint_parameters_do_not_covary():
    # 3 seeds, each failing with probability 3 in 1000 for a correct sampler
    assert min(cross_task_p_value(shared=False, seed=seed) for seed in range(3)) > 0.003


def test_the_same_test_finds_a_shared_parameter():
    assert max(cross_task_p_value(shared=True, seed=seed) for seed in range(3)) <= 0.003
