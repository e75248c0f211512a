r"""The tempered posterior as a Gaussian: its Laplace approximation with a Fisher matrix.

The probe distribution ``exp(-n_beta L(w)) N(w | w*, I / gamma)`` is close to ``N(w*, Sigma)``,
``Sigma = (gamma I + n_beta F)^-1``, where the mean loss is close to quadratic around a minimum and
F is close to its Hessian. F is of low rank here: the mean of ``g g^T`` over per-sample gradients of
m inputs at ``w*``.

*Which labels.* With labels drawn from the model's own predictions F is the Fisher matrix, which for
cross-entropy is the generalized Gauss-Newton matrix, and that is what stands for a Hessian
(:func:`drawn_labels` gives such data; :func:`fisher_targets` does so without the heavy tails that
a confident network's rare labels have). With the labels as given it is the empirical Fisher matrix,
which is no curvature: its size is that of the squared residuals, so at a network that fits its data
it nearly vanishes however sharp the minimum is (Kunstner, Balles and Hennig 2019,
arXiv:1905.12558). The former is right, the latter is for comparison.

With ``U`` the ``(m, parameter)`` gradients over ``sqrt(m)`` and ``U U^T = V diag(s) V^T``, ::

    sqrt(gamma) Sigma^(1/2) = I - U^T V diag((1 - (1 + n_beta s / gamma)^(-1/2)) / s) V^T U,

the symmetric square root: two products with U, and close to the identity where the data do not
matter, so that draws share their noise with those of the isotropic probe.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from losskernel.errors import ConfigError, TraceError
from losskernel.gradients.linear_response import gram
from losskernel.gradients.per_sample import Gradients
from losskernel.gradients.sketch import Fold
from losskernel.sampling.inputs import Inputs
from losskernel.sampling.parameters import FlatLayout
from losskernel.sampling.sample import Data
from losskernel.seeds import numpy_generator

_STIFFEST = 1e6  # float32 products of gradients tell eigenvalues that much smaller than the largest


class Laplace:
    """``N(w*, Sigma)`` with ``Sigma = (gamma I + n_beta F)^-1``.

    Args:
        gradients: stored per-sample gradients of the training data, or of a part of them, at the
            trained weights, for the parameters that are to be perturbed.
        gamma: localization, 1 / weight^2.
        n_beta: weight of the mean loss.
        progress: show a progress bar.

    Raises:
        ConfigError: gamma is not above 0, or n_beta is negative or larger than the rounding of
            gradients allows.
    """

    def __init__(self, gradients: Gradients, gamma: float, n_beta: float, progress: bool = True):
        if not (math.isfinite(gamma) and gamma > 0):
            raise ConfigError(f"gamma = {gamma} must be a finite number above 0")
        if not (math.isfinite(n_beta) and n_beta >= 0):
            raise ConfigError(f"n_beta = {n_beta} must be a finite number of at least 0")
        self.gamma, self.n_beta, self.gradients = gamma, n_beta, gradients
        products = gram(gradients, progress=progress) / len(gradients)
        values, vectors = np.linalg.eigh(products)
        if (stiffness := n_beta * values[-1] / gamma) > _STIFFEST:
            raise ConfigError(
                f"n_beta = {n_beta:g}: times the largest eigenvalue of the Fisher matrix over "
                f"gamma it is {stiffness:.1g}, and above {_STIFFEST:g} rounding rules the draws; "
                "lower n_beta or raise gamma"
            )
        # What rounding leaves of directions that the gradients do not span has no inverse.
        kept = values > values[-1] * 1e-10
        s, v = values[kept], vectors[:, kept]
        shrunk = (1 - 1 / np.sqrt(1 + n_beta * s / gamma)) / s
        self._inner = (v * shrunk) @ v.T
        self._scale = gradients.scale / math.sqrt(len(gradients))  # of a stored row, to one of U
        self.eigenvalues = s[::-1]

    def displacement(self, z: Tensor) -> Tensor:
        """``Sigma^(1/2) z`` of ``(..., parameter)``; draws if z is standard normal."""
        vectors = z.double().cpu().numpy()
        inner = np.zeros((*vectors.shape[:-1], len(self.gradients)))
        for part, rows in self.gradients.blocks():
            inner += vectors[..., part] @ rows.T.astype(np.float64)
        inner = self._scale * ((self._scale * inner) @ self._inner)
        moved = vectors.copy()
        for part, rows in self.gradients.blocks():
            moved[..., part] -= inner @ rows
        return torch.from_numpy(moved / math.sqrt(self.gamma)).to(z)

    def folded(self, layout: FlatLayout, fold: Fold) -> Folded:
        """What applies Sigma to folded gradients of the same parameters.

        Raises:
            TraceError: the stored gradients are of other parameters.
        """
        stored = self.gradients
        if list(stored.names) != layout.names or [*map(tuple, layout.strides)] != [*stored.strides]:
            raise TraceError(
                f"{stored.folder}: gradients of other parameters, or in another memory format, "
                "than are perturbed; compute them for the same model and parameters"
            )
        rows = torch.zeros(len(stored), fold.width)
        step = max(1, 2**26 // stored.size)
        for start in range(0, len(stored), step):
            part = torch.from_numpy(stored.rows[start : start + step].astype(np.float32))
            fold.add_rows(rows[start : start + step], part)
        return Folded(rows, self._scale[:, None] * self._inner * self._scale)


class Folded:
    """``sqrt(gamma) Sigma^(1/2)`` acting on folded gradients, ``(input, column)``.

    Exact where nothing is folded. In a sketch the products of gradients with those of F have the
    sketch's noise, whose square adds a share of about ``m / width`` to what F takes away.
    """

    def __init__(self, rows: Tensor, inner: np.ndarray):
        self._rows, self._inner = rows, torch.from_numpy(inner)

    def __call__(self, gradients: Tensor) -> Tensor:
        rows = self._rows.to(gradients.device)
        products = (gradients @ rows.T).double() @ self._inner.to(gradients.device)
        return gradients - products.to(gradients.dtype) @ rows


@torch.no_grad()
def drawn_labels(model: nn.Module, data: Data, seed: int = 0) -> Data:
    """The inputs with labels drawn from what the model predicts, for the Fisher matrix.

    Args:
        model: gives logits ``(batch, class)``; evaluated as it stands, so put it in evaluation
            mode.
        data: ``(inputs, targets)`` tensors; the targets are not used.
        seed: of the labels.

    Raises:
        ConfigError: the data are no tensors.
    """
    if not isinstance(data, (tuple, list)):
        raise ConfigError("data: labels are drawn for tensors (inputs, targets); pass these")
    logits = torch.cat([model(x) for x, _ in Inputs(data).blocks(256)])
    below = logits.double().softmax(1).cumsum(1)
    uniform = torch.from_numpy(numpy_generator(seed, "labels").random(len(logits)))
    labels = torch.searchsorted(below, uniform[:, None].contiguous()).squeeze(1)
    return data[0], labels.clamp_max(logits.shape[1] - 1)


@torch.no_grad()
def fisher_targets(model: nn.Module, data: Data, repeats: int = 1, seed: int = 0) -> Data:
    r"""Inputs with targets whose gradients make up the Fisher matrix, for confident networks too.

    Where the prediction p is nearly certain, a drawn label is nearly always the same, and the
    Fisher matrix is made up by rare ones with large gradients. Here the class c is drawn with
    probability ``q_c`` in proportion to ``p_c |p - e_c|^2`` and its gradient weighted by
    ``k = sqrt(p_c / q_c)``: the mean product is the same, and every row has the squared length
    ``1 - |p|^2`` in the logits. As :func:`losskernel.sampling.sample.cross_entropy` has the
    gradient ``p - t`` in the logits for class probabilities t, such a row, or its negative, is that
    of ``t = p -+ k (p - e_c)``. Inputs of which a t is no probability, none of them answered with
    confidence, have labels drawn from p.

    Args:
        model, data, seed: as for :func:`drawn_labels`.
        repeats: draws an input, ``(repeats * input)`` rows in all.

    Raises:
        ConfigError: the data are no tensors.
    """
    if not isinstance(data, (tuple, list)):
        raise ConfigError("data: labels are drawn for tensors (inputs, targets); pass these")
    p = torch.cat([model(x) for x, _ in Inputs(data).blocks(256)]).double().softmax(1)
    p = p.repeat(repeats, 1)
    squares = p.square()
    lengths = ((1 - p).square() + squares.sum(1, keepdim=True) - squares).clamp_min(0)
    mean = (p * lengths).sum(1, keepdim=True)  # 1 - |p|^2, to more digits
    factor = (mean / lengths).sqrt()
    served = ((factor <= 1) | (factor * (1 - p) <= p)).all(1, keepdim=True)
    below = torch.where(served, p * lengths, p).cumsum(1)
    uniform = torch.from_numpy(numpy_generator(seed, "labels").random(len(p)))[:, None]
    drawn = torch.searchsorted(below, uniform * below[:, -1:]).clamp_max(p.shape[1] - 1)
    rows = p.scatter_add(1, drawn, torch.full_like(uniform, -1))
    length = torch.where(served, mean.sqrt(), lengths.gather(1, drawn).sqrt())
    sign = torch.where(served & (factor.gather(1, drawn) > 1), -1, 1)
    t = p - sign * length * torch.nn.functional.normalize(rows)
    t = t.clamp_min(0)  # rounding
    return data[0].repeat(repeats, *[1] * (data[0].ndim - 1)), (t / t.sum(1, keepdim=True)).float()
