"""What is refused before the first draw, and what is not."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from losskernel import Probe, propose_probe, sample_losses
from losskernel.errors import ConfigError, DataError
from losskernel.gradients.covariance import gradient_covariance
from losskernel.gradients.per_sample import gradient_norms, per_sample_gradients
from losskernel.sampling.checks import check_losses
from losskernel.sampling.engines import SequentialEngine
from losskernel.sampling.inputs import Inputs
from losskernel.sampling.parameters import select_parameters
from losskernel.sampling.sample import cross_entropy

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 4
PROBE = Probe(n_beta=20, gamma=50, step_size=1e-3)
ENGINES = pytest.mark.parametrize("engine", ["auto", "sequential"])


def network(*between, inputs=6, outputs=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 8), *between, nn.Tanh(), nn.Linear(8, outputs))


def sample(model, data=(X, Y), probe=PROBE, **changes):
    settings = {"chains": 2, "draws": 2, "steps_per_draw": 1, "batch_size": 5, "progress": False}
    return sample_losses(model, data, probe, **settings | changes)


def every_function(folder):
    """All that computes with losses, as functions of a model, data and options."""
    pairs = {"gamma": 50, "pairs": 4, "groups": 4, "progress": False}
    return [
        lambda *args, **options: sample(*args, **options),
        lambda *args, **options: propose_probe(*args, 20, **options),
        lambda *args, **options: gradient_norms(*args, **options),
        lambda *args, **options: per_sample_gradients(*args, folder, progress=False, **options),
        lambda *args, **options: gradient_covariance(*args, **pairs | options),
    ]


def refused(folder, match, model, data=(X, Y), **options) -> set[str]:
    """What every function that takes a model says to it: one line that matches."""
    messages = set()
    for function in every_function(folder):
        with pytest.raises(DataError, match=match) as caught:
            function(model, data, **options)
        messages.add(str(caught.value))
    assert not any("\n" in message for message in messages)
    return messages


class Dropping(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.1)  # on, whatever the mode of the module


class Remembering(nn.Module):
    """A recurrent layer that goes on where the batch before ended."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.state = nn.GRUCell(8, 8), None

    def forward(self, x):
        state = None if self.state is None or len(self.state) != len(x) else self.state
        out = self.cell(x, state)
        self.state = out.detach()
        return out


class Averaging(nn.Module):
    """Subtracts a running mean, which every batch moves."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return x - self.mean


class Summing(nn.Module):
    """Attention over the batch where it should be over the sequence, and a running count."""

    def __init__(self, dimension):
        super().__init__()
        self.dimension = dimension

    def forward(self, x):
        return x.cumsum(self.dimension) if self.dimension is not None else x - x.mean(0)


@ENGINES
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Dropping(), r"layer '1' \(Dropping\): two evaluations .* differ"),
        (Remembering(), r"(layer '1' \(Remembering\)|model or loss): two evaluations"),
        (Averaging(), r"layer '1' \(Averaging\): two evaluations"),
        (nn.BatchNorm1d(8, track_running_stats=False), r"layer '1' \(BatchNorm1d\): mixes|1 value"),
        (Summing(None), r"layer '1' \(Summing\): mixes the inputs .*input 0"),
        (Summing(0), "loss: that of input 0 depends on the order of its batch"),
    ],
    ids=[
        "dropout",
        "state",
        "running mean",
        "batch norm",
        "mean of the batch",
        "sum over the batch",
    ],
)
def test_a_layer_that_is_random_or_mixes_inputs_is_named(tmp_path, engine, layer, message):
    model = network(layer)
    for function in every_function(tmp_path):
        with pytest.raises((DataError, ConfigError), match=message) as caught:
            function(model, (X, Y), engine=engine)
        assert "\n" not in str(caught.value)


def test_the_layer_of_images_that_mixes_inputs_is_named():
    layers = [nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(6, 4))
    for engine in ("auto", "sequential"):
        with pytest.raises(DataError, match=r"^model: the layer '1' \(BatchNorm2d\): mixes the"):
            sample(model, (X.view(20, 1, 3, 2), Y), engine=engine)


def contrastive(output, target):
    """Each input against the others of its batch."""
    return F.cross_entropy(output @ output.T, torch.arange(len(output)), reduction="none")


def broadcasting(output, target):
    return (output[:, :1] - target).square().mean(1)  # (n, 1) - (n,) is (n, n)


@ENGINES
@pytest.mark.parametrize("loss", [contrastive, broadcasting])
def test_a_loss_that_mixes_inputs_is_refused(tmp_path, engine, loss):
    assert refused(tmp_path, "^loss: (mixes|that of)", network(), (X, Y), loss=loss, engine=engine)


@ENGINES
@pytest.mark.parametrize("size", [1e-2, 1e-4])
def test_a_loss_that_is_random_is_refused(tmp_path, engine, size):
    def noisy(output, target):
        return cross_entropy(output + size * torch.randn(output.shape), target)

    match = "^loss: two evaluations at the same"
    assert refused(tmp_path, match, network(), loss=noisy, engine=engine)


class Augmented(Dataset):
    def __init__(self, noise):
        self.noise = noise

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i] + self.noise * torch.randn(6), Y[i]


def test_items_that_differ_between_readings_are_refused(tmp_path):
    refused(tmp_path, "^data: item 0 differs from one reading", network(), Augmented(1e-6))
    # The data of the gradients alone, of which a chain never reads an item twice in a batch.
    for function in (sample, lambda *args, **data: propose_probe(*args, 20, **data)):
        with pytest.raises(DataError, match="^data: item 0 differs .* fix its seed by item$"):
            function(network(), Augmented(0.1), probe_data=(X, Y))


@ENGINES
def test_a_loss_that_is_the_same_number_for_all_inputs_is_refused(tmp_path, engine):
    def wrong_axis(output, target):
        return F.log_softmax(output[:, :1], 1)[:, 0]  # log of a probability of 1

    message = r"^loss: is the same number \(0\) for each of 20 inputs"
    assert refused(tmp_path, message, network(), loss=wrong_axis, engine=engine)


@ENGINES
def test_a_loss_without_a_gradient_is_refused_where_one_is_needed(tmp_path, engine):
    def cut(output, target):
        return F.cross_entropy(output.detach(), target, reduction="none")

    refused(tmp_path, "^loss: its gradient is 0 though", network(), loss=cut, engine=engine)
    direct = {"probe": Probe(gamma=50), "steps_per_draw": 1, "engine": engine}
    found = sample(network(), loss=cut, **direct).losses
    np.testing.assert_allclose(found, sample(network(), **direct).losses, rtol=1e-5)


@ENGINES
def test_a_loss_with_weights_of_the_model_is_refused(tmp_path, engine):
    """It would see those of the caller's, and not those that are moved."""

    class Headless(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = network(), nn.Linear(4, 4)

        def forward(self, x):
            return self.body(x)

    model = Headless()

    def loss(output, target):
        return F.cross_entropy(model.head(output), target, reduction="none")

    message = r"^loss: uses weights of the model itself \(head.weight\)"
    assert len(refused(tmp_path, message, model, loss=loss, engine=engine)) == 1
    # A teacher's are not the model's.
    assert np.isfinite(sample(network(), loss=loss, engine=engine).losses).all()


@pytest.mark.parametrize("probe", [PROBE, Probe(gamma=50)], ids=["chains", "draws"])
def test_random_numbers_of_the_caller_stay_where_they_are(probe):
    model, state = network(), torch.get_rng_state()
    sample(model, TensorDataset(X, Y), probe=probe)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_no_fault_passes():
    flat = network()
    nn.init.zeros_(flat[2].weight)
    nn.init.zeros_(flat[2].bias)  # at the trained weights the same loss for all inputs
    assert np.allclose(sample(flat).initial_loss, np.log(4))
    same = X[:1].expand(20, 6), Y[:1].expand(20)  # the same input twenty times
    assert np.isfinite(sample(network(), same).losses).all()
    assert np.isfinite(sample(network(), (X[:1], Y[:1])).losses).all()

    # A regression that fits to rounding: losses at w* are of the order of 1e-14.
    model = nn.Linear(6, 1)
    fitted = X, model(X).detach()
    found = sample(model, fitted, loss=lambda output, y: (output - y).square()[:, 0])
    assert found.initial_loss.max() < 1e-12

    # Errors counted, which have no gradient: a loss for the Gaussian probe.
    wrong = sample(
        network(),
        probe=Probe(gamma=1),
        loss=lambda output, y: (output.argmax(1) != y).float(),
        engine="sequential",
    )
    assert set(np.unique(wrong.losses)) == {0, 1}


def test_the_check_is_a_handful_of_forward_passes():
    sizes = []

    class Counting(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return x

    many = X.repeat(100, 1), Y.repeat(100)
    model = network(Counting())
    engine = SequentialEngine(model, cross_entropy, select_parameters(model))
    check_losses(engine, Inputs(many), True)
    assert sum(sizes) <= 50


NAN, INFINITE = X.clone(), X.clone()
NAN[7, 2], INFINITE[13, 0] = torch.nan, torch.inf


@pytest.mark.parametrize(("x", "number"), [(NAN, 7), (INFINITE, 13)], ids=["NaN", "infinite"])
@pytest.mark.parametrize("wrap", [lambda *pair: pair, TensorDataset], ids=["tensors", "data set"])
def test_an_input_that_is_not_finite_is_named(tmp_path, x, number, wrap):
    message = f"^data: input {number} holds NaN or an infinite number"
    model = nn.Sequential(nn.Tanh(), network())  # to which infinity is 1
    sampled, pilot, _, *kept = every_function(tmp_path)
    for function in (sampled, pilot, *kept) if wrap is TensorDataset else every_function(tmp_path):
        with pytest.raises(DataError, match=message):
            function(model, wrap(x, Y))
    with pytest.raises(DataError, match=message):
        sample(model, (X, Y), probe_data=wrap(x, Y))
    with pytest.raises(DataError, match=message):
        sample(model, wrap(x, Y), probe_data=(X, Y))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_item_that_is_first_read_for_a_minibatch_is_checked_too(workers):
    """A data set of more items than are read before the first draw."""
    many, labels = X.repeat(50, 1), Y.repeat(50)
    many[501] = torch.inf
    model = nn.Sequential(nn.Tanh(), network())
    settings = {"probe_data": (X, Y), "batch_size": 1000, "workers": workers}
    with pytest.raises(DataError, match="^data: input 501 holds NaN or an infinite number"):
        sample(model, TensorDataset(many, labels), **settings)


def test_a_target_that_is_not_finite_is_named():
    targets = X[:, :4].clone()
    targets[5, 1] = torch.inf
    with pytest.raises(DataError, match="^data: target 5 holds"):
        sample(network(), (X, targets), loss=lambda a, b: (a - b).square().mean(1))


@ENGINES
@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (X[:, :1], r"floating-point, and no class probabilities \(outputs of shape \(\d, 4\)"),
        (X[:, 0], "floating-point, and no class probabilities"),
        (X[:, :4], "no class probabilities, from 0 on"),
        (2 * X[:, :4].softmax(1), "no class probabilities.*summing to 1; give integer labels"),
        (Y + 1, "labels from 1 to 4, but the model has 4 outputs.*subtract 1|not one of 0 to 3"),
        (Y.where(Y != 2, -100), r"leave out .*-100"),
        (Y * 2, "labels from 0 to 6|a label is not one of 0 to 3.*number the classes from 0"),
        (Y[:, None], r"outputs of shape \(\d, 4\) and .*\(\d, 1\); give one integer label"),
    ],
    ids=["column", "row", "scores", "sums", "from 1", "-100", "large", "shape"],
)
def test_targets_that_are_no_classes_under_the_default_loss(tmp_path, engine, targets, message):
    assert refused(tmp_path, f"^targets: .*({message})", network(), (X, targets), engine=engine)


@ENGINES
def test_outputs_that_are_no_logits_under_the_default_loss(tmp_path, engine):
    class Wrapped(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.inner, self.wrap = network(), wrap

        def forward(self, x):
            return self.wrap(self.inner(x))

    for wrap, name in ((lambda out: {"logits": out}, "dict"), (lambda out: (out, 1), "tuple")):
        message = f"^loss: the model returns a {name}, .*pass loss="
        assert refused(tmp_path, message, Wrapped(wrap), engine=engine)
    for model in (network(outputs=1), Wrapped(lambda out: out[:, 0])):
        assert refused(tmp_path, "an output for each of at least 2 classes", model, (X, Y % 2))


@ENGINES
def test_probabilities_in_place_of_logits_are_refused(tmp_path, engine):
    model = nn.Sequential(network(), nn.Softmax(1))
    refused(tmp_path, "^model: returns probabilities, .*leave the softmax", model, engine=engine)
    # Its logarithm is a logit, and the loss that the message names is that of the logits.
    options = {"probe": Probe(gamma=50), "engine": engine}
    expected = sample(network(), **options).losses

    def named(p, y):
        return F.nll_loss(p.log(), y, reduction="none")

    np.testing.assert_allclose(sample(model, loss=named, **options).losses, expected, rtol=1e-4)
    logarithms = nn.Sequential(network(), nn.LogSoftmax(1))
    np.testing.assert_allclose(sample(logarithms, **options).losses, expected, rtol=1e-4)


def test_a_class_that_alone_is_legal_has_loss_and_gradient_zero():
    logits = torch.tensor([[-torch.inf, 1.5, -torch.inf], [0.3, 1.0, -torch.inf]])
    target = torch.tensor([1, 0])
    found, expected = (logits.clone().requires_grad_() for _ in range(2))
    losses = cross_entropy(found, target)
    usual = F.cross_entropy(expected, target, reduction="none")
    torch.testing.assert_close(losses, usual)
    assert losses[0] == 0
    losses.sum().backward()
    usual.sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)
    assert (found.grad[0] == 0).all()

    class Masked(nn.Module):
        """All but one class masked for even inputs."""

        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            legal = (torch.arange(4) == 1) | (x[:, :1] > 0)
            return self.inner(x).masked_fill(~legal, -torch.inf)

    for engine in ("batched", "sequential"):
        data = X, torch.ones(20, dtype=int)
        found = sample(Masked(), data, engine=engine).losses
        assert np.isfinite(found).all() and (found[..., X[:, 0] <= 0] == 0).all()
        norms = gradient_norms(Masked(), data, engine=engine)
        assert (norms[X[:, 0] <= 0] == 0).all() and (norms[X[:, 0] > 0] > 0.01).all()
