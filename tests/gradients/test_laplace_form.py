"""The Laplace form of the tempered posterior: exact draws, and the identity with Sigma."""

import numpy as np
import pytest
import torch
from quadratic import GROUPS, Quadratic, agree
from torch import nn

from losskernel import Probe, gradient_covariance, sample_losses
from losskernel.errors import ConfigError, TraceError
from losskernel.gradients.laplace import Laplace, drawn_labels, fisher_targets
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
    with pytest.raises(ConfigError, match=r"above 1e\+06 rounding rules"):
        Laplace(gradients, 1.0, 1e9)
    with pytest.raises(TraceError, match="gradients of other weights"):
        gradient_covariance(
            other.model, (index, index), loss=problem.loss, gamma=1.0, n_beta=2.0, fisher=gradients
        )


@pytest.mark.parametrize("confidence", [1.0, 8.0])
def test_fisher_targets_make_up_the_fisher_matrix(confidence):
    """Their gradients p - t have the mean product diag(p) - p p', without bias or heavy tails."""
    torch.manual_seed(0)
    model, repeats = nn.Linear(3, 4), 3000
    model.weight.data *= confidence
    x = torch.randn(20, 3)
    again, t = fisher_targets(model, (x, torch.zeros(20)), repeats)
    assert torch.equal(again[-20:], x) and len(again) == len(t) == 20 * repeats
    assert (t >= 0).all()
    p = model(x).softmax(1).detach().double()
    v = (p - t.double().view(repeats, 20, 4)).numpy()
    products = np.einsum("rna,rnb->rnab", v, v).mean(1)
    known = (torch.diag_embed(p) - p[:, :, None] * p[:, None]).mean(0).numpy()
    parts = np.array([part.mean(0) for part in np.array_split(products, GROUPS)])
    agree(parts.mean(0), known, parts.std(0, ddof=1) / np.sqrt(GROUPS) + 1e-9)
    # Of an input answered with confidence every gradient is as long as the root mean square one.
    sure = p.numpy().max(1) > 0.8
    assert sure.any() or confidence == 1
    mean = 1 - p.square().sum(1).numpy()[sure]
    np.testing.assert_allclose((v[:, sure] ** 2).sum(2), np.tile(mean, (repeats, 1)), atol=1e-6)


def test_chains_and_the_laplace_form_agree_where_the_loss_is_quadratic(tmp_path):
    """Linear regression: the tempered posterior is Gaussian, and F its Hessian.

    Of losses ``(r_i + x_i . d)^2 / 2`` with d of covariance S, K is
    ``r_i r_j x_i' S x_j + (x_i' S x_j)^2 / 2``.
    """
    rng, inputs, gamma, n_beta = np.random.default_rng(0), 6, 2.0, 8.0
    x, y = rng.standard_normal((inputs, 4)), rng.standard_normal(inputs)
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    r, hessian = x @ best - y, x.T @ x / inputs
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor(best[None], dtype=torch.float32)
    x_, y_ = (torch.tensor(value, dtype=torch.float32) for value in (x, y))

    def loss(output, target):
        return (output[:, 0] - target).square() / 2

    # A residual of 1 leaves x as the gradient: the mean product is the Hessian.
    ones = (x_, model(x_).detach()[:, 0] - 1)
    fisher = per_sample_gradients(model, ones, tmp_path, loss=loss, dtype="float32", progress=False)
    precision = gamma * np.eye(4) + n_beta * hessian

    def kernel(s):
        products = x @ s @ x.T
        return np.outer(r, r) * products + products**2 / 2, products.diagonal() / 2 + r**2 / 2

    found = gradient_covariance(
        model,
        (x_, y_),
        gamma=gamma,
        n_beta=n_beta,
        fisher=fisher,
        loss=loss,
        pairs=60,
        groups=GROUPS,
        progress=False,
    )
    agree(found.kernel, kernel(np.linalg.inv(precision))[0], found.error())
    # A chain's own law, whose variances a finite step makes larger.
    step = 0.5 / np.linalg.eigvalsh(precision)[-1]
    known, mean = kernel(np.linalg.inv(precision - step / 4 * precision @ precision))
    relaxation = 2 / (step * gamma)
    trace = sample_losses(
        model,
        (x_, y_),
        Probe(n_beta, gamma, step),
        loss=loss,
        chains=GROUPS,
        draws=60,
        burn_in=round(10 * relaxation),
        steps_per_draw=round(relaxation),
        progress=False,
    )
    apart = trace.losses.astype(float) - mean
    by_chain = np.einsum("cdi,cdj->cij", apart, apart) / apart.shape[1]
    error = by_chain.std(0, ddof=1) / np.sqrt(GROUPS)
    agree(by_chain.mean(0), known, error)
    # The data matter: the isotropic probe has another kernel.
    with pytest.raises(AssertionError):
        agree(by_chain.mean(0), kernel(np.eye(4) / gamma)[0], error)
