"""Models and data as users have them: nothing of them is changed, nor changes a result unseen."""

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from losskernel import Probe, propose_probe, sample_losses
from losskernel.errors import ConfigError
from losskernel.gradients.per_sample import gradient_norms, per_sample_gradients
from losskernel.sampling.engines import BatchedEngine, SequentialEngine
from losskernel.sampling.inputs import Inputs
from losskernel.sampling.parameters import select_parameters
from losskernel.sampling.sample import cross_entropy

X = torch.randn(14, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(14) % 3
PROBE = Probe(n_beta=20, gamma=50, step_size=1e-3)
ENGINES = pytest.mark.parametrize("engine", ["batched", "sequential"])
BOTH = pytest.mark.parametrize("engine", [BatchedEngine, SequentialEngine])


def layers(*first, labels=Y):
    """A small network trained on some labels, so that moving its weights costs loss."""
    torch.manual_seed(0)
    model = nn.Sequential(*first, nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(model(X.clone()), labels).mean().backward()
        optimizer.step()
    return model


def sample(model, data=(X, Y), **changes):
    settings = {"chains": 2, "draws": 3, "steps_per_draw": 2, "batch_size": 5, "progress": False}
    return sample_losses(model, data, PROBE, **settings | changes)


class Shift(nn.Module):
    """A step of preprocessing, in place or not."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place

    def forward(self, x):
        if self.in_place:
            x -= 0.1
            return x.div_(2.0)
        return (x - 0.1) / 2.0


class Parts(nn.Module):
    """A model of inputs in a dictionary and in a tuple, one part of which it overwrites."""

    def __init__(self, in_place):
        super().__init__()
        self.shift, self.rest = Shift(in_place), layers()

    def forward(self, batch):
        return self.rest(self.shift(batch["x"])) + batch["more"][0].sum(-1, keepdim=True)


class Items(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "more": (self.x[i],)}, self.y[i]


def in_place_loss(output, target):
    target.clamp_(min=1)
    return cross_entropy(output, target)


def out_of_place_loss(output, target):
    return cross_entropy(output, target.clamp(min=1))


TWINS = {
    "arithmetic": (layers(Shift(True)), layers(Shift(False)), {}, {}),
    "ReLU": (layers(nn.ReLU(inplace=True)), layers(nn.ReLU()), {}, {}),
    "targets": (
        *[layers(labels=Y.clamp(min=1))] * 2,
        {"loss": in_place_loss},
        {"loss": out_of_place_loss},
    ),
}


def results(model, data, folder, engine, options):
    """What is computed from a model and its data, by every function that takes them."""
    few = {"chains": 2, "directions": 2, "batch_size": 5}
    pilot = propose_probe(model, data, 20, engine=engine, **few, **options)
    trace = sample(model, data, engine=engine, journal=folder / "journal", **options)
    again = sample(model, data, engine=engine, journal=folder / "journal", draws=4, **options)
    kept = per_sample_gradients(
        model, data, folder / "gradients", engine=engine, progress=False, **options
    )
    norms = gradient_norms(model, data, engine=engine, **options)
    numbers = [pilot.probe.gamma, pilot.probe.step_size, pilot.rise, pilot.gradient_noise]
    return [trace.losses, trace.initial_loss, again.losses, kept.rows, norms, np.array(numbers)]


@ENGINES
@pytest.mark.parametrize("kind", TWINS)
@pytest.mark.parametrize("wrap", [lambda *pair: pair, TensorDataset], ids=["tensors", "data set"])
def test_a_model_that_works_in_place_equals_its_twin(tmp_path, engine, kind, wrap):
    one, other, options, of_other = TWINS[kind]
    given = X.clone(), Y.clone()
    found = results(one, wrap(*given), tmp_path / "one", engine, options)
    expected = results(other, wrap(X.clone(), Y.clone()), tmp_path / "other", engine, of_other)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    assert torch.equal(given[0], X) and torch.equal(given[1], Y)
    # By hand, without an engine.
    loss = of_other.get("loss", cross_entropy)
    np.testing.assert_allclose(
        found[1], loss(other(X), Y.clone()).detach(), rtol=1e-5, err_msg="losses at w*"
    )


@ENGINES
def test_parts_of_an_input_are_not_changed(engine):
    given = X.clone()
    found = sample(Parts(True), Items(given, Y), engine=engine)
    expected = sample(Parts(False), Items(X, Y), engine=engine)
    np.testing.assert_array_equal(found.losses, expected.losses)
    assert torch.equal(given, X)


def test_a_model_keeps_its_buffers(engine="sequential"):
    """Of batch norm in training, spectral norm's iteration, and a counter in the forward pass."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.inner = layers(nn.BatchNorm1d(5))
            nn.utils.parametrizations.spectral_norm(self.inner[1])

        def forward(self, x):
            self.calls += 1
            return self.inner(x)

    model = Counting().train()
    before = copy.deepcopy(model.state_dict())
    sample(model, engine=engine)
    gradient_norms(model, (X, Y), engine=engine)
    propose_probe(model, (X, Y), engine=engine, directions=2)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before) and model.training


class Rotary(nn.Module):
    """Rotary position embedding: a complex buffer turns pairs of features."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.out = nn.Linear(4, 3)
        angles = torch.arange(1, 3)
        self.register_buffer("turn", torch.polar(torch.ones(2), angles.float()))

    def forward(self, x):
        pairs = torch.view_as_complex(x[:, :4].reshape(-1, 2, 2).contiguous())
        return self.out(torch.view_as_real(pairs * self.turn).flatten(1))


@BOTH
def test_complex_buffers_stay_complex(engine):
    model = Rotary()
    engine = engine(model, cross_entropy, ["out.weight", "out.bias"])
    found = engine.losses(engine.center[None], Inputs((X, Y)), 7)[0]
    torch.testing.assert_close(found, cross_entropy(model(X), Y).detach(), rtol=1e-5, atol=1e-6)
    without = copy.deepcopy(model)
    without.turn = without.turn.real + 0j
    assert (cross_entropy(without(X), Y) - found).abs().max() > 0.05


def test_complex_weights_are_refused_by_name():
    model = Rotary()
    model.turn_too = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ConfigError, match="'turn_too' is complex.*'!turn_too'"):
        sample(model)
    assert np.isfinite(sample(model, parameters="!turn_too").losses).all()


class Named(nn.Module):
    """Its output is a dictionary with the logits in it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return {"logits": self.inner(x), "more": [x]}


@BOTH
@pytest.mark.parametrize("model_type", [torch.float64, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("data_type", [torch.float64, torch.float32])
def test_types_of_number_give_both_engines_one_answer(engine, model_type, data_type):
    plain = layers(nn.BatchNorm1d(5)).eval()
    model = Named(plain.to(model_type))
    reference = copy.deepcopy(plain).double()
    engine = engine(model, lambda out, y: cross_entropy(out["logits"], y), select_parameters(model))
    found = engine.losses(engine.center[None], Inputs((X.to(data_type), Y)), 14)
    loss = cross_entropy(reference(X.double()), Y)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0].double(), loss.detach(), rtol=1e-5, atol=1e-6)
    gradient, value = engine.gradients(engine.center[None], [(X.to(data_type), Y)])
    expected = torch.autograd.grad(loss.mean(), [*reference.parameters()])
    expected = torch.cat([part.flatten() for part in expected])
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient[0].double(), expected, rtol=1e-4, atol=1e-6)


class Force(nn.Module):
    """The gradient of a learned energy in the input, as models of molecules have it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.energy = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x.requires_grad_()
            energy = self.energy(x).sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0]


def squares(output, target):
    return (output - target).square().mean(1)


def test_a_model_that_calls_for_gradients_itself():
    model, targets = Force(), X.flip(0)
    found = sample(model, (X, targets), loss=squares)
    np.testing.assert_allclose(
        found.initial_loss, squares(model(X.clone()), targets).detach(), rtol=1e-5
    )
    w, v = model.energy[0], model.energy[2].weight[0]
    by_hand = ((1 - torch.tanh(w(X)) ** 2) * v) @ w.weight
    np.testing.assert_allclose(found.initial_loss, squares(by_hand, targets).detach(), rtol=1e-5)
    norms = gradient_norms(model, (X, targets), loss=squares)
    loss = squares(by_hand[3:4], targets[3:4])
    grads = torch.autograd.grad(loss, [w.weight, w.bias, model.energy[2].weight])
    np.testing.assert_allclose(norms[3], sum(g.square().sum() for g in grads) ** 0.5, rtol=1e-5)


class Lookup(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = nn.Embedding(9, 4, sparse=sparse), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.out(self.table(tokens).mean(1))


def test_sparse_embeddings_draw_what_dense_ones_do():
    tokens = torch.randint(0, 9, (14, 3), generator=torch.Generator().manual_seed(1))
    options = {"engine": "sequential"}
    sparse, dense = (sample(Lookup(kind), (tokens, Y), **options) for kind in (True, False))
    np.testing.assert_array_equal(sparse.losses, dense.losses)
    norms = [gradient_norms(Lookup(kind), (tokens, Y), **options) for kind in (True, False)]
    np.testing.assert_array_equal(*norms)


@ENGINES
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weight_norm_by_hooks(engine):
    model, modern = layers(), layers()
    nn.utils.weight_norm(model[0])
    nn.utils.parametrizations.weight_norm(modern[0])
    model(X)  # leaves a weight with a history behind
    found, expected = (sample(kind, engine=engine) for kind in (model, modern))
    np.testing.assert_allclose(found.initial_loss, expected.initial_loss, rtol=1e-6)
    assert np.ptp(found.losses, axis=1).min() > 0
    names = select_parameters(model)
    assert {"0.weight_g", "0.weight_v"} <= set(names) and "0.weight" not in names


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_models():
    plain = layers()
    scripted = torch.jit.script(plain)
    found, expected = sample(scripted), sample(plain, engine="sequential")
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5, atol=1e-6)


def test_a_model_that_cannot_be_copied():
    model = layers()
    model.lines = (line for line in ())
    with pytest.raises(ConfigError, match="model: cannot be copied .*generator.*__deepcopy__"):
        sample(model)


@pytest.mark.parametrize("engine", ["auto", "batched", "sequential"])
def test_a_model_that_fails_says_so_in_one_line(engine):
    with pytest.raises(ConfigError, match=r"RuntimeError: (mat1 and mat2|Expected size)") as caught:
        sample(layers(), (X[:, :4], Y), engine=engine)
    assert "\n" not in str(caught.value)


@contextmanager
def default_type():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def torch_settings():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
    )


STATES = {
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "default type": default_type,
    "default device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": deterministic,
}


class Creating(nn.Module):
    """Makes a tensor of the default type on the default device in each call."""

    def __init__(self):
        super().__init__()
        self.inner = layers()

    def forward(self, x):
        return self.inner(x + torch.linspace(0, 1, 5))


@ENGINES
def test_the_state_that_pytorch_is_in_changes_nothing(engine):
    def found(model):
        trace = sample(model, engine=engine)
        return trace.losses, gradient_norms(model, (X, Y), engine=engine)

    expected, model = found(Creating()), Creating()
    for name, state in STATES.items():
        with state():
            before = torch_settings()
            results = found(model)
            assert torch_settings() == before, name
        for a, b in zip(results, expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
