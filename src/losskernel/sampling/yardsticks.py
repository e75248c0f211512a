"""What the losses of a run are measured against: guessing, and rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from losskernel.sampling.engines import LossPerInput, _frozen_copy, _real
from losskernel.sampling.inputs import Inputs, map_tensors

_MOST_INPUTS = 64


@dataclass(frozen=True)
class Yardsticks:
    """Numbers by which :func:`losskernel.diagnostics.verdict.verdict` judges a trace.

    Attributes:
        guessing: mean loss of guessing, ``log(classes)`` nats for the default loss; None if it is
            not known.
        rounding: error of the computed loss at the trained weights by rounding, ``(input,)``: its
            difference to an evaluation in float64. NaN where it was not measured: beyond 64 evenly
            spaced inputs, or where the model cannot be evaluated in float64.
        weights: mean over weights of the variance that rounding a weight to float32 adds, in
            weight²: a twelfth of the squared distance to the next number.
    """

    guessing: float | None
    rounding: np.ndarray
    weights: float

    @property
    def attributes(self) -> dict[str, float]:
        """What a trace keeps of it beside the errors of inputs."""
        known = {} if self.guessing is None else {"guessing_loss": self.guessing}
        return {**known, "weight_rounding": self.weights}


@torch.no_grad()
def yardsticks(
    model: nn.Module,
    loss: LossPerInput,
    inputs: Inputs,
    block: int,
    center: Tensor,
    initial_loss: np.ndarray,
    logits: bool,
) -> Yardsticks:
    """Measure them, by evaluating some inputs once more, in float64.

    Args:
        model, loss: as for :func:`losskernel.sampling.sample.sample_losses`.
        inputs: those whose losses are recorded.
        block: as many as the run evaluates at once: of a model that takes no other number, such as
            one with several labels an input, the first block is evaluated.
        center: trained weights, ``(parameter,)``.
        initial_loss: losses at them as the run computes them, ``(input,)``.
        logits: whether the loss is the cross-entropy of the model's outputs.
    """
    copy = _frozen_copy(model, inputs.device, torch.float64)
    guessing, rounding = None, np.full(len(inputs), np.nan)
    spaced = np.linspace(0, len(inputs) - 1, _MOST_INPUTS).round().astype(int)
    for chosen in (np.unique(spaced), np.arange(min(block, len(inputs)))):
        try:
            x, y = map_tensors(lambda t: _real(t, torch.float64).clone(), inputs.take(chosen))
            output = copy(x)
            if logits:
                guessing = math.log(max(2, output.shape[-1]))
            exact = loss(output, y).double().cpu().numpy()
            rounding[chosen] = np.abs(initial_loss[chosen] - exact)
            break
        except Exception:  # also of a model that is written for one type of number: not known then
            continue
    _, exponent = torch.frexp(center)
    weights = torch.exp2(2.0 * (exponent.double() - 24)).mean() / 12
    return Yardsticks(guessing, rounding, float(weights))
