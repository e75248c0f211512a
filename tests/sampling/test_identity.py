"""Runs and files that do not belong together are refused, by what is computed and not by name."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from losskernel import Probe, sample_losses
from losskernel.errors import TraceError
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.sampling.sample import cross_entropy
from losskernel.trace import behave_alike, concatenate

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
PROBE = Probe(n_beta=20, gamma=500, step_size=1e-4)


class Network(nn.Module):
    """Tensors of one kind; what it computes from them depends on more."""

    def __init__(self, temperature=1.0, activation=nn.functional.relu):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.temperature, self.activation = temperature, activation

    def forward(self, x):
        return self.last(self.activation(self.first(x))) / self.temperature


SCALE = 1.0


def loss_of_a_global(output, target):
    return SCALE * cross_entropy(output, target)


def sample(model=None, data=(X, Y), **changes):
    settings = {"chains": 2, "draws": 2, "batch_size": 5, "progress": False}
    return sample_losses(model or Network(), data, PROBE, **settings | changes)


def gradients(model, folder, **options):
    return per_sample_gradients(model, (X, Y), folder, progress=False, **options)


OTHERS = [Network(1.05), Network(activation=nn.functional.gelu)]


@pytest.mark.parametrize("other", OTHERS, ids=["temperature", "activation"])
def test_another_model_with_the_same_tensors_is_refused(tmp_path, other):
    first = sample(journal=tmp_path / "journal")
    gradients(Network(), tmp_path / "gradients")
    for call in (
        lambda: sample(other, journal=tmp_path / "journal", draws=3),
        lambda: gradients(other, tmp_path / "gradients"),
        lambda: concatenate([first, sample(other, chain_ids=[5, 6])]),
    ):
        with pytest.raises(TraceError, match="comput"):
            call()
    assert sample(journal=tmp_path / "journal", draws=3).losses.shape[1] == 3


def test_a_loss_that_reads_a_global_variable_is_refused(tmp_path, monkeypatch):
    sample(loss=loss_of_a_global, journal=tmp_path / "journal")
    gradients(Network(), tmp_path / "gradients", loss=loss_of_a_global)
    monkeypatch.setitem(globals(), "SCALE", 1.01)
    with pytest.raises(TraceError, match="a loss that computes other numbers"):
        sample(loss=loss_of_a_global, journal=tmp_path / "journal")
    with pytest.raises(TraceError, match="a loss that computes other numbers"):
        gradients(Network(), tmp_path / "gradients", loss=loss_of_a_global)


def test_journals_and_gradients_from_before_it_was_kept_go_on(tmp_path):
    whole = sample(draws=4)
    sample(journal=tmp_path / "journal")
    kept = gradients(Network(), tmp_path / "gradients").rows.copy()
    for path in (tmp_path / "journal/settings.json", tmp_path / "gradients/index.json"):
        settings = json.loads(path.read_text())
        del settings["behavior"]
        path.write_text(json.dumps(settings))
    resumed = sample(journal=tmp_path / "journal", draws=4)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    np.testing.assert_array_equal(gradients(Network(), tmp_path / "gradients").rows, kept)


def test_rounding_is_not_another_model():
    told = json.loads(sample().attributes["behavior"])
    near = told | {"losses": [x * (1 + 1e-5) for x in told["losses"]]}
    assert behave_alike(json.dumps(told), json.dumps(near))
    far = told | {"gradient_norm": told["gradient_norm"] * 1.01}
    assert not behave_alike(json.dumps(told), json.dumps(far))
    assert not behave_alike(json.dumps(told), json.dumps(told | {"losses": told["losses"][1:]}))
    assert behave_alike(None, json.dumps(told))
