import numpy as np
import pytest
import torch

from losskernel.errors import TraceError
from losskernel.kernel.learning_coefficient import local_learning_coefficient
from losskernel.sampling.probe import Probe
from losskernel.sampling.sample import sample_losses
from networks import Line


def test_the_formula_and_its_error_over_chains():
    losses = np.array([[[1.0, 3.0], [2.0, 4.0]], [[2.0, 4.0], [3.0, 5.0]]])  # means 2.5 and 3.5
    value, error = local_learning_coefficient(losses, np.array([1.0, 2.0]), 10)
    assert value == pytest.approx(10 * (3.0 - 1.5))
    assert error == pytest.approx(10 * np.std([2.5, 3.5], ddof=1) / np.sqrt(2))
    assert np.isnan(local_learning_coefficient(losses[:1], np.array([1.0, 2.0]), 10)[1])


def test_half_the_number_of_weights_where_the_loss_is_quadratic():
    """A regular model has lambda = d / 2; localized, sum_i of n_beta h / (n_beta h + gamma) / 2."""
    weights, n, n_beta, gamma = 6, 60, 500.0, 20.0
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, weights))
    hessian = np.linalg.eigvalsh(rows.T @ rows / n)

    data = (torch.tensor(rows, dtype=torch.float32), torch.zeros(n))
    precision = n_beta * hessian + gamma
    step = 0.1 / precision.max()
    trace = sample_losses(
        Line(weights),
        data,
        Probe(n_beta, gamma, step),
        loss=lambda output, target: 0.5 * (output - target) ** 2,
        chains=4,
        draws=150,
        burn_in=60,
        steps_per_draw=4,
        batch_size=n,
        engine="batched",
        progress=False,
    )
    found, error = local_learning_coefficient(trace.losses, trace.initial_loss, n_beta)
    # The step size multiplies the variance along a direction by 1 / (1 - eps p / 4).
    expected = 0.5 * np.sum(n_beta * hessian / precision / (1 - step * precision / 4))
    assert expected == pytest.approx(weights / 2, rel=0.1)
    assert abs(found - expected) < 4 * error and error < 0.1 * expected


@pytest.mark.parametrize(
    ("losses", "initial", "n_beta", "message"),
    [
        (np.ones((2, 3)), np.ones(3), 1, "are not"),
        (np.ones((2, 3, 4)), np.ones(3), 1, "are not"),
        (np.ones((2, 3, 4)), np.ones(4), 0, "n_beta is 0"),
    ],
)
def test_what_cannot_be_measured(losses, initial, n_beta, message):
    with pytest.raises(TraceError, match=message):
        local_learning_coefficient(losses, initial, n_beta)
