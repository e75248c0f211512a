import copy

import pytest
import torch
from torch import nn

from losskernel.errors import ConfigError
from losskernel.gradients.sketch import Fold
from losskernel.gradients.sources import make_source
from losskernel.models.inception_v1 import InceptionV1
from losskernel.models.transformer import ArithmeticTransformer
from losskernel.sampling.inputs import Inputs
from losskernel.sampling.parameters import select_parameters
from losskernel.sampling.sample import cross_entropy


class Convolutions(nn.Module):
    """Strides, paddings, dilation, groups, all normalizations, and a layer called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=(2, 1), dilation=(2, 1), groups=2, bias=False)
        self.group_norm = nn.GroupNorm(4, 8)
        self.point = nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 4)
        self.norm.running_mean.normal_()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.norm(self.first(x)))
        x = self.relu(self.group_norm(self.grouped(x)))
        x = self.relu(self.point(self.relu(self.point(x))))
        return self.last(x.mean((2, 3)))


class Language(nn.Module):
    """Embedding tied with the output, layer normalization, padding."""

    def __init__(self, tied=True):
        super().__init__()
        self.embed = nn.Embedding(7, 6, padding_idx=0)
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6, 6)
        self.out = nn.Linear(6, 7, bias=False)
        if tied:
            self.out.weight = self.embed.weight

    def forward(self, x):
        x = self.embed(x)
        x = x + torch.tanh(self.mix(self.norm(x)).cumsum(1))
        return self.out(x[:, -1])


class Turned(nn.Module):
    """A layer whose first axis is not the input's, with as many rows as there are inputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x):
        return torch.tanh(self.linear(x.transpose(0, 1))).mean(0)


class Loose(nn.Module):
    """A weight that is used outside its layer, and one in no layer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.linear(x) * self.scale + self.linear.weight.sum()


class Outside(nn.Module):
    """A weight of the one layer that is used outside of it too."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x):
        return self.linear(x) * self.linear.weight.sum()


CASES = {
    "convolutions": (Convolutions, (3, 9, 10), "layers"),
    "language": (Language, None, "layers"),
    "transformer": (lambda: ArithmeticTransformer(5, 8, 2, 12), None, "batched"),
    "inception": (lambda: InceptionV1(classes=4), (3, 32, 32), "layers"),
    "loose": (Loose, (3,), "batched"),
    "turned": (Turned, (5, 3), "batched"),
    "outside": (Outside, (3,), "batched"),
}


def case(name, inputs=5):
    make, shape, engine = CASES[name]
    torch.manual_seed(0)
    model = make().train()
    x = torch.randn(inputs, *shape) if shape else torch.randint(0, 5, (inputs, 4))
    return model, (x, torch.arange(inputs) % 4), engine


def gradients(model, data, engine, width=2**30, names=None):
    names = names or select_parameters(model)
    inputs = Inputs(data)
    source, _, _ = make_source(engine, model, cross_entropy, names, inputs)
    fold = Fold(source.layout, width)
    out = torch.zeros(len(inputs), fold.width)
    losses = source.block(source.center, *data, fold, out)
    return source.kind, out, losses


@pytest.mark.parametrize("width", [64, 2**30])
@pytest.mark.parametrize(
    ("name", "memory_format"),
    [(name, torch.contiguous_format) for name in CASES]
    + [(name, torch.channels_last) for name in ("convolutions", "inception")],
)
def test_all_at_once_are_one_by_one(name, memory_format, width):
    model, data, engine = case(name)
    model = model.to(memory_format=memory_format)
    state = copy.deepcopy(model.state_dict())
    if name == "inception":
        width *= 2**10  # or there would be a hundred thousand pieces
    kind, found, losses = gradients(model, data, "auto", width)
    assert kind == engine
    _, single, single_losses = gradients(model, data, "sequential", width)
    # Sums in float32 in another order: 1e-5 of the row is some 100 roundings.
    scale = single.norm(dim=1, keepdim=True)
    assert (found - single).abs().max() < 1e-5 * scale.max()
    torch.testing.assert_close(losses, single_losses, rtol=1e-5, atol=1e-6)
    assert model.training
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_some_parameters_only():
    model, data, _ = case("convolutions")
    names = ["first.weight", "grouped.weight", "last.bias"]
    _, found, _ = gradients(model, data, "layers", names=names)
    _, single, _ = gradients(model, data, "sequential", names=names)
    assert found.shape[1] == sum(dict(model.named_parameters())[name].numel() for name in names)
    torch.testing.assert_close(found, single, rtol=1e-4, atol=1e-6)


def test_a_model_that_sorts_its_batch_is_not_taken_layer_by_layer():
    """Data that are in its order already do not hide it."""

    class Sorting(nn.Linear):
        def forward(self, x):
            order = x[:, 0].argsort(stable=True)
            return super().forward(x[order])[order.argsort()]

    torch.manual_seed(0)
    model, x = Sorting(4, 3), torch.randn(50, 4)
    data = x[x[:, 0].argsort()], torch.arange(50) % 3
    kind, found, _ = gradients(model, data, "auto")
    assert kind != "layers"
    torch.testing.assert_close(found, gradients(model, data, "sequential")[1])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("turned", "not those of single inputs"),
        ("loose", "Loose is not among the layers served"),
        ("outside", "used outside its layer"),
    ],
)
def test_what_cannot_be_had_layer_by_layer_is_refused(name, told):
    model, data, _ = case(name)
    with pytest.raises(ConfigError, match=told):
        gradients(model, data, "layers")
