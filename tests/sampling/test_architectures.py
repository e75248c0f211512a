"""Draws, Gram matrix and resumption on small networks of the kinds that people have."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losskernel import Probe, sample_losses
from losskernel.gradients.linear_response import gram
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.sampling.parameters import FlatLayout, select_parameters
from losskernel.sampling.sample import cross_entropy
from losskernel.seeds import fill_draw

INPUTS, CLASSES = 8, 4
PROBE = Probe(gamma=1e5)  # so narrow that a loss is linear in the weights to some percent


class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.places = nn.Parameter(0.1 * torch.randn(1, 4, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.block(self.patches(x).flatten(2).mT + self.places).mean(1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.relu(x + self.body(x)).mean((2, 3)))


class LanguageModel(nn.Module):
    """Causal attention; logits of every next token."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.block(self.embed(tokens), mask, is_causal=True))


class LowRank(nn.Module):
    """A frozen layer with a trained update of rank 2."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(192, CLASSES).requires_grad_(False)
        self.down, self.up = nn.Linear(192, 2, bias=False), nn.Linear(2, CLASSES, bias=False)

    def forward(self, x):
        return self.base(x.flatten(1)) + self.up(self.down(x.flatten(1)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.gru = nn.Embedding(9, 6), nn.GRU(6, 7, batch_first=True)
        self.head = nn.Linear(7, CLASSES)

    def forward(self, tokens):
        return self.head(self.gru(self.embed(tokens))[0][:, -1])


def next_tokens(output, tokens):
    return F.cross_entropy(output[:, :-1].mT, tokens[:, 1:], reduction="none").mean(1)


def case(kind):
    torch.manual_seed(0)
    model = kind()
    images, tokens = torch.randn(INPUTS, 3, 8, 8), torch.randint(0, 9, (INPUTS, 5))
    x = tokens if kind in (LanguageModel, Recurrent) else images
    if kind is Residual:
        model(3 * x + 1)  # running statistics of its own
    loss = next_tokens if kind is LanguageModel else cross_entropy
    return model, (x, tokens if kind is LanguageModel else torch.arange(INPUTS) % CLASSES), loss


@pytest.mark.parametrize("engine", ["auto", "sequential"])
@pytest.mark.parametrize("kind", [VisionTransformer, Residual, LanguageModel, LowRank, Recurrent])
def test_draws_gradients_and_resumption(tmp_path, kind, engine):
    model, (x, y), loss = case(kind)
    options = {"loss": loss, "engine": engine, "progress": False}
    settings = {"chains": 1, "seed": 5, **options}
    trace = sample_losses(model, (x, y), PROBE, draws=6, **settings)
    for draws in (2, 6):
        resumed = sample_losses(
            model, (x, y), PROBE, draws=draws, journal=tmp_path / "j", **settings
        )
    np.testing.assert_array_equal(resumed.losses, trace.losses)

    # By hand: a copy in evaluation mode, its weights moved by the draw's own noise.
    plain = copy.deepcopy(model).eval()
    names = select_parameters(plain)
    assert len(names) == (2 if kind is LowRank else len(list(plain.parameters())))
    parameters = dict(plain.named_parameters())
    layout = FlatLayout(plain, names)
    center = layout.flatten({name: p.detach() for name, p in parameters.items()})
    rows = []
    for i in range(INPUTS):
        value = loss(plain(x[i : i + 1]), y[i : i + 1])[0]
        grads = torch.autograd.grad(value, [parameters[name] for name in names])
        rows.append(torch.cat([part.flatten() for part in grads]))
    rows = torch.stack(rows)
    initial = loss(plain(x), y).detach()
    noise = torch.empty_like(center)
    for draw in range(6):
        fill_draw(noise, torch.Generator(), 5, 0, draw)
        moved = layout.views(center + noise * PROBE.gamma**-0.5)
        with torch.no_grad():
            expected = loss(torch.func.functional_call(plain, moved, (x,)), y)
        np.testing.assert_allclose(trace.losses[0, draw], expected, rtol=1e-5, atol=2e-6)
        linear = rows @ noise * PROBE.gamma**-0.5
        error = (expected - initial - linear).norm() / linear.norm()
        assert error < 0.1  # closed form of the narrow probe: K is G / gamma

    kept = per_sample_gradients(model, (x, y), tmp_path / "g", dtype="float32", **options)
    products = (rows @ rows.T).numpy()
    np.testing.assert_allclose(
        gram(kept, progress=False), products, rtol=1e-3, atol=1e-4 * products.max()
    )
