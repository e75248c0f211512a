import json

import numpy as np
import pytest
import torch
from torch import nn

from losskernel import Probe, sample_losses
from losskernel.errors import TraceError
from losskernel.experiments import precision
from losskernel.experiments.precision_statistics import compare_precisions

torch.manual_seed(0)
X, Y = torch.randn(20, 5), torch.arange(20) % 3


def sample(eval_precision=None, probe=None, **options):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    return sample_losses(
        model,
        (X, Y),
        probe or Probe(n_beta=20, gamma=50, step_size=1e-3),
        eval_precision=eval_precision,
        engine="sequential",
        **{"chains": 2, "draws": 30, "burn_in": 3, "batch_size": 5, "progress": False} | options,
    )


def test_draws_do_not_depend_on_the_precision_of_the_losses():
    full, half = sample(), sample("bfloat16")
    assert np.array_equal(full.dataset["batch_loss"], half.dataset["batch_loss"])
    assert half.attributes["eval_precision"] == "bfloat16"
    assert "eval_precision" not in full.attributes
    assert not np.array_equal(full.losses, half.losses)
    np.testing.assert_allclose(full.losses, half.losses, atol=0.1)  # 8 bits, logits of order 1
    gradients_too = sample(precision="bfloat16")
    assert not np.array_equal(full.dataset["batch_loss"], gradients_too.dataset["batch_loss"])


def test_a_precision_compared_with_itself_changes_nothing():
    found = compare_precisions(sample(), sample("float32"))
    assert found["cka_K"] == pytest.approx(1) == found["cka_R"]
    assert found["rounding_share"] == 0 == found["mean_shift"] and found["allowed"]
    assert found["cka_halves"] < 1
    assert (found["chains"], found["draws"], found["inputs"]) == (2, 30, 20)


def test_whether_rounding_is_allowed_depends_on_how_far_the_losses_move():
    """Rounding is the same at any localization; what it hides is not."""
    loose = compare_precisions(sample(), sample("bfloat16"), threshold=0.9)
    tight = Probe(n_beta=20, gamma=5e8, step_size=1e-9)
    near = compare_precisions(sample(probe=tight), sample("bfloat16", tight), threshold=0.9)
    assert loose["precision"] == "bfloat16" and loose["reference_precision"] == "float32"
    assert loose["allowed"] and not near["allowed"]
    assert loose["rounding_share"] < 0.01 < 0.5 < near["rounding_share"]
    assert loose["cka_R_error"] < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "differ in seed"),
        ({"probe": Probe(20, 51, 1e-3)}, "differ in probe"),
        ({"draws": 29}, "not of the same draws"),
        ({"batch_size": 6}, "not of the same draws"),
        ({"precision": "bfloat16"}, "differ in precision"),
    ],
)
def test_traces_of_other_draws_are_refused(options, message):
    with pytest.raises(TraceError, match=message):
        compare_precisions(sample(), sample(**options))


def test_the_command_compares_saved_traces(tmp_path):
    sample().save(tmp_path / "float32.nc")
    sample("bfloat16").save(tmp_path / "bfloat16.nc")
    output = tmp_path / "precision.json"
    precision.compare(tmp_path / "float32.nc", [tmp_path / "bfloat16.nc"], output, 0.9, 5)
    found = json.loads(output.read_text())
    (row,) = found["precisions"]
    assert row["precision"] == "bfloat16" and row["threshold"] == 0.9 and row["allowed"] is True
    assert found["trace"]["threads"] >= 1 and found["trace"]["precision"] == "float32"
