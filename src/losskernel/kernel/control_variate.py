"""The kernel of the linear parts of the losses, and that kernel as a control variate.

What :mod:`losskernel.gradients.linear_response` computes from a model is used here: the Gram matrix
of the loss gradients, and the linear part of every loss at every draw. Only arrays come in.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from losskernel.errors import ConfigError, TraceError
from losskernel.kernel.covariance import covariance
from losskernel.sampling.probe import FreeChain, Probe


def limit_kernel(gram: ArrayLike, probe: Probe | FreeChain) -> np.ndarray:
    r"""``Cov(a_i, a_j)`` under the probe, ``(input, input)``: the linear loss kernel.

    Without the loss (``n_beta = 0``) the displacement is normal with variance ``v``, that of
    :attr:`losskernel.sampling.probe.Probe.localization_variance` (``1 / gamma`` for independent
    draws), and the kernel is ``v Gamma``, exactly, with ``Gamma`` the Gram matrix of the gradients.

    With it, the mean loss of the n inputs bends the distribution. Its Hessian is taken to be the
    empirical Fisher matrix ``F = G^T G / n`` (rows of G the gradients), an approximation; its
    slope, which shifts the mean alone, is left out. In continuous time the displacement has
    precision ``gamma I + n_beta F``, and by the push-through identity ::

        K = G (gamma I + n_beta/n G^T G)^-1 G^T = Gamma (gamma I + n_beta/n Gamma)^-1.

    An eigenvector of ``Gamma`` with eigenvalue mu is thus a direction of precision
    ``p = gamma + n_beta mu / n``; a step size eps multiplies its variance by
    ``1 / (1 - eps p / 4)``. The noise of minibatches is left out: it widens the distribution.

    Args:
        gram: ``Gamma``, from :func:`losskernel.gradients.linear_response.gram`. For ``n_beta > 0``
            of the very inputs whose mean loss drives the chain, and of all perturbed parameters.
        probe: the probe, or the chain without the loss.

    Raises:
        ConfigError: ``gamma`` is 0 (there is no stationary law), or a direction has ``eps p >= 4``.
    """
    gram = np.asarray(gram, np.float64)
    if probe.gamma == 0:
        raise ConfigError("probe: gamma = 0 has no linear limit; choose it above 0")
    if probe.n_beta == 0:
        return gram * probe.localization_variance
    eigenvalues, vectors = np.linalg.eigh(gram)
    eigenvalues = eigenvalues.clip(0)  # rounding leaves those that vanish on either side of 0
    precision = probe.gamma + probe.n_beta / len(gram) * eigenvalues
    if probe.step_size * precision[-1] >= 4:
        raise ConfigError(
            f"probe: step_size * precision = {probe.step_size * precision[-1]:g} in the steepest "
            "direction of the empirical Fisher matrix; from 4 on the linear chain is unstable: "
            "lower step_size or n_beta"
        )
    variance = 1 / (precision * (1 - probe.step_size * precision / 4))
    return (vectors * (eigenvalues * variance)) @ vectors.T


def control_variate_kernel(
    losses: ArrayLike, linear: ArrayLike, known: ArrayLike, center: str = "pooled"
) -> np.ndarray:
    """The loss kernel with the sampling noise of the linear parts taken out, ``(input, input)``.

    With ``l = a + r`` the covariance of the losses is ``Cov(a, a) + Cov(a, r) + Cov(r, a) +
    Cov(r, r)``; the first term is replaced by its known value and the others are estimated. Since
    the estimates add up as the covariances do, that is ::

        K_cv = K + (known - Cov(a, a)),    K and Cov(a, a) estimated from the same draws.

    Its expectation is that of the plain K, if ``known`` is the covariance of ``linear``: exactly so
    for ``n_beta = 0``, and up to the error of the empirical Fisher matrix for ``n_beta > 0``
    (:func:`limit_kernel`). It need not be positive semi-definite.

    Args:
        losses: ``(chain, draw, input)`` or ``(draw, input)``.
        linear: linear parts at the same draws, of the same shape.
        known: their exact covariance, ``(input, input)``.
        center: as for :func:`losskernel.kernel.covariance.deviations`.

    Raises:
        TraceError: the shapes do not fit.
    """
    if np.shape(losses) != np.shape(linear):
        raise TraceError(
            f"linear part: shape {np.shape(linear)} is not that of the losses, {np.shape(losses)}; "
            "take both from the same draws and inputs"
        )
    inputs = np.shape(losses)[-1]
    if np.shape(known) != (inputs, inputs):
        raise TraceError(
            f"known covariance: shape {np.shape(known)} is not ({inputs}, {inputs}), one row an "
            "input; take the Gram matrix from the same inputs"
        )
    return covariance(losses, center) + (np.asarray(known) - covariance(linear, center))


def normalize(kernel: ArrayLike) -> np.ndarray:
    """``R``: a covariance matrix over its standard deviations, within [-1, 1].

    As :func:`losskernel.kernel.covariance.correlation`, for a kernel without samples: 1 on the
    diagonal, 0 in the rows and columns of inputs whose variance is not positive, as an estimate's
    may be.
    """
    kernel = np.asarray(kernel, np.float64)
    variance = np.diag(kernel)
    positive = variance > 0
    inverse = np.where(positive, np.where(positive, variance, 1) ** -0.5, 0)
    result = np.clip(kernel * np.outer(inverse, inverse), -1, 1)
    np.fill_diagonal(result, positive)
    return result
