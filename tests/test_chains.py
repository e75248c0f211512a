import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from losskernel import Probe, sample_losses
from losskernel.chains import update
from losskernel.errors import ConfigError
from losskernel.probe import sgld_step

torch.manual_seed(0)
X, Y = torch.randn(12, 5), torch.arange(12) % 3
PROBE = Probe(n_beta=20, gamma=50, step_size=1e-3)


def network(width=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3))


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
    return sample_losses(model or network(), data, PROBE, **settings | changes)


def assert_same(a, b):
    for name in ("loss", "initial_loss", "batch_loss"):
        np.testing.assert_array_equal(a.dataset[name].values, b.dataset[name].values, strict=True)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_beta", [0, 20])
def test_the_step_in_place_is_the_pure_one_to_the_bit(n_beta):
    torch.manual_seed(1)
    probe = Probe(n_beta, gamma=3, step_size=0.1)
    weights, gradient, noise = torch.randn(3, 2, 999)
    center = torch.randn(999)
    expected = sgld_step(weights, center, gradient if n_beta else 0 * gradient, noise, probe)
    update(weights, center, gradient if n_beta else None, noise, probe)
    assert torch.equal(weights, expected)


@pytest.mark.parametrize(
    "changes",
    [{"workers": 2}, {"workers": 3}, {"workers": 9}, {"device": ["cpu", "cpu"]}],
    ids=["2 workers", "3 workers", "more workers than chains", "2 devices"],
)
def test_sharing_the_chains_out_changes_nothing(changes):
    alone, shared = sample(workers=1), sample(**changes)
    assert_same(shared, alone)
    assert shared.attributes["workers"] == min(changes.get("workers", 2), 5)
    assert np.ptp(alone.losses, axis=1).min() > 0


def test_workers_compute_in_threads_of_their_own():
    seen = set()

    def loss(output, target):
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return nn.functional.cross_entropy(output, target, reduction="none")

    before = torch.get_num_threads(), threading.active_count()
    sample(loss=loss, workers=2)
    names = {name for name, _ in seen}
    assert len(names) == 2 and threading.main_thread().name not in names
    assert {count for _, count in seen} == {1}
    assert (torch.get_num_threads(), threading.active_count()) == before


def test_the_number_of_threads_elsewhere_is_left_as_it_was(two_threads):
    sample(workers=2)
    found = []
    for _ in range(2):  # a thread that starts afterwards takes over the process's number
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert found == [2, 2] and torch.get_num_threads() == 2


@pytest.mark.parametrize("first", [1, 3])
def test_a_journal_continues_with_another_number_of_workers(tmp_path, first):
    whole = sample(draws=7)
    for draws, workers in ((2, first), (5, 2), (7, 1)):
        found = sample(draws=draws, workers=workers, journal=tmp_path)
    assert_same(found, whole)


def test_diverged_chains_of_every_worker_stop(tmp_path):
    def outside(output, target):
        losses = nn.functional.cross_entropy(output, target, reduction="none")
        return torch.where(losses.mean() > 1.18, torch.nan, losses)

    settings = {"loss": outside, "chains": 6, "draws": 12, "burn_in": 0, "seed": 1}
    alone = sample(**settings, workers=1)
    assert 0 < alone.diverged.sum() < 6
    assert_same(sample(**settings, workers=2), alone)
    for draws in (3, 12):
        resumed = sample(**settings | {"draws": draws}, workers=4, journal=tmp_path)
    assert_same(resumed, alone)


def test_an_error_in_a_worker_reaches_the_caller():
    class LossError(Exception):
        pass

    main = threading.get_ident()

    def loss(output, target):
        if threading.get_ident() != main and len(target) == 5:
            raise LossError("in a minibatch")
        return nn.functional.cross_entropy(output, target, reduction="none")

    before = threading.active_count()
    with pytest.raises(LossError, match="in a minibatch"):
        sample(loss=loss, workers=2)
    assert threading.active_count() == before


def test_by_default_chains_of_a_mid_sized_model_run_side_by_side(two_threads):
    """Whether they do depends on the model, not on the number of chains."""
    tiny, middle = network(), network(3000)  # 27,003 parameters
    assert sample(tiny, draws=1).attributes["workers"] == 1
    assert sample(middle, draws=1).attributes["workers"] == 2
    assert sample(middle, draws=1, workers=1).attributes["workers"] == 1
    assert sample(middle, data=TensorDataset(X, Y), draws=1).attributes["workers"] == 1

    seen = set()

    def loss(output, target):
        seen.add(torch.get_num_threads())
        return nn.functional.cross_entropy(output, target, reduction="none")

    sample(middle, loss=loss, draws=1, chains=1)
    assert seen == {1}
    seen.clear()
    sample(middle, loss=loss, draws=1, chains=2)
    assert seen == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, "workers = 0 must be at least 1"),
        ({"workers": 2, "device": ["cpu", "cpu"]}, "workers = 2 must be .* on several devices"),
        ({"device": []}, r"device = \[\] names no device"),
        ({"precision": "tf32"}, "'tf32' is of NVIDIA GPUs"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        sample(**changes)
