"""Split networks: what tasks share, and that nothing shared leaves nothing in common."""

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from losskernel.data.arithmetic import modular_table, probe_subset
from losskernel.experiments.arithmetic.localization import (
    SplitNetwork,
    equivalent_to_zero,
    split_masks,
    train_sparse,
)
from losskernel.experiments.arithmetic.reparametrization import Scaled, fisher_diagonal, rescaled
from losskernel.experiments.arithmetic.setup import draw, network_model
from losskernel.training.train import TrainingSettings
from networks import ARITHMETIC

NETWORK = ARITHMETIC | {"width": 8, "mlp_width": 12}
TABLE = modular_table(7, True, False)


def split(share, additive=False):
    model = network_model(NETWORK, 1)
    return model, SplitNetwork(model, split_masks(model, share), additive)


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("additive", [False, True])
def test_before_training_both_tasks_compute_what_the_network_does(share, additive):
    model, both = split(share, additive)
    order = torch.randperm(len(TABLE))  # rows of the tasks mixed
    torch.testing.assert_close(both(TABLE.inputs[order]), model(TABLE.inputs[order]))


@pytest.mark.parametrize(("share", "heads", "neurons"), [(0.0, 0, 0), (0.5, 4, 6), (1.0, 8, 12)])
def test_a_mask_shares_whole_heads_and_neurons(share, heads, neurons):
    masks = split_masks(network_model(NETWORK), share)
    assert masks["blocks.0.attention.query.weight"].sum() == heads * 8
    assert masks["blocks.0.attention.out.weight"].sum(0).tolist() == [8] * heads + [0] * (8 - heads)
    assert masks["blocks.0.mlp.up.bias"].sum() == neurons
    assert masks["embed_tokens.weight"].sum() == masks["unembed.weight"].sum() == 0


def gradients_of_tasks(model):
    found = []
    for task in (0, 1):
        model.zero_grad()
        rows = TABLE.task == task
        torch.nn.functional.cross_entropy(model(TABLE.inputs[rows]), TABLE.targets[rows]).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    return found


@pytest.mark.parametrize(("share", "common"), [(0.0, False), (0.5, True), (None, True)])
def test_only_shared_parameters_feel_both_tasks(share, common):
    _, model = split(share)
    first, second = gradients_of_tasks(model)
    assert first.abs().max() > 0 and second.abs().max() > 0
    both = (first != 0) & (second != 0)
    assert bool(both.any()) is common
    if share == 0.5:
        assert both.sum() <= model.shared_share * sum(
            p.numel() for p in model._network[0].parameters()
        )


def test_losses_of_tasks_that_share_nothing_are_independent():
    _, model = split(0.0)
    inputs = probe_subset(TABLE, 20, 0)
    losses = draw(model, inputs, 100.0, 400, 0, progress=False).losses[0]
    r = np.corrcoef(losses.T)
    across = r[:10, 10:]
    assert abs(across.mean()) < 0.1 and np.abs(across).max() < 5 / np.sqrt(400)
    assert r[:10, :10].mean() > 0.2  # a value that an untrained network has, above its noise


def test_a_strong_penalty_leaves_nothing_shared_and_a_weak_one_something():
    shares = []
    for penalty in (0.001, 100.0):
        _, model = split(None, additive=True)
        settings = TrainingSettings(steps=30, learning_rate=0.01, warmup=2)
        train_sparse(model, TABLE.inputs, TABLE.targets, settings, penalty)
        shares.append(model.shared_share)
    assert shares[0] > 0.9 and shares[1] == 0
    first, second = gradients_of_tasks(model)
    assert not ((first != 0) & (second != 0)).any()


def test_equivalence_is_two_one_sided_tests():
    values = np.array([0.01, -0.005, 0.002, 0.004])
    error = values.std(ddof=1) / 2
    upper = student.sf((0.03 - values.mean()) / error, 3)
    lower = student.sf((0.03 + values.mean()) / error, 3)
    assert equivalent_to_zero(values, 0.03) == pytest.approx(max(upper, lower))
    assert equivalent_to_zero(values + 0.05, 0.03) > 0.95


def test_rescaling_leaves_the_function_and_fisher_follows_it():
    model = network_model(NETWORK, 2).eval()
    other = rescaled(model, 4.0)
    torch.testing.assert_close(other(TABLE.inputs), model(TABLE.inputs), rtol=1e-4, atol=1e-5)
    names = ["blocks.0.mlp.up.weight", "blocks.0.mlp.down.weight"]
    first, second = (fisher_diagonal(net, TABLE, names, 0) for net in (model, other))
    torch.testing.assert_close(second[names[0]] * 16, first[names[0]], rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(second[names[1]] / 16, first[names[1]], rtol=1e-3, atol=1e-9)


def test_a_scaled_network_moves_its_weights_by_scale_times_offset():
    model = network_model(NETWORK, 2).eval()
    name = "blocks.0.mlp.up.bias"
    scaled = Scaled(model, {name: torch.full((12,), 3.0)})
    torch.testing.assert_close(scaled(TABLE.inputs), model(TABLE.inputs))
    with torch.no_grad():
        scaled.offsets[0] += 0.5
        moved = scaled(TABLE.inputs)
        model.blocks[0].mlp.up.bias += 1.5
    torch.testing.assert_close(moved, model(TABLE.inputs))
    assert [tuple(p.shape) for p in scaled.parameters()] == [(12,)]
