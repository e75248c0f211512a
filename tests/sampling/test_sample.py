import json
import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from losskernel import Probe, sample_losses
from losskernel.errors import ConfigError, DataError, TraceError
from losskernel.sampling.sample import DivergenceError, cross_entropy
from losskernel.trace import concatenate
from networks import convnet
from series import assert_same

torch.manual_seed(0)
X, Y = torch.randn(12, 1, 6, 6), torch.arange(12) % 4
PROBE = Probe(n_beta=20, gamma=50, step_size=1e-3)
ENGINES = pytest.mark.parametrize("engine", ["batched", "sequential"])


def network():
    return convnet(2 * X + 1, width=3)


def sample(model=None, data=(X, Y), probe=PROBE, **changes):
    settings = {
        "chains": 3,
        "draws": 6,
        "burn_in": 2,
        "steps_per_draw": 2,
        "batch_size": 5,
        "seed": 3,
        "progress": False,
    }
    return sample_losses(model or network(), data, probe, **settings | changes)


@ENGINES
def test_the_callers_model_and_random_state_are_untouched(engine):
    model = network().train()
    model[0].eval()
    model[5].bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    addresses = [tensor.data_ptr() for tensor in model.state_dict().values()]
    modes = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    state = torch.random.get_rng_state()
    sample(model, engine=engine)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [tensor.data_ptr() for tensor in after.values()] == addresses
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


@ENGINES
def test_evaluation_mode_is_in_force(engine):
    """Dropout and moving statistics would make the trace depend on the mode of the model given."""
    in_training, in_evaluation = sample(network().train()), sample(network().eval())
    assert_same(in_training, in_evaluation)
    expected = cross_entropy(network().eval()(X), Y).detach().numpy()
    np.testing.assert_allclose(in_training.initial_loss, expected, rtol=1e-5)
    wrong = cross_entropy(network().train()(X), Y).detach().numpy()
    assert np.abs(wrong - expected).max() > 0.1


def test_batched_and_sequential_engines_draw_the_same_chains():
    batched, sequential = sample(engine="batched"), sample(engine="sequential")
    np.testing.assert_allclose(batched.losses, sequential.losses, rtol=1e-4, atol=1e-5)
    assert np.ptp(sequential.losses, axis=1).min() > 1e-2  # the chains moved


@pytest.mark.bits
def test_a_chain_does_not_depend_on_its_company():
    together = sample(engine="sequential")
    parts = [sample(engine="sequential", chain_ids=ids) for ids in ([0], [1, 2])]
    assert_same(concatenate(parts), together)
    assert_same(
        sample(engine="sequential", chain_ids=[2, 0, 1]),
        type(together)(together.dataset.isel(chain=[2, 0, 1])),
    )
    alone = sample(engine="batched", chain_ids=[2])  # other sizes of matrix product: to rounding
    batched = sample(engine="batched")
    np.testing.assert_allclose(alone.losses[0], batched.losses[2], rtol=1e-4, atol=1e-5)


@ENGINES
def test_the_seed_decides(engine):
    first = sample(engine=engine)
    assert_same(first, sample(engine=engine))
    assert not np.isin(first.losses, sample(engine=engine, seed=4).losses).any()
    chains = first.losses.reshape(3, -1)
    assert not np.isin(chains[0], chains[1:]).any()


@pytest.mark.bits
@ENGINES
def test_interrupted_equals_uninterrupted(tmp_path, engine):
    whole = sample(engine=engine, draws=7)
    for draws in (1, 4, 7):
        found = sample(engine=engine, draws=draws, journal=tmp_path)
        assert found.losses.shape[1] == draws
    assert_same(found, whole)
    assert found.attributes["resumed_draws"] == 4 and found.attributes["seconds_draws"] == 7
    again = sample(engine=engine, draws=4, journal=tmp_path)  # fewer than there are
    assert np.array_equal(again.losses, whole.losses[:, :4])


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("seed", {"seed": 4}),
        ("batch_size", {"batch_size": 4}),
        ("burn_in", {"burn_in": 3}),
        ("steps_per_draw", {"steps_per_draw": 1}),
        ("chain_ids", {"chain_ids": [0, 1, 5]}),
        ("engine", {"engine": "sequential"}),
        ("loss_bound", {"loss_bound": 100}),
        ("parameters", {"parameters": ["!5.*"]}),
        ("probe", {"probe": Probe(20, 51, 1e-3)}),
        ("inputs_sha256", {"data": (X + 1, Y)}),
        ("data_sha256", {"data": (X + 1, Y), "probe_data": (X, Y)}),
        ("data_sha256", {"data": TensorDataset(X, (Y + 1) % 4), "probe_data": (X, Y)}),
        ("data_size", {"data": (X[:-1], Y[:-1])}),
        ("weights_sha256", {"model": network()[:]}),
    ],
)
def test_a_journal_of_another_run_is_refused_by_key(tmp_path, key, changes):
    if key == "weights_sha256":
        with torch.no_grad():
            changes["model"][5].bias[0] += 1e-3
    sample(draws=1, journal=tmp_path)
    with pytest.raises(TraceError, match=f"holds a run with {key} = "):
        sample(draws=2, journal=tmp_path, **changes)


def test_a_journal_from_before_chains_were_bounded_by_default_goes_on(tmp_path):
    found = sample(draws=1, journal=tmp_path)
    bound = 2 * max(np.log(4), found.initial_loss.mean())
    assert found.attributes["loss_bound"] == pytest.approx(bound, rel=1e-6)
    path = tmp_path / "settings.json"
    settings = json.loads(path.read_text())
    assert settings["precision"] == "float32"  # as older journals say, from when there was a choice
    path.write_text(json.dumps(settings | {"loss_bound": float("inf")}))
    assert sample(draws=2, journal=tmp_path).attributes["loss_bound"] == np.inf
    assert sample(loss=lambda output, target: output[..., 0]).attributes["loss_bound"] == np.inf


def test_the_time_of_a_resumed_run_is_that_of_all_its_calls(tmp_path):
    first = sample(draws=3, journal=tmp_path).attributes
    second = sample(draws=5, journal=tmp_path).attributes
    assert first["seconds_draws"] == 3 and second["seconds_draws"] == 5
    assert second["seconds"] > first["seconds"] > 0
    (tmp_path / "seconds.f64").write_bytes(np.full(5, np.nan).tobytes())  # as of an older journal
    third = sample(draws=6, journal=tmp_path).attributes
    assert third["seconds_draws"] == 1 and third["seconds"] > 0


class Walk(nn.Module):
    """One weight, the output for every input."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.w + 0 * x[..., 0]


WALK = {"data": (torch.zeros(4, 1), torch.zeros(4)), "probe": Probe(1e-9, 0.1, 0.1), "burn_in": 0}


def beyond(limit, outside):
    """The output itself up to a limit, and ``outside`` beyond it."""
    return lambda output, target: torch.where(output > limit, outside, output)


@ENGINES
@pytest.mark.parametrize(
    ("loss", "bound"),
    [(beyond(1.5, torch.nan), None), (beyond(1.5, torch.inf), None), (beyond(9, 0), 1.5)],
    ids=["nan", "inf", "bound"],
)
def test_a_diverged_chain_is_stopped_and_the_others_go_on(tmp_path, caplog, engine, loss, bound):
    settings = {**WALK, "model": Walk(), "engine": engine, "chains": 6, "draws": 12}
    free = sample(**settings, loss=beyond(9e9, 0)).losses  # the same chains, let run
    crossing = (free > 1.5).any(axis=(1, 2))
    assert 0 < crossing.sum() < 6
    with caplog.at_level(logging.WARNING):
        found = sample(**settings, loss=loss, loss_bound=bound)
    assert np.array_equal(found.diverged, crossing)
    assert np.array_equal(found.losses, free[~crossing])
    for chain in np.flatnonzero(crossing):
        draw = int(np.argmax(free[chain, :, 0] > 1.5))
        losses = found.dataset["loss"].values[chain]
        assert np.isnan(losses[draw:]).all()
        assert np.array_equal(losses[:draw], free[chain, :draw])
        assert f"chain {chain} diverged at draw {draw} " in caplog.text
    assert len(caplog.records) == crossing.sum()
    # A journal remembers which chains have stopped.
    for draws in (3, 7, 12):
        resumed = sample(
            **settings | {"draws": draws}, loss=loss, loss_bound=bound, journal=tmp_path
        )
    assert_same(resumed, found)


@ENGINES
def test_all_chains_diverging_is_an_error_with_the_remedy(engine):
    model = nn.Linear(36, 4)
    data = (X.flatten(1), Y)
    with pytest.raises(DivergenceError, match="all 3 chains diverged.*lower step_size") as caught:
        sample(
            model,
            data,
            Probe(n_beta=1e12, gamma=1, step_size=1),
            loss=lambda output, target: output.square().sum(-1),
            draws=60,
            engine=engine,
        )
    assert "\n" not in str(caught.value)


def test_weights_with_a_loss_that_is_not_finite():
    model = network()
    with torch.no_grad():
        model[5].weight[1] = torch.nan
    with pytest.raises(DivergenceError, match="loss of 12 inputs is not finite at the trained"):
        sample(model)


@ENGINES
@pytest.mark.parametrize(
    "loss",
    [nn.functional.cross_entropy, lambda output, target: output],
    ids=["reduced", "one per class"],
)
def test_a_loss_of_the_wrong_shape(engine, loss):
    with pytest.raises(DataError, match="one value per input.*reduction='none'"):
        sample(loss=loss, engine=engine)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chains": 0}, "chains = 0 must be at least 1"),
        ({"draws": 0}, "draws = 0"),
        ({"steps_per_draw": 0}, "steps_per_draw = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"eval_batch_size": 0}, "eval_batch_size = 0"),
        ({"burn_in": -1}, "burn_in = -1 must be at least 0"),
        ({"seed": -1}, "seed = -1 must be at least 0"),
        ({"seed": 1.5}, "seed = 1.5 is not a whole number"),
        ({"draws": "6"}, "draws = '6' is not a whole number"),
        ({"seed": 2**70}, r"seed = \d+ must be below 2\*\*63"),
        ({"chain_ids": [0.5]}, "chain_ids = 0.5 is not a whole number"),
        ({"probe": {"gamma": 3}}, r"probe: {'gamma': 3} is no losskernel.Probe; pass Probe\("),
        ({"model": nn.Linear}, "model: <class .*Linear'> is no network; pass an object of"),
        ({"parameters": [torch.ones(2)]}, "parameters: a Tensor is no name of a parameter"),
        ({"chain_ids": []}, "chain_ids = "),
        ({"chain_ids": [1, 1]}, r"chain_ids = \[1, 1\] must be distinct"),
        ({"parameters": "conv*"}, "pattern 'conv\\*' matches none"),
        ({"engine": "quick"}, "'quick' is not one of"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        sample(**changes)


def test_numpy_scalars_are_as_good_as_numbers(tmp_path):
    names = ("chains", "draws", "burn_in", "steps_per_draw", "batch_size", "seed")
    numbers = dict(zip(names, np.array([3, 4, 2, 2, 5, 3]), strict=True))
    probe = Probe(np.float32(20), np.int64(50), np.float64(1e-3))
    sample(draws=2, journal=tmp_path)
    assert_same(sample(probe=probe, journal=tmp_path, **numbers), sample(draws=4))


def test_only_the_chosen_parameters_move():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

        def forward(self, x):  # inputs 0-2 read a, inputs 3-5 read b
            return torch.cat([self.a, self.b])[x]

    data = (torch.arange(6), torch.zeros(6))
    settings = {"loss": lambda output, target: output + 1, "batch_size": 6}
    losses = sample(Two(), data, parameters="b", **settings).losses
    assert (losses[..., :3] == 1).all()
    assert np.ptp(losses[..., 3:], axis=1).min() > 0
    losses = sample(Two(), data, **settings).losses
    assert np.ptp(losses, axis=1).min() > 0


def test_probe_inputs_apart_from_the_data():
    coords = {"label": Y[:4].numpy()}
    found = sample(probe_data=(X[:4], Y[:4]), input_coords=coords)
    np.testing.assert_allclose(found.losses, sample().losses[..., :4], rtol=1e-4, atol=1e-5)
    assert found.coordinate("label").tolist() == [0, 1, 2, 3]


def test_minibatches_are_drawn_without_replacement_by_every_chain():
    seen = []

    def loss(output, target):
        seen.append(target.tolist())
        return output[..., 0]

    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x[:, None] * self.w

    data = (torch.ones(20), torch.arange(20))
    sample(Recorder(), data, loss=loss, engine="sequential", batch_size=8, draws=40)
    # The last ones measure the curvature and the noise of minibatches.
    batches = [tuple(batch) for batch in seen if len(batch) == 8][: 3 * (2 + 40 * 2)]
    assert len(batches) == 246
    assert all(len(set(batch)) == 8 for batch in batches)
    assert len(set(batches)) > len(batches) - 5
    # Each index is in a batch with probability 8/20: binomial over 246 batches, 20 x 4.9 sigma.
    counts = np.bincount(np.concatenate(batches), minlength=20)
    assert np.abs(counts - 246 * 0.4).max() < 4.9 * np.sqrt(246 * 0.4 * 0.6)


def test_cross_entropy_keeps_a_loss_far_below_the_rounding_of_its_logits():
    """A margin of m between the target and each of c others is a loss of log(1 + c exp(-m))."""
    margins = torch.tensor([0.5, 5.0, 15.0, 40.0, 80.0])
    logits = (
        torch.full((5, 4), 3.0) + torch.eye(4)[torch.tensor([1, 0, 2, 3, 1])] * margins[:, None]
    )
    target = torch.tensor([1, 0, 2, 3, 1])
    expected = torch.log1p(3 * torch.exp(-margins.double()))
    found = cross_entropy(logits, target).double()
    # Logits of up to 83 are within 83 * 2^-24 of themselves, so a margin is within 1e-5.
    assert ((found - expected).abs() <= 2e-5 * expected).all()
    usual = nn.functional.cross_entropy(logits, target, reduction="none").double()
    assert (usual[3:] == 0).all()  # what the form is for
    wrong = cross_entropy(-logits, target).double()
    np.testing.assert_allclose(
        wrong, nn.functional.cross_entropy(-logits.double(), target, reduction="none"), rtol=1e-6
    )


def test_cross_entropy_takes_class_probabilities():
    logits, shares = torch.randn(6, 4), torch.rand(6, 4).softmax(1)
    expected = nn.functional.cross_entropy(logits, shares, reduction="none")
    assert torch.equal(cross_entropy(logits, shares), expected)


def scaled_by(weight):
    return lambda output, target: float(weight[0]) * cross_entropy(output, target)


def test_a_journal_sees_the_loss_its_arrays_and_buffers_that_are_not_saved(tmp_path):
    def squares(output, target):
        return output.square().sum(-1)

    losses = cross_entropy, squares, scaled_by(np.ones(1)), scaled_by(np.full(1, 9.0))
    for number, loss in enumerate(losses):
        sample(draws=1, journal=tmp_path / str(number), loss=loss)
        with pytest.raises(TraceError, match="holds a run with loss = "):
            sample(draws=2, journal=tmp_path / str(number), loss=losses[number - 1])
        found = sample(draws=2, journal=tmp_path / str(number), loss=loss)
        assert number != 1 or "squares" in found.attributes["loss"]
    # The default is not named in a journal, so that older ones go on.
    assert "loss" not in json.loads((tmp_path / "0/settings.json").read_text())
    model = network()
    model.register_buffer("hidden", torch.zeros(2), persistent=False)
    sample(model, journal=tmp_path / "buffer", draws=1)
    model.hidden += 1
    with pytest.raises(TraceError, match="holds a run with buffers_sha256"):
        sample(model, journal=tmp_path / "buffer", draws=1)


def test_a_recurrent_network_is_sampled_chain_by_chain():
    """Its gradients can be batched over chains, its losses in inference mode cannot."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.out = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 4)

        def forward(self, x):
            return self.out(self.recurrent(x)[0][:, -1])

    found = sample(Recurrent(), (X[:, 0], Y))
    assert found.attributes["engine"] == "SequentialEngine" and np.isfinite(found.losses).all()


@ENGINES
def test_a_model_that_keeps_a_tensor_from_its_first_call(engine):
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.kept = network(), None

        def forward(self, x):
            if self.kept is None:
                self.kept = torch.linspace(1, 2, 4).to(x)
            return self.inner(x) * self.kept

    assert np.isfinite(sample(Keeping(), engine=engine).losses).all()


def test_inputs_and_targets_in_dictionaries_and_tuples():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, batch):
            return self.inner(batch["image"])

    class Items(torch.utils.data.Dataset):
        def __init__(self, names):
            self.names = names

        def __len__(self):
            return len(X)

        def __getitem__(self, i):
            return {"image": X[i], "name": self.names[i]}, (Y[i], X[i].mean())

    def loss(output, target):
        return cross_entropy(output, target[0])

    names = [f"input {i}" for i in range(len(X))]
    found = sample(Named(), Items(names), loss=loss, engine="sequential")
    plain = sample(engine="sequential")
    np.testing.assert_array_equal(found.losses, plain.losses)
    other = sample(Named(), Items(names[::-1]), loss=loss, engine="sequential", draws=1)
    assert other.attributes["inputs_sha256"] != found.attributes["inputs_sha256"]


def test_coordinates_are_checked_before_the_first_draw(tmp_path):
    with pytest.raises(ConfigError, match=r"'label' has shape \(2,\)"):
        sample(input_coords={"label": [0, 1]}, journal=tmp_path / "journal")
    assert not (tmp_path / "journal").exists()
