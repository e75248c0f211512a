"""The local learning coefficient, from the same draws as the kernel."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from losskernel.errors import TraceError


def local_learning_coefficient(
    losses: ArrayLike, initial_loss: ArrayLike, n_beta: float
) -> tuple[float, float]:
    """``n beta (E[L_n(w)] - L_n(w*))`` and its standard error (Lau et al. 2023, arXiv:2308.12108).

    ``L_n`` is the mean loss over the inputs, which should be those that the chains' gradients come
    from, or a sample of them. It measures how many effective directions the loss confines at this
    temperature; under a strong localization it counts only what bends the loss more than gamma
    does, and away from a minimum it can be negative: the chains find lower losses.

    Args:
        losses: ``(chain, draw, input)``.
        initial_loss: ``(input,)`` at the center of the chains.
        n_beta: inverse temperature times the number of data points, above 0.

    Returns:
        The estimate and its standard error, the standard deviation of the chains' means over the
        square root of their number; NaN for a single chain.

    Raises:
        TraceError: shapes do not fit, or ``n_beta`` is 0.
    """
    losses, initial_loss = np.asarray(losses, float), np.asarray(initial_loss, float)
    if losses.ndim != 3 or initial_loss.shape != losses.shape[2:]:
        raise TraceError(
            f"learning coefficient: losses {losses.shape} and initial losses "
            f"{initial_loss.shape} are not (chain, draw, input) and (input,)"
        )
    if n_beta <= 0:
        raise TraceError("learning coefficient: n_beta is 0; sample with the loss in the probe")
    chains = n_beta * (losses.mean(axis=(1, 2)) - initial_loss.mean())
    error = chains.std(ddof=1) / np.sqrt(len(chains)) if len(chains) > 1 else float("nan")
    return float(chains.mean()), float(error)
