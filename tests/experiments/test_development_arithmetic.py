"""The trajectory of a tiny arithmetic network, from untrained to memorized."""

import numpy as np
import pandas as pd
import pytest

from losskernel.experiments.arithmetic.statistics import alignments
from losskernel.experiments.development import arithmetic as development
from losskernel.experiments.development.figures import arithmetic as draw
from losskernel.kernel.control_variate import normalize
from losskernel.sampling.probe import Probe
from losskernel.semantics.separation import pair_auc
from losskernel.trace import LossTrace
from networks import ARITHMETIC

STEPS = [0, 40, 300]
SETTINGS = {
    "network": ARITHMETIC | {"shared_outputs": True},
    "train_share": 0.8,
    "training": {"steps": 300, "batch_size": 91, "learning_rate": 0.01, "weight_decay": 0.1},
    "checkpoints": STEPS,
    "probe_inputs": 30,
    "rise": 0.02,
    "directions": 60,
    "draws": 200,
    "sampling_seed": 3,
    "learning_coefficient": {
        "probe": {"n_beta": 20, "gamma": 1000, "step_size": 1e-4},
        "sampling": {"chains": 3, "draws": 8, "burn_in": 20, "batch_size": 20},
    },
    "neighbors": 5,
    "seed": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arithmetic")
    development.train(SETTINGS, 1, folder / "net", folder / "1.csv")
    paths = [
        [folder / f"{step}{kind}" for step in STEPS] for kind in (".nc", "-coefficient.nc", ".npz")
    ]
    development.sample(SETTINGS, 1, folder / "net", *paths)
    development.measure(
        SETTINGS, [folder / "1.csv"], *paths, folder / "table.csv", folder / "maps.npz"
    )
    return folder


@pytest.fixture(scope="module")
def table(folder):
    return pd.read_csv(folder / "table.csv").set_index("step")


def test_accuracies_at_each_checkpoint(table):
    assert list(table.index) == STEPS
    assert table["train_accuracy"].iloc[0] < 0.5 and table["train_accuracy"].iloc[-1] == 1
    assert table["train_loss"].is_monotonic_decreasing
    both = table[["train_accuracy_addition", "train_accuracy_division"]].mean(axis=1)
    np.testing.assert_allclose(both, table["train_accuracy"], atol=0.05)


def test_gamma_is_that_of_the_rise_at_every_checkpoint(folder, table):
    for step in STEPS:
        trace = LossTrace.load(folder / f"{step}.nc")
        rise = trace.losses.mean() - trace.initial_loss.mean()
        assert table.loc[step, "rise"] == pytest.approx(rise, abs=1e-5)
        assert table.loc[step, "gamma"] == Probe.read(trace.attributes["probe"]).gamma
    assert table["rise"].iloc[-1] == pytest.approx(SETTINGS["rise"], rel=0.5)
    assert table["gamma"].nunique() == len(STEPS)


def test_the_limit_and_the_activations_are_those_of_the_checkpoint(folder, table):
    for step in STEPS:
        with np.load(folder / f"{step}.npz") as stored:
            exact = dict(stored)
        trace = LossTrace.load(folder / f"{step}.nc")
        auc = pair_auc(normalize(exact.pop("gram")), trace.coordinate("task"))
        assert table.loc[step, "limit_auc_R"] == pytest.approx(auc)
        found = alignments(trace, exact)
        for layer in exact:
            assert table.loc[step, f"cka_{layer}"] == pytest.approx(found[f"cka_{layer}"])


def test_the_learning_coefficient_is_that_of_its_own_traces(folder, table):
    for step in STEPS:
        trace = LossTrace.load(folder / f"{step}-coefficient.nc")
        rise = trace.losses.mean() - trace.initial_loss.mean()
        assert table.loc[step, "learning_coefficient"] == pytest.approx(20 * rise, rel=1e-3)
        assert table.loc[step, "coefficient_rise"] == pytest.approx(rise, rel=1e-3)
        assert trace.attributes["step"] == step
    # Away from a minimum the chains go downhill; around one they can only rise.
    assert table["learning_coefficient"].iloc[-1] > 5 * table["learning_coefficient_error"].iloc[-1]


def test_checkpoints_share_inputs_and_random_numbers(folder):
    first, last = (LossTrace.load(folder / f"{step}.nc") for step in (STEPS[0], STEPS[-1]))
    for name in ("task", "a", "b"):
        np.testing.assert_array_equal(first.coordinate(name), last.coordinate(name))
    assert first.attributes["seed"] == last.attributes["seed"] == 3
    assert first.attributes["inputs_sha256"] == last.attributes["inputs_sha256"]
    assert first.attributes["weights_sha256"] != last.attributes["weights_sha256"]


def test_a_map_at_each_checkpoint_and_the_figure(folder):
    with np.load(folder / "maps.npz") as stored:
        assert stored["steps"].tolist() == STEPS and stored["maps"].shape == (3, 30, 2)
    draw(folder / "table.csv", folder / "maps.npz", folder / "f.pdf", folder / "f.png")
    assert (folder / "f.pdf").read_bytes().startswith(b"%PDF")
