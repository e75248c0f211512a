"""The Laplace form of the tempered posterior: exact draws, and the identity with Sigma."""

import numpy as np
import pytest
import torch
from quadratic import GROUPS, Quadratic, agree
from torch import nn

from losskernel import gradient_covariance
from losskernel.errors import ConfigError, TraceError
from losskernel.gradients.laplace import Laplace, drawn_labels
from losskernel.gradients.per_sample import per_sample_gradients


def fisher(problem, tmp_path, inputs=5):
    index = torch.arange(inputs)
    return per_sample_gradients(
        problem.model, (index, index), tmp_path, loss=problem.loss, dtype="float32", progress=False
    )


def sigma(problem, gamma, n_beta):
    g = problem.g.double().numpy()
    return np.linalg.inv(gamma * np.eye(g.shape[1]) + n_beta * g.T @ g / len(g))


def test_the_square_root_is_exact(tmp_path):
    problem = Quadratic()
    laplace = Laplace(fisher(problem, tmp_path), 2.0, 30.0, progress=False)
    size = problem.g.shape[1]
    root = np.array([laplace.displacement(row).numpy() for row in torch.eye(size)])
    np.testing.assert_allclose(root @ root.T, sigma(problem, 2.0, 30.0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(root, root.T, atol=1e-6)


@pytest.mark.parametrize("n_beta", [1.0, 30.0])
def test_quadratic_losses_under_sigma(tmp_path, n_beta):
    """K = g_i' Sigma g_j + tr(H_i Sigma H_j Sigma) / 2, exactly."""
    problem, gamma = Quadratic(), 1.0
    found = gradient_covariance(
        problem.model,
        (torch.arange(5), torch.arange(5)),
        gamma=gamma,
        n_beta=n_beta,
        fisher=fisher(problem, tmp_path),
        loss=problem.loss,
        pairs=60,
        groups=GROUPS,
        progress=False,
    )
    s = sigma(problem, gamma, n_beta)
    g, h = problem.g.double().numpy(), problem.h.double().numpy()
    linear = g @ s @ g.T
    bent = np.einsum("iab,bc,jcd,da->ij", h, s, h, s) / 2
    agree(found.kernel, linear + bent, found.error())
    agree(found.linear, linear, found.error(of="linear"))
    # The isotropic probe has another kernel: the test would tell them apart.
    with pytest.raises(AssertionError):
        agree(found.kernel, sum(problem.kernel(gamma)), found.error())


def test_labels_drawn_from_the_model():
    torch.manual_seed(0)
    model = nn.Linear(2, 3)
    x = torch.randn(1, 2).expand(20_000, 2)
    _, labels = drawn_labels(model, (x, torch.zeros(len(x))))
    shares = torch.bincount(labels, minlength=3) / len(labels)
    torch.testing.assert_close(shares, model(x[:1])[0].softmax(0).detach(), atol=0.015, rtol=0)
    assert torch.equal(labels, drawn_labels(model, (x, labels))[1])


def test_what_does_not_fit_is_refused(tmp_path):
    problem, other = Quadratic(), Quadratic(seed=1)
    gradients = fisher(problem, tmp_path)
    index = torch.arange(5)
    with pytest.raises(ConfigError, match="belong together"):
        gradient_covariance(problem.model, (index, index), gamma=1.0, n_beta=2.0)
    with pytest.raises(TraceError, match="gradients of other weights"):
        gradient_covariance(
            other.model, (index, index), loss=problem.loss, gamma=1.0, n_beta=2.0, fisher=gradients
        )
