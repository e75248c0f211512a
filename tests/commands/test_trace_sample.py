import json
from pathlib import Path

import numpy as np
import pytest
import torch

from losskernel import LossTrace, Probe, sample_losses
from losskernel.cli import main

MODEL = """
import torch

def build():
    torch.manual_seed(0)
    layers = torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    return torch.nn.Sequential(*layers), torch.as_tensor
"""
RNG = np.random.default_rng(0)
ARRAYS = {"inputs": RNG.standard_normal((12, 5)).astype(np.float32), "targets": np.arange(12) % 3}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MODEL)
    np.savez("data.npz", **ARRAYS, label=np.array(list("abcdefghijkl")))
    np.savez("other.npz", x=ARRAYS["inputs"])
    Path("no.npz").write_text("no archive")
    return tmp_path


def run(*options, inputs="data.npz"):
    given = ["--model", "mine.py:build", "--inputs", inputs, "--output", "trace.nc", "--seed", "3"]
    return main(["trace", "sample", *given, *map(str, options)])


def test_draws_of_a_model_of_ones_own(folder):
    assert run("--gamma", 100, "--draws", 20, "--chains", 2, "--journal", "journal") == 0
    found = LossTrace.load("trace.nc")
    scope: dict = {}
    exec(MODEL, scope)
    data = tuple(torch.as_tensor(ARRAYS[name]) for name in ("inputs", "targets"))
    probe, options = Probe(gamma=100), {"draws": 20, "chains": 2, "seed": 3, "progress": False}
    same = sample_losses(scope["build"]()[0], data, probe, **options)
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


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        (("--gamma", 100, "--step-size", 1e-3), "data.npz", "step_size = 0.001 has no meaning"),
        (("--gamma", 100, "--burn-in", 5), "data.npz", "burn_in = 5 has no meaning"),
        (("--step-size", 1e-3), "data.npz", "step_size: give gamma too"),
        (("--gamma", 100, "--rise", 1), "data.npz", "rise: is for the pilot"),
        (("--gamma", 100), "other.npz", "other.npz: holds ['x']; save arrays named inputs and"),
        (("--gamma", 100), "no.npz", "no.npz: not an .npz archive"),
        (("--gamma", 100), "none.npz", "none.npz: "),
    ],
)
def test_what_makes_no_sense_is_one_line(folder, capsys, options, inputs, message):
    assert run(*options, inputs=inputs) == 1
    said = capsys.readouterr().err.strip()
    assert message in said and "Traceback" not in said
    assert not Path("trace.nc").exists()
