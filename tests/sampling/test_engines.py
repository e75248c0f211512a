import copy

import numpy as np
import pytest
import torch
from torch import nn

from losskernel.errors import ConfigError
from losskernel.sampling.engines import BatchedEngine, SequentialEngine, make_engine, without_tf32
from losskernel.sampling.inputs import Inputs
from losskernel.sampling.parameters import select_parameters
from losskernel.sampling.sample import cross_entropy
from networks import convnet

X, Y = torch.randn(10, 3, 6, 6), torch.arange(10) % 4


def network(memory_format=torch.contiguous_format):
    return convnet(3 * X + 1, memory_format=memory_format)


def weights_around(engine, chains=3):
    torch.manual_seed(1)
    return engine.center + 0.1 * torch.randn(chains, engine.layout.size)


def batches(chains=3):
    indices = np.random.default_rng(0).permuted(np.tile(np.arange(10), (chains, 1)), axis=1)[:, :4]
    return [(X[row], Y[row]) for row in torch.as_tensor(indices)]


def reference(model, names, row, x, y):
    """Mean loss and gradient of a plain copy in evaluation mode whose weights are set by hand."""
    model = copy.deepcopy(model).eval()
    parameters = dict(model.named_parameters())
    start = 0
    for name in names:
        view = parameters[name].data
        # the flat vector is in each parameter's memory order
        dense = view.permute(0, 2, 3, 1) if view.ndim == 4 and not view.is_contiguous() else view
        dense.copy_(row[start : start + view.numel()].view(dense.shape))
        start += view.numel()
    loss = cross_entropy(model(x), y)
    grads = torch.autograd.grad(loss.mean(), [parameters[name] for name in names])
    return loss.detach(), grads


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("engine", [BatchedEngine, SequentialEngine])
@pytest.mark.parametrize("patterns", ["all", ["!5.*"]])
def test_losses_and_gradients_are_those_of_the_model_in_evaluation_mode(
    engine, memory_format, patterns
):
    model = network(memory_format).train()
    names = select_parameters(model, patterns)
    engine = engine(model, cross_entropy, names)
    weights = weights_around(engine)
    gradients, values = engine.gradients(weights, batches())
    losses = engine.losses(weights, Inputs((X, Y)), block=4)
    assert losses.shape == (3, 10)
    for row, (x, y) in enumerate(batches()):
        expected, _ = reference(model, names, weights[row], X, Y)
        torch.testing.assert_close(losses[row], expected, rtol=1e-5, atol=1e-6)
        expected, grads = reference(model, names, weights[row], x, y)
        torch.testing.assert_close(values[row], expected.mean(), rtol=1e-5, atol=1e-6)
        found = engine.layout.views(gradients[row])
        for name, grad in zip(names, grads, strict=True):
            torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)


class Unused(nn.Module):
    """A head that the output does not depend on, as auxiliary heads in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("engine", [BatchedEngine, SequentialEngine])
def test_unused_parameters_have_gradient_zero(engine):
    model = Unused()
    engine = engine(model, cross_entropy, select_parameters(model))
    gradients, _ = engine.gradients(engine.center[None], [(torch.randn(5, 3), Y[:5] % 4)])
    views = engine.layout.views(gradients[0])
    assert (views["head.weight"] == 0).all() and (views["body.weight"] != 0).any()


class Branching(nn.Module):
    """What vmap cannot batch: a branch on a value."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x):
        out = self.linear(x)
        return out if out.sum().item() > 0 else 2 * out


def test_choice_of_engine():
    model, data = nn.Linear(3, 4), (torch.randn(2, 3), torch.tensor([0, 1]))
    names = ["weight", "bias"]
    assert isinstance(make_engine("auto", model, cross_entropy, names, data), BatchedEngine)
    for kind, options in (("sequential", {}), ("auto", {"small": 3})):
        engine = make_engine(kind, model, cross_entropy, names, data, **options)
        assert isinstance(engine, SequentialEngine)
    branching = Branching()
    names = ["linear.weight", "linear.bias"]
    assert isinstance(make_engine("auto", branching, cross_entropy, names, data), SequentialEngine)
    with pytest.raises(ConfigError, match="cannot be batched.*use engine 'sequential'") as caught:
        make_engine("batched", branching, cross_entropy, names, data)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="compiled on a CPU needs engine 'sequential'"):
        make_engine("batched", model, cross_entropy, ["weight"], data, compiled=True)


@pytest.fixture
def compile_calls(monkeypatch):
    """Compiling without code generation, which takes a minute; what was compiled."""
    functions, real = [], torch.compile

    def compile(function, dynamic):
        functions.append(function)
        return real(function, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile)
    yield functions
    torch.compiler.reset()


@pytest.mark.parametrize(("engine", "compilations"), [(BatchedEngine, 2), (SequentialEngine, 1)])
def test_compiled_engines_compute_the_same(compile_calls, engine, compilations):
    model = network()
    names = select_parameters(model)
    plain, compiled = (engine(model, cross_entropy, names, compiled=c) for c in (False, True))
    assert len(compile_calls) == compilations
    weights = weights_around(plain)
    for found, expected in zip(
        compiled.gradients(weights, batches()), plain.gradients(weights, batches()), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    found, expected = (e.losses(weights, Inputs((X, Y)), 4) for e in (compiled, plain))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def tf32_backends(monkeypatch):
    """Where PyTorch keeps whether products may run in TF32, which is allowed, as on a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield backends
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def test_tf32_is_off_while_an_engine_computes_and_then_as_it_was(tf32_backends):
    seen = []

    def loss(output, target):
        seen.append([backend.allow_tf32 for backend in tf32_backends])
        return cross_entropy(output, target)

    data = (torch.randn(2, 3), torch.tensor([0, 1]))
    for kind in (BatchedEngine, SequentialEngine):
        engine = kind(nn.Linear(3, 4), loss, ["weight"])
        engine.gradients(engine.center[None], [data])
        engine.losses(engine.center[None], Inputs(data), 2)
    assert seen == [[False, False]] * 4
    with pytest.raises(ZeroDivisionError), without_tf32():
        raise ZeroDivisionError
    assert all(backend.allow_tf32 for backend in tf32_backends)


class Attentive(nn.Module):
    """A transformer, whose attention ``vmap`` runs one chain at a time."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 16), nn.Linear(16, 5)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)

    def forward(self, x):
        return self.out(self.block(self.embed(x)).mean(1))


def test_a_transformer_is_sampled_without_a_word_of_vmap_and_as_by_the_other_engine(recwarn):
    torch.manual_seed(0)
    model, x, y = Attentive(), torch.randint(0, 7, (8, 6)), torch.arange(8) % 5
    names = select_parameters(model)
    engines = [make(model, cross_entropy, names) for make in (BatchedEngine, SequentialEngine)]
    weights = torch.stack([engine.center for engine in engines])
    for found, expected in zip(
        *(
            [*engine.gradients(weights, [(x, y)] * 2), engine.losses(weights, Inputs((x, y)), 4)]
            for engine in engines
        ),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert [str(warning.message) for warning in recwarn] == []
