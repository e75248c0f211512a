import pytest
import torch
from torch import nn

from losskernel.errors import ConfigError
from losskernel.sampling.parameters import FlatLayout, select_parameters


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.unembed = nn.Linear(4, 5, bias=False)
        self.unembed.weight = self.embed.weight  # tied


NAMES = ["embed.weight", "blocks.0.weight", "blocks.0.bias", "blocks.1.weight", "blocks.1.bias"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("all", NAMES),  # the tied parameter once, under its first name
        ("blocks.*", NAMES[1:]),
        (["blocks.1.*", "embed*"], [NAMES[0], *NAMES[3:]]),
        (["!embed*"], NAMES[1:]),
        (["blocks.*", "!*.bias"], [NAMES[1], NAMES[3]]),
    ],
)
def test_patterns(patterns, expected):
    assert select_parameters(Network(), patterns) == expected


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("trainable", ["blocks.0.bias", "blocks.1.weight", "blocks.1.bias"]),
        (["!blocks.1.*"], ["blocks.0.bias"]),
        ("all", NAMES),
        (["blocks.0.*"], NAMES[1:3]),  # what is named is taken, frozen or not
    ],
)
def test_frozen_parameters_stay_unless_they_are_named(caplog, patterns, expected):
    model = Network()
    model.embed.weight.requires_grad_(False)
    model.blocks[0].weight.requires_grad_(False)
    assert select_parameters(model, patterns) == expected
    count = {"trainable": 24, "all": 60}.get(patterns if isinstance(patterns, str) else "", 4)
    said = f"{count} of 60 weights are perturbed, those that require gradients; 'all' would be all"
    assert (said in caplog.text) == (patterns in ("trainable", ["!blocks.1.*"]))


def test_a_model_that_is_frozen_whole_is_perturbed_whole(caplog):
    assert select_parameters(Network().requires_grad_(False)) == NAMES
    assert "60 of 60 weights are perturbed, as none of the model's requires" in caplog.text
    caplog.clear()
    assert select_parameters(Network()) == NAMES and not caplog.text


@pytest.mark.parametrize("patterns", ["block.*", ["blocks.*", "!unembedding*"]])
def test_a_typo_is_named(patterns):
    typo = "block\\.\\*" if patterns == "block.*" else "!unembedding\\*"
    with pytest.raises(ConfigError, match=f"pattern '{typo}' matches none"):
        select_parameters(Network(), patterns)


def test_nothing_left_is_an_error():
    with pytest.raises(ConfigError, match="selects no parameter"):
        select_parameters(Network(), ["embed*", "!embed*"])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_flat_vector_holds_every_element_once(memory_format):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 2)).requires_grad_(False)
    model = model.to(memory_format=memory_format)
    named = dict(model.named_parameters())
    layout = FlatLayout(model, list(named))
    flat = layout.flatten(named)
    assert flat.shape == (sum(p.numel() for p in named.values()),)
    views = layout.views(flat)
    for name, parameter in named.items():
        assert torch.equal(views[name], parameter)
        assert views[name].stride() == parameter.stride()  # no copy before the convolution
    flat.zero_()
    assert all((view == 0).all() for view in views.values())


def test_views_of_a_row_of_a_matrix():
    model = nn.Conv2d(3, 4, 3).requires_grad_(False).to(memory_format=torch.channels_last)
    layout = FlatLayout(model, ["weight", "bias"])
    flat = layout.flatten(dict(model.named_parameters()))
    rows = torch.stack([torch.zeros_like(flat), flat])
    assert torch.equal(layout.views(rows[1])["weight"], model.weight)
