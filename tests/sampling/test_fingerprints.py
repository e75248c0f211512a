import functools
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from losskernel.sampling.fingerprints import loss_fingerprint
from losskernel.sampling.sample import cross_entropy


def scaled(scale):
    return lambda output, target: scale * output


class Loss(nn.Module):
    def __init__(self, smoothing):
        super().__init__()
        self.smoothing, self.weight = smoothing, torch.ones(2)

    def forward(self, output, target):
        return output

    def method(self, output, target):
        return output


def test_the_name_is_told():
    assert loss_fingerprint(cross_entropy).startswith("losskernel.sampling.sample.cross_entropy ")
    assert loss_fingerprint(nn.CrossEntropyLoss()).startswith("torch.nn.modules.loss.CrossEntropy")
    partial = functools.partial(functools.partial(cross_entropy))
    assert loss_fingerprint(partial).startswith("losskernel.sampling.sample.cross_entropy ")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda o, t: o, lambda o, t: 2 * o),
        (lambda o, t: o.sum(1), lambda o, t: o.mean(1)),
        (lambda o, t: o in {1, 2}, lambda o, t: o in {1, 3}),
        (scaled(1.0), scaled(2.0)),
        (scaled(torch.ones(2)), scaled(torch.zeros(2))),
        (scaled(np.array([1.0, 2.0])), scaled(np.array([5.0, 2.0]))),
        (scaled(np.float32(1)), scaled(np.float32(2))),
        (scaled(np.array([None])), scaled(np.array(["a"], object))),
        (scaled(Fraction(1, 2)), scaled(Fraction(1, 3))),
        (lambda o, t, k=1: o, lambda o, t, k=2: o),
        (functools.partial(cross_entropy), functools.partial(cross_entropy, target=1)),
        (Loss(0.0), Loss(0.1)),
        (Loss(0.0).forward, Loss(0.0).method),
        (Loss(0.0).method, Loss(0.1).method),
        (nn.CrossEntropyLoss(reduction="none"), nn.CrossEntropyLoss(reduction="sum")),
    ],
)
def test_losses_that_differ_are_told_apart(one, other):
    assert loss_fingerprint(one) != loss_fingerprint(other)


@pytest.mark.parametrize("make", [scaled, Loss, lambda s: functools.partial(scaled(s), target=s)])
def test_equal_losses_are_not(make):
    assert loss_fingerprint(make(0.5)) == loss_fingerprint(make(0.5))


def test_other_processes_agree():
    """Also on sets of text, whose order differs from process to process."""
    losses = (
        "[cross_entropy, nn.MSELoss(reduction='none'), "
        "eval('lambda o, t: o in {1.5, \\'a\\', \\'b\\'}')]"
    )
    code = (
        "from torch import nn; from losskernel.sampling.fingerprints import loss_fingerprint; "
        "from losskernel.sampling.sample import cross_entropy; "
        f"print(*map(loss_fingerprint, {losses}), sep='\\n')"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    digests = [line.split()[-1] for line in said.stdout.splitlines()]
    assert digests == [loss_fingerprint(loss).split()[-1] for loss in eval(losses)]


def test_a_loss_that_holds_itself():
    loss = Loss(0.0)
    loss.own = [loss]
    assert loss_fingerprint(loss) != loss_fingerprint(Loss(0.0))
