"""SIGKILL at random moments: a resumed estimate is the uninterrupted one, to the bit."""

import json
import subprocess
import sys

# One process loads torch and forks every run that is killed: a fork starts in milliseconds.
KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
import numpy as np, torch
from torch import nn
from losskernel import gradient_covariance

torch.set_num_threads(1)
folder = Path(sys.argv[1])
journal = folder / "killed"


def run(journal, pairs):
    torch.manual_seed(0)
    x, y = torch.randn(300, 4), torch.arange(300) % 3
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
    return gradient_covariance(model, (x, y), gamma=4.0, pairs=pairs, groups=4, width=100,
                               journal=journal, progress=False)


def state():
    return sorted(path.name for path in journal.glob("*")) if journal.exists() else []


whole = run(folder / "whole", 6)  # first: it imports what every run would have to
rng = random.Random(0)
seen, kills = set(), 0
while len(list(journal.glob("pair-*.npz"))) < 6:
    before = state()
    child = os.fork()
    if child == 0:
        run(journal, 6)
        os._exit(0)
    # Killed some time after it begins to write, or it might never come so far.
    deadline = time.monotonic() + 60
    while state() == before and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(rng.expovariate(1 / 0.02))
    os.kill(child, signal.SIGKILL)
    if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        kills += 1
    seen.add(tuple(state()))
found = run(journal, 6)
names = ("kernel", "linear", "left_out", "halves", "losses", "initial_losses")
print(json.dumps({
    "kills": kills,
    "states": len(seen),
    "in flight": any("draw-" in name for files in seen for name in files),
    "same": {name: bool((getattr(found, name) == getattr(whole, name)).all()) for name in names},
    "files": state() == sorted(path.name for path in (folder / "whole").glob("*")),
}))
"""


def test_killed_runs_end_in_the_same_bits(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] > 5 and report["states"] > 5 and report["in flight"]
    assert all(report["same"].values()) and report["files"]
