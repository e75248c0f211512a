import json
from pathlib import Path

import numpy as np
import pytest
import torch

from losskernel import LossTrace, Probe, gradient_covariance, sample_losses
from losskernel.cli import main
from losskernel.gradients.linear_response import gram
from losskernel.gradients.per_sample import per_sample_gradients

MODEL = """
import torch

def build():
    torch.manual_seed(0)
    layers = torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    return torch.nn.Sequential(*layers)
"""
RNG = np.random.default_rng(0)
ARRAYS = {"inputs": RNG.standard_normal((12, 5)).astype(np.float32), "targets": np.arange(12) % 3}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MODEL)
    np.savez("data.npz", **ARRAYS, label=np.array(list("abcdefghijkl")), R=np.arange(12))
    np.savez("long.npz", **ARRAYS, label=np.arange(3))
    np.savez("other.npz", x=ARRAYS["inputs"])
    Path("no.npz").write_text("no archive")
    return tmp_path


def run(*options, inputs="data.npz"):
    given = ["--model", "mine.py:build", "--inputs", inputs, "--output", "trace.nc", "--seed", "3"]
    return main(["trace", "sample", *given, *map(str, options)])


def own():
    scope: dict = {}
    exec(MODEL, scope)
    return scope["build"](), tuple(torch.as_tensor(ARRAYS[key]) for key in ("inputs", "targets"))


def test_draws_of_a_model_of_ones_own(folder):
    assert run("--gamma", 100, "--draws", 20, "--chains", 2, "--journal", "journal") == 0
    found = LossTrace.load("trace.nc")
    probe, options = Probe(gamma=100), {"draws": 20, "chains": 2, "seed": 3, "progress": False}
    same = sample_losses(*own(), probe, **options)
    assert np.array_equal(found.losses, same.losses)
    assert "".join(found.coordinate("label")) == "abcdefghijkl"
    assert run("--gamma", 100, "--draws", 30, "--chains", 2, "--journal", "journal") == 0
    assert LossTrace.load("trace.nc").attributes["resumed_draws"] == 20


def test_a_pilot_and_a_chain(folder, caplog):
    with caplog.at_level("INFO", "losskernel"):
        assert run("--rise", 0.05, "--draws", 4) == 0
    probe = json.loads(LossTrace.load("trace.nc").attributes["probe"])
    assert probe["n_beta"] == 0 and "(target 0.05)" in caplog.text
    chain = ("--n-beta", 10, "--gamma", 100, "--step-size", 1e-3, "--burn-in", 2, "--draws", 4)
    assert run(*chain) == 0
    probe = json.loads(LossTrace.load("trace.nc").attributes["probe"])
    assert probe == {"n_beta": 10, "gamma": 100, "step_size": 1e-3}


def test_the_kernel_by_gradients(folder, caplog):
    options = "--model mine.py:build --inputs data.npz --gamma 50 --pairs 8 --groups 4 --seed 3"
    with caplog.at_level("INFO", "losskernel"):
        assert main(["kernel", *options.split(), "--output", "k.npz"]) == 0
    settings = {"gamma": 50, "pairs": 8, "groups": 4, "seed": 3, "progress": False}
    expected = gradient_covariance(*own(), **settings)
    with np.load("k.npz") as stored:
        assert np.array_equal(stored["K"], expected.kernel)
        assert np.array_equal(stored["R_error"], expected.error(of="correlation"))
        assert "".join(stored["label"]) == "abcdefghijkl"
    assert f"linear share {expected.linear_share:.2f}" in caplog.text
    mapped = ["map", "--kernel", "k.npz", "--output", "m.html", "--neighbors", "4", "--k", "2"]
    assert main(mapped) == 0


def test_the_limit_from_gradients_to_the_kernel(folder):
    assert run("--gamma", 1e6, "--draws", 3, "--journal", "j", "--displacements") == 0
    for step in (
        "gradients --model mine.py:build --inputs data.npz --folder my.g",
        "gram --gradients my.g --output gram.npz",
        "linear --gradients my.g --displacements j --output linear.npz",
        "kernel --trace trace.nc --gram gram.npz --output limit.npz",
        "kernel --trace trace.nc --gram gram.npz --linear linear.npz --output both.npz",
    ):
        assert main(["limit", *step.split()]) == 0
    gradients = per_sample_gradients(*own(), "again", progress=False)
    with np.load("limit.npz") as limit, np.load("both.npz") as both:
        np.testing.assert_allclose(limit["K"], gram(gradients) / 1e6, rtol=1e-3, atol=1e-9)
        np.testing.assert_allclose(both["R"], limit["R"], atol=0.05)  # all but linear there


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        (("--gamma", 100, "--step-size", 1e-3), "data.npz", "step_size = 0.001 has no meaning"),
        (("--gamma", 100, "--burn-in", 5), "data.npz", "burn_in = 5 has no meaning"),
        (("--step-size", 1e-3), "data.npz", "step_size: give gamma too"),
        (("--gamma", 100, "--rise", 1), "data.npz", "rise: is for the pilot"),
        (("--gamma", 100), "other.npz", "other.npz: holds ['x']; save arrays named inputs and"),
        (("--gamma", 100), "long.npz", "long.npz: label has shape (3,) beside 12 inputs"),
        (("--gamma", 100), "no.npz", "no.npz: not an .npz archive"),
        (("--gamma", 100), "none.npz", "none.npz: "),
    ],
)
def test_what_makes_no_sense_is_one_line(folder, capsys, options, inputs, message):
    assert run(*options, inputs=inputs) == 1
    said = capsys.readouterr().err.strip()
    assert message in said and "Traceback" not in said
    assert not Path("trace.nc").exists()
