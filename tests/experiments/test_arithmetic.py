"""The steps of experiment 1 on a tiny network, and its statistics on losses that are known."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from losskernel.data.arithmetic import ADDITION, DIVISION
from losskernel.experiments.arithmetic import analyze, figures, sample, search, statistics
from losskernel.experiments.arithmetic.setup import (
    activations,
    draw,
    gamma_of_rise,
    loss_gram,
    network_model,
    probe_inputs,
)
from losskernel.experiments.claims import BY_ID
from losskernel.experiments.comparison import stack
from losskernel.semantics.separation import pair_auc
from losskernel.trace import LossTrace
from networks import ARITHMETIC

SETTINGS = {
    "network": ARITHMETIC,
    "train_share": 0.8,
    "training": {"steps": 300, "batch_size": 91, "learning_rate": 0.01, "weight_decay": 0.5},
    "probe_inputs": 30,
    "rise": 0.05,
    "directions": 20,
    "chains": 2,
    "draws": 200,
    "untrained_draws": 100,
    "sampling_seed": 3,
    "triples": {"inputs": 12, "surrogates": 2, "permutations": 19},
    "groups": {"all": "all", "MLP": ["blocks.*.mlp.*"]},
    "gradient_groups": {"all": "all", "QKV": ["blocks.*.attention.query*"]},
    "gammas": [1e3, 1e7],
    "neighbors": 5,
    "seed": 0,
}
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arithmetic")
    for seed in SEEDS:
        weights = folder / f"{seed}.safetensors"
        sample.train(SETTINGS, seed, weights, folder / f"{seed}.json")
        sample.sample(SETTINGS, weights, seed, folder / f"{seed}.nc")
        sample.baselines(SETTINGS, weights, seed, folder / f"{seed}.npz")
    sample.curve(SETTINGS | {"draws": 60}, folder / "0.safetensors", 0, folder / "curve.csv")
    of_all = [[folder / f"{seed}{kind}" for seed in SEEDS] for kind in (".nc", ".npz", ".json")]
    analyze.measure(*of_all, SETTINGS, folder / "networks.csv")
    analyze.kernel(folder / "0.nc", SETTINGS, folder / "kernel.npz")
    return folder


@pytest.fixture(scope="module")
def networks(folder):
    return pd.read_csv(folder / "networks.csv").set_index("training_seed")


def test_gamma_follows_from_the_rise_and_the_draws_have_it(folder, networks):
    for seed in SEEDS:
        trace = LossTrace.load(folder / f"{seed}.nc")
        rise = trace.losses.mean() - trace.initial_loss.mean()
        assert networks.loc[seed, "rise"] == pytest.approx(rise, rel=1e-4)
        # 20 directions on either side, and 400 draws: each knows the rise to some 10 %.
        assert rise == pytest.approx(SETTINGS["rise"], rel=0.4)
    assert networks["gamma"].nunique() == 2


def test_measurements_are_those_of_the_trace(folder, networks):
    trace = LossTrace.load(folder / "1.nc")
    r, task = np.corrcoef(trace.losses.reshape(400, -1).T.astype(float)), trace.coordinate("task")
    assert networks.loc[1, "auc_R"] == pytest.approx(pair_auc(r, task), abs=1e-6)
    within = (task[:, None] == task) & ~np.eye(len(task), dtype=bool)
    across = task[:, None] != task
    for name, pairs in (("within", within), ("across", across)):
        # They differ by the bias alone, which is smaller than the error.
        shift = networks.loc[1, f"R_mean_{name}"] - r[pairs].mean()
        assert abs(shift) < networks.loc[1, f"R_mean_error_{name}"] < 0.1
    assert (networks["R_spread_within"] < networks["R_sd_within"]).all()
    assert networks["reliability"].between(0.3, 1).all()


def test_baselines_are_other_similarities_of_the_same_inputs(folder, networks):
    with np.load(folder / "0.npz") as stored:
        found = dict(stored)
    layers = {name for name in found if name.startswith("layer_")}
    assert layers == {
        f"layer_{name}" for name in ("embedding", "attention", "MLP", "normalized", "logits")
    }
    assert set(found) - layers == {
        *("activations", "activations_centered", "gradients_all", "gradients_QKV", "untrained")
    }
    for matrix in (found[name] for name in set(found) - layers):
        assert matrix.shape == (30, 30)
        np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-5)
    task = LossTrace.load(folder / "0.nc").coordinate("task")
    expected = pair_auc(np.abs(found["gradients_QKV"]), task)
    assert networks.loc[0, "gradients_QKV_auc_|R|"] == pytest.approx(expected)


def test_the_gram_matrix_is_that_of_the_loss_gradients(folder, tmp_path):
    model, inputs = network_model(SETTINGS["network"], 5), probe_inputs(SETTINGS, 5)
    found = loss_gram(model, inputs, ["unembed*"], tmp_path)
    assert not list(tmp_path.iterdir())
    rows = []
    for tokens, target in zip(inputs.inputs, inputs.targets, strict=True):
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(tokens[None]), target[None])
        loss.backward()
        rows.append(model.unembed.weight.grad.flatten().double())
    gradients = torch.stack(rows)
    np.testing.assert_allclose(found, gradients @ gradients.T, rtol=1e-3, atol=1e-6)


def test_activations_are_those_that_the_network_computes():
    model, inputs = network_model(SETTINGS["network"], 5), probe_inputs(SETTINGS, 5)
    found = activations(model, inputs)
    assert list(found) == ["embedding", "attention", "MLP", "normalized", "logits"]
    with torch.no_grad():
        logits = model(inputs.inputs).double()
    np.testing.assert_allclose(found["logits"], logits, atol=1e-6)
    weight = model.unembed.weight.detach().double().numpy()
    np.testing.assert_allclose(found["normalized"] @ weight.T, found["logits"], atol=1e-5)
    mlp = model.blocks[0].mlp(model.blocks[0].norm_mlp(torch.tensor(found["attention"]).float()))
    np.testing.assert_allclose(found["attention"] + mlp.detach().numpy(), found["MLP"], atol=1e-5)
    assert found["embedding"].shape == (30, 64)


def test_the_curve_ends_in_the_limit(folder):
    curve = pd.read_csv(folder / "curve.csv")
    assert list(curve["group"].unique()) == ["all", "MLP"]
    assert curve.groupby("group")["gamma"].apply(list).iloc[0] == [1e3, 1e7, np.inf]
    limits = curve[np.isinf(curve["gamma"])].set_index("group")
    with np.load(folder / "0.npz") as stored:
        task = LossTrace.load(folder / "0.nc").coordinate("task")
        expected = pair_auc(stored["gradients_all"], task)
    assert limits.loc["all", "auc_R"] == pytest.approx(expected, abs=1e-6)
    rises = curve[curve["group"] == "all"].set_index("gamma")["rise"]
    assert rises[1e3] > 100 * abs(rises[1e7])


def test_confusion_counts_pairs_below_the_quantile_across():
    """Four inputs a task; one of addition is opposed to the others, and quiet."""
    rng = np.random.default_rng(0)
    task = np.repeat([ADDITION, DIVISION], 4)
    common = rng.standard_normal((1, 4000, 2))[..., task]
    losses = common + 0.3 * rng.standard_normal((1, 4000, 8))
    losses[..., 0] = -0.01 * losses[..., 1]
    a, b = np.array([1, 2, 3, 4, 1, 2, 3, 4]), np.array([6, 6, 1, 1, 1, 1, 2, 2])
    trace = LossTrace.build(
        losses, np.zeros(8), np.zeros((1, 4000)), None, {"task": task, "a": a, "b": b}
    )
    found = statistics.confusion(trace, 7)
    assert found["confused_all"] == pytest.approx(3 / 12)  # the opposed one with its three
    assert found["confused_quiet"] == pytest.approx(3 / 6)
    # 1 + 6 = 0, 2 + 6 = 1, 3 + 1 = 4, 4 + 1 = 5 and 1, 2, 3/2 = 5, 4/2 = 2: 2/1 = 4/2.
    assert found["confused_same_answer"] == 0
    assert found["confused_same_second"] == pytest.approx(1 / 4)


def test_an_alignment_is_of_the_kernel_behind_the_draws():
    rng = np.random.default_rng(1)
    features = rng.standard_normal((12, 3))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    losses = rng.standard_normal((1, 300, 3)) @ features.T
    trace = LossTrace.build(losses, np.zeros(12), np.zeros((1, 300)))
    found = statistics.alignments(trace, {"own": features, "other": rng.standard_normal((12, 40))})
    assert found["cka_own"] == pytest.approx(1, abs=0.02)
    assert abs(found["cka_other"]) < 0.5


def test_claims_are_means_over_networks_with_their_errors(tmp_path, networks):
    table = tmp_path / "networks.csv"
    columns = {"auc_R": [0.94, 0.96], "R_mean_within": [0.1, 0.12], "R_mean_across": [0.01, 0.012]}
    networks.assign(**columns).reset_index().to_csv(table, index=False)
    analyze.claims(table, SETTINGS, tmp_path / "claims.csv")
    found = pd.read_csv(tmp_path / "claims.csv").set_index("id")
    expected = {"auc": (0.95, 0.01), "within_task": (0.099, 0.009), "cross_task": (0.011, 0.001)}
    for name, (value, error) in expected.items():
        assert found.loc[f"arithmetic.{name}", "reproduced"] == pytest.approx(value)
        assert found.loc[f"arithmetic.{name}", "spread"] == pytest.approx(error)
    rise = found.loc["arithmetic.rise", "reproduced"]
    assert rise == pytest.approx(networks["rise"].mean()) and (found["n"] == 2).all()
    assert set(found.index) == {name for name in BY_ID if name.startswith("arithmetic.")} | {
        *("triples.within_task", "activations.cka")
    }
    nulls = networks[["triples_sampling_null", "triples_permutation_null"]].mean()
    assert found.loc["triples.within_task", "null"] == pytest.approx(nulls.max())


def test_a_search_row_a_seed_and_rise_and_the_figures(folder, tmp_path):
    settings = SETTINGS | {"rises": [0.02, 0.05], "draws": 40}
    setups = (
        {"name": "chosen", "seeds": [0], "changes": {}},
        {"name": "narrow", "seeds": [0], "changes": {"network": {"width": 8}}},
    )
    for setup in setups:
        search.search(settings, setup, tmp_path / f"{setup['name']}.csv")
    stack([tmp_path / "chosen.csv", tmp_path / "narrow.csv"], tmp_path / "search.csv")
    rows = pd.read_csv(tmp_path / "search.csv")
    assert rows.groupby("setup").size().to_dict() == {"chosen": 2, "narrow": 2}
    one = rows[(rows["setup"] == "chosen") & (rows["training_seed"] == 0)].set_index("target_rise")
    assert one.loc[0.05, "gamma"] < one.loc[0.02, "gamma"]
    # The search trains as the experiment does.
    history = json.loads((folder / "0.json").read_text())
    assert one["train_accuracy"].iloc[0] == history["accuracy"]["train_accuracy_addition"] == 1
    figures.search(tmp_path / "search.csv", tmp_path / "s.pdf", tmp_path / "s.png")
    paths = [folder / name for name in ("kernel.npz", "networks.csv", "curve.csv")]
    figures.separation(*paths, tmp_path / "f.pdf", tmp_path / "f.png")
    for name in ("s", "f"):
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_draws_of_one_seed_are_paired_along_gamma():
    model, inputs = network_model(SETTINGS["network"], 0), probe_inputs(SETTINGS, 0)
    near, far = (draw(model, inputs, gamma, 40, 1, progress=False) for gamma in (1e8, 4e8))
    shifts = [trace.losses[0] - trace.initial_loss for trace in (near, far)]
    # In the linear limit half the displacement is half the change of every loss at every draw.
    np.testing.assert_allclose(shifts[1], shifts[0] / 2, atol=1e-5)


def test_a_group_alone_needs_a_smaller_gamma_for_the_same_rise(folder):
    model, inputs = network_model(SETTINGS["network"], 0), probe_inputs(SETTINGS, 0)
    model.load_state_dict(load_file(folder / "0.safetensors"))
    whole, part = (
        gamma_of_rise(model, inputs, 0.05, 8, 0, parameters) for parameters in ("all", ["embed*"])
    )
    assert part < whole
