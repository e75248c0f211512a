import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from losskernel import Probe, sample_losses
from losskernel.errors import ConfigError, LossKernelError
from losskernel.sampling.chains import update
from losskernel.sampling.probe import sgld_step
from networks import mlp
from series import assert_same

torch.manual_seed(0)
X, Y = torch.randn(12, 5), torch.arange(12) % 3
PROBE = Probe(n_beta=20, gamma=50, step_size=1e-3)


def sample(model=None, data=(X, Y), **changes):
    settings = {
        "chains": 5,
        "draws": 6,
        "burn_in": 2,
        "steps_per_draw": 2,
        "batch_size": 5,
        "engine": "sequential",
        "progress": False,
    }
    return sample_losses(model or mlp(5, 6, 3), data, PROBE, **settings | changes)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.bits
def test_the_step_in_place_is_the_pure_one_to_the_bit():
    torch.manual_seed(1)
    probe = Probe(20, gamma=3, step_size=0.1)
    weights, gradient, noise = torch.randn(3, 2, 999)
    center = torch.randn(999)
    expected = sgld_step(weights, center, gradient, noise, probe)
    update(weights, center, gradient, noise, probe)
    assert torch.equal(weights, expected)


@pytest.mark.bits
@pytest.mark.parametrize("workers", [2, 3, 9])  # of 5 chains
def test_sharing_the_chains_out_changes_nothing(workers):
    alone, shared = sample(workers=1), sample(workers=workers)
    assert_same(shared, alone)
    assert shared.attributes["workers"] == min(workers, 5)
    assert np.ptp(alone.losses, axis=1).min() > 0


@pytest.fixture
def in_threads(monkeypatch):
    """As where processes cannot be forked."""
    monkeypatch.setattr("losskernel.sampling.sample.can_fork", lambda: False)


def recording_loss(folder):
    """A cross-entropy that leaves a file named by process, thread and number of threads."""

    def loss(output, target):
        where = f"{os.getpid()},{threading.current_thread().name},{torch.get_num_threads()}"
        (folder / where).touch()
        return nn.functional.cross_entropy(output, target, reduction="none")

    return loss


@pytest.mark.bits
def test_sharing_the_chains_out_among_threads_changes_nothing(in_threads):
    assert_same(sample(workers=3), sample(workers=1))


def test_workers_compute_in_processes_of_their_own(tmp_path, two_threads):
    before = threading.active_count()
    sample(loss=recording_loss(tmp_path), workers=2)
    seen = [path.name.split(",") for path in tmp_path.iterdir()]
    processes = {process for process, _, _ in seen}
    assert len(processes) == 3 and str(os.getpid()) in processes  # this one for the initial losses
    assert {threads for process, _, threads in seen if process != str(os.getpid())} == {"1"}
    assert torch.get_num_threads() == 2 and threading.active_count() == before
    assert not multiprocessing.active_children()


def test_workers_compute_in_threads_of_their_own(tmp_path, in_threads):
    before = torch.get_num_threads(), threading.active_count()
    sample(loss=recording_loss(tmp_path), workers=2)
    seen = [path.name.split(",") for path in tmp_path.iterdir()]
    assert {process for process, _, _ in seen} == {str(os.getpid())}
    # The calling thread tries the model; all draws are made in two others.
    drawn = [entry for entry in seen if entry[1] != threading.main_thread().name]
    assert len({name for _, name, _ in drawn}) == 2
    assert {threads for _, _, threads in drawn} == {"1"}
    assert (torch.get_num_threads(), threading.active_count()) == before


def test_the_number_of_threads_elsewhere_is_left_as_it_was(two_threads, in_threads):
    sample(workers=2)
    found = []
    for _ in range(2):  # a thread that starts afterwards takes over the process's number
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert found == [2, 2] and torch.get_num_threads() == 2


@pytest.mark.bits
@pytest.mark.parametrize("first", [1, 3])
def test_a_journal_continues_with_another_number_of_workers(tmp_path, first):
    whole = sample(draws=7)
    for draws, workers in ((2, first), (5, 2), (7, 1)):
        found = sample(draws=draws, workers=workers, journal=tmp_path)
    assert_same(found, whole)


def test_diverged_chains_of_every_worker_stop(tmp_path):
    def outside(output, target):
        losses = nn.functional.cross_entropy(output, target, reduction="none")
        return torch.where(losses > 1.7, torch.nan, losses)

    settings = {"loss": outside, "chains": 6, "draws": 12, "burn_in": 0, "seed": 1}
    alone = sample(**settings, workers=1)
    assert 0 < alone.diverged.sum() < 6
    assert_same(sample(**settings, workers=2), alone)
    for draws in (3, 12):
        resumed = sample(**settings | {"draws": draws}, workers=4, journal=tmp_path)
    assert_same(resumed, alone)


class LossError(Exception):
    pass


def failing_loss(error):
    """Raises at the first minibatch, and only there: the others have another size."""

    def loss(output, target):
        if len(target) == 5:
            raise error("in a minibatch")
        return nn.functional.cross_entropy(output, target, reduction="none")

    return loss


@pytest.mark.parametrize("forked", [True, False])
def test_an_error_in_a_worker_reaches_the_caller(monkeypatch, forked):
    monkeypatch.setattr("losskernel.sampling.sample.can_fork", lambda: forked)
    before = threading.active_count()
    with pytest.raises(LossError, match="in a minibatch"):
        sample(loss=failing_loss(LossError), workers=2)
    assert threading.active_count() == before and not multiprocessing.active_children()


def test_an_error_that_cannot_leave_its_process_is_told():
    class LocalError(Exception):
        pass

    with pytest.raises(LossKernelError, match="LocalError: in a minibatch"):
        sample(loss=failing_loss(LocalError), workers=2)


def test_a_process_that_is_killed_is_told():
    def loss(output, target):
        if len(target) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(output, target, reduction="none")

    with pytest.raises(LossKernelError, match="process ended .*use workers=1"):
        sample(loss=loss, workers=2)
    assert not multiprocessing.active_children()


def test_processes_end_with_one_that_is_killed(tmp_path):
    """And free the journal's lock, though each is in the middle of a draw that takes for ever."""
    script = f"""
import os, pathlib, time, torch
from losskernel import Probe, sample_losses
from losskernel.sampling.sample import cross_entropy
def loss(output, target):
    if len(target) == 5:
        pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()
        time.sleep(600)
    return cross_entropy(output, target)
data = torch.randn(12, 5), torch.arange(12) % 3
sample_losses(torch.nn.Linear(5, 3), data, Probe(1, 1, 1e-3), loss=loss, chains=2, draws=2,
    batch_size=5, engine="sequential", workers=2, progress=False, journal={str(tmp_path / "j")!r})
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        started = wait_for(lambda: [int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()], 2)
    finally:
        parent.kill()
        parent.wait()
    ended = wait_for(lambda: [pid for pid in started if not Path(f"/proc/{pid}").exists()], 2)
    assert ended == started
    with open(tmp_path / "j" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def wait_for(found, count):
    for _ in range(3000):
        if len(found()) == count:
            return found()
        time.sleep(0.02)
    raise AssertionError(f"waited a minute for {count}, found {found()}")


def test_by_default_chains_of_a_mid_sized_model_run_side_by_side(tmp_path, two_threads):
    """Whether they do depends on the model, not on the number of chains."""
    tiny, middle = mlp(5, 6, 3), mlp(5, 3000, 3)  # 27,003 parameters
    assert sample(tiny, draws=1).attributes["workers"] == 1
    assert sample(middle, draws=1).attributes["workers"] == 2
    assert sample(middle, draws=1, workers=1).attributes["workers"] == 1
    assert sample(middle, data=TensorDataset(X, Y), draws=1).attributes["workers"] == 1

    for chains in (1, 2):
        folder = tmp_path / str(chains)
        folder.mkdir()
        sample(middle, loss=recording_loss(folder), draws=1, chains=chains)
        seen = [path.name.split(",") for path in folder.iterdir()]
        # The calling process tries the model; all draws are made in others.
        assert {threads for process, _, threads in seen if process != str(os.getpid())} == {"1"}


def test_impossible_settings():
    with pytest.raises(ConfigError, match="workers = 0 must be at least 1, and 1 on a GPU"):
        sample(workers=0)
