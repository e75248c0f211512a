"""SIGKILL at random moments: a resumed run is the uninterrupted one, to the bit and to the file."""

import json
import subprocess
import sys

# One process loads torch and forks every run that is killed: a fork starts in milliseconds. A run
# asks for more draws than it can make, so that it never ends before it is killed.
KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
import numpy as np, torch, torch._dynamo  # which the first run would import, in every fork
from safetensors import safe_open
from torch import nn
from losskernel import Probe, sample_losses

torch.set_num_threads(1)
folder, kills = Path(sys.argv[1]), int(sys.argv[2])
journal, whole = folder / "killed", folder / "whole"
CHAINS, INPUTS = 2, 30


def run(journal, draws):
    torch.manual_seed(0)
    x, y = torch.randn(INPUTS, 4), torch.arange(INPUTS) % 3
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    return sample_losses(model, (x, y), Probe(20, 10, 1e-3), chains=CHAINS, draws=draws, burn_in=5,
                         steps_per_draw=2, batch_size=7, journal=journal, displacements=True,
                         progress=False, engine="sequential")


WEIGHTS = 4 * 8 + 8 + 8 * 3 + 3
ROWS = {"losses.f32": 4 * CHAINS * INPUTS, "batch_losses.f64": 8 * CHAINS,
        "displacements.f16": 2 * CHAINS * WEIGHTS}


def rows(name):
    path = journal / name
    return path.stat().st_size // ROWS[name] if path.exists() else 0


def content(name, draws):
    return (journal / name).read_bytes()[: draws * ROWS[name]]


def state():
    path = journal / "state.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:  # raises if the file is torn
        assert torch.isfinite(file.get_tensor("weights")).all()
        return int(file.get_tensor("draws"))


rng = random.Random(0)
report = []
for kill in range(kills):
    before = state()
    kept = {name: content(name, before) for name in ROWS} if before else {}
    child = os.fork()
    if child == 0:
        run(journal, 10**6)
        os._exit(1)
    if kill % 2:  # some draws on, at any point between two of them
        target = rows("losses.f32") + rng.randrange(1, 8)
        while rows("losses.f32") < target:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "ended before it was killed"
        time.sleep(rng.uniform(0, 0.004))
    else:  # starting up: reading the journal, cutting it, burning in
        time.sleep(rng.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    after = state()
    assert after >= before, "draws are lost"
    if (journal / "settings.json").exists():
        json.loads((journal / "settings.json").read_text())
    for name in ROWS:
        # All complete draws are there, and at most the one in flight beyond them.
        assert after <= rows(name) <= after + 1, (name, after, rows(name))
        assert not before or content(name, before) == kept[name], "a saved draw has changed"
    report.append([before, after, rows("losses.f32")])

draws = state() + 3
resumed, uninterrupted = run(journal, draws), run(whole, draws)
for name in ("loss", "batch_loss", "initial_loss"):
    np.testing.assert_array_equal(resumed.dataset[name], uninterrupted.dataset[name])
assert resumed.attributes["resumed_draws"] == draws - 3
assert resumed.attributes["seconds_draws"] == draws and resumed.attributes["seconds"] > 0
for path in whole.iterdir():
    if path.name == "seconds.f64":  # the one file that tells of time
        assert (journal / path.name).stat().st_size == path.stat().st_size == 8 * draws
        continue
    assert (journal / path.name).read_bytes() == path.read_bytes(), path.name
print(json.dumps(report))
"""


def test_a_run_killed_again_and_again_is_the_run_that_was_left_alone(tmp_path):
    """Forty kills, half of them within 60 ms of the start of a run, half while it samples."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), "40"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report) == 40
    gained = [after - before for before, after, _ in report]
    assert sum(gained[1::2]) >= 20  # the runs did get on
