import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from losskernel.errors import ConfigError, DataError, LossKernelError, TraceError
from losskernel.files import locked
from losskernel.gradients.per_sample import Gradients, gradient_norms, per_sample_gradients
from losskernel.models.inception_v1 import InceptionV1
from losskernel.models.transformer import ArithmeticTransformer
from losskernel.sampling.parameters import FlatLayout, select_parameters
from losskernel.sampling.sample import cross_entropy
from networks import convnet


def mlp():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4))


IMAGES = 3 * torch.randn(10, 3, 6, 6, generator=torch.Generator().manual_seed(0)) + 1
CASES = {
    "mlp": (mlp, (5,)),
    "convnet": (lambda: convnet(IMAGES), (3, 6, 6)),
    "convnet, channels last": (
        lambda: convnet(IMAGES, memory_format=torch.channels_last),
        (3, 6, 6),
    ),
    "transformer": (lambda: ArithmeticTransformer(5, width=8, heads=2, mlp_width=12), None),
    "inception": (lambda: InceptionV1(classes=4), (3, 32, 32)),
}


def case(name, inputs=5):
    torch.manual_seed(0)
    make, shape = CASES[name]
    model = make()
    x = torch.randn(inputs, *shape) if shape else torch.randint(0, 5, (inputs, 4))
    return model.train(), (x, torch.arange(inputs) % 4)


def compute(model, data, folder, **options):
    return per_sample_gradients(model, data, folder, progress=False, **options)


def plain_loop(model, data):
    """Gradients by one backward pass an input, in evaluation mode, by name."""
    model = copy.deepcopy(model).eval()
    names = [name for name, _ in model.named_parameters()]
    for x, y in zip(*data, strict=True):
        loss = cross_entropy(model(x[None]), y[None])[0]
        yield dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    ("name", "engine"),
    [(name, "sequential") for name in CASES]
    + [(name, "batched") for name in CASES if name != "inception"]
    + [(name, "layers") for name in CASES if name != "transformer"],
)
def test_gradients_are_those_of_a_plain_loop(tmp_path, name, engine, dtype):
    model, data = case(name, inputs=2 if name == "inception" else 5)
    state = copy.deepcopy(model.state_dict())
    found = compute(model, data, tmp_path, engine=engine, dtype=dtype)
    assert model.training and all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    # float16 rounds each value by half of 2^-10 of itself, or by half of the smallest step, 2^-24,
    # beside a root mean square of 1. Sums in float32 differ by their order: 1e-5 is 100 roundings.
    tolerance = 1e-5 + (2**-11 + 2**-25 if dtype == "float16" else 0)
    layout = FlatLayout(model, select_parameters(model))
    assert found.size == layout.size and list(found.names) == layout.names
    for row, scale, norm, expected in zip(
        found.rows, found.scale, found.norms, plain_loop(model, data), strict=True
    ):
        views = layout.views(torch.from_numpy(row.astype(np.float64) * scale))
        difference = sum((views[k] - g.double()).square().sum() for k, g in expected.items())
        length = sum(g.double().square().sum() for g in expected.values()).sqrt()
        assert difference.sqrt() < tolerance * length
        assert norm == pytest.approx(length.item(), rel=1e-5)


@pytest.mark.parametrize("engine", ["layers", "batched", "sequential"])
def test_norms_without_a_file_are_those_with_one(tmp_path, engine):
    model, data = case("mlp")
    stored = compute(model, data, tmp_path, engine=engine, parameters=["0.*"])
    found = gradient_norms(model, data, engine=engine, parameters=["0.*"])
    np.testing.assert_array_equal(found, stored.norms)


@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_the_size_of_the_loss_does_not_matter(tmp_path, size):
    model, data = case("mlp")
    plain = compute(model, data, tmp_path / "plain")
    scaled = compute(model, data, tmp_path / "scaled", loss=lambda o, t: size * cross_entropy(o, t))
    np.testing.assert_allclose(scaled.norms, size * plain.norms, rtol=1e-5)
    np.testing.assert_allclose(scaled.rows.astype(float), plain.rows, rtol=2**-9, atol=1e-6)


def test_a_gradient_that_vanishes_is_zero(tmp_path):
    model, data = case("mlp")
    found = compute(model, data, tmp_path, loss=lambda o, t: (t > 0) * o.square().sum(-1))
    assert (found.norms == 0).tolist() == [True, False, False, False, True]
    assert (found.rows[[0, 4]] == 0).all() and (found.scale[[0, 4]] == 0).all()


@pytest.mark.parametrize("engine", ["sequential", "batched", "layers"])
def test_a_killed_run_continues_to_the_same_bytes(tmp_path, engine):
    model, data = case("mlp")
    whole = compute(model, data, tmp_path / "whole", engine=engine)
    for lost_rows, lost_norms in ((5, 3), (2 * whole.size + 1, 8), (9 * whole.size, 40)):
        folder = tmp_path / str(lost_rows)
        compute(model, data, folder, engine=engine)
        for file, lost in (("gradients.f16", lost_rows), ("norms.f64", lost_norms)):
            with open(folder / file, "r+b") as opened:
                opened.truncate((folder / file).stat().st_size - lost)
        with pytest.raises(TraceError, match=f"{folder}: holds [0-4] of 5 gradients; compute"):
            Gradients.load(folder)
        again = compute(model, data, folder, engine=engine)
        assert np.array_equal(again.rows, whole.rows) and np.array_equal(again.norms, whole.norms)


@pytest.mark.parametrize("engine", ["sequential", "batched"])
def test_complete_gradients_are_not_computed_again(tmp_path, engine, monkeypatch):
    model, data = case("convnet")  # 5 inputs, less than a block of the batched engine
    first = compute(model, data, tmp_path, engine=engine)
    monkeypatch.setattr(per_sample_gradients.__module__ + "._scaled", None)
    again = compute(model, data, tmp_path, engine=engine)
    assert np.array_equal(first.rows, again.rows) and len(again) == 5


def test_gradients_of_another_loss_are_refused(tmp_path):
    def halved(output, target):
        return cross_entropy(output, target) / 2

    model, data = case("mlp")
    assert compute(model, data, tmp_path / "own", loss=halved).loss.split()[0].endswith("halved")
    plain = compute(model, data, tmp_path / "plain")
    assert plain.loss is None
    with pytest.raises(TraceError, match=r"gradients with other loss \(None, not .*halved"):
        compute(model, data, tmp_path / "plain", loss=halved)
    index = tmp_path / "plain" / "index.json"  # as an earlier version left it
    index.write_text(json.dumps({k: v for k, v in json.loads(index.read_text()).items() if v}))
    assert np.array_equal(compute(model, data, tmp_path / "plain").rows, plain.rows)


def test_one_process_at_a_time_adds_gradients(tmp_path):
    model, data = case("mlp")
    with locked(tmp_path), pytest.raises(TraceError, match="another process writes to it"):
        compute(model, data, tmp_path)


def test_gradients_near_the_smallest_number_are_stored(tmp_path):
    """Of an input that is answered with a certainty at which float32 ends."""
    model, (x, y) = case("mlp")
    with torch.no_grad():
        model[2].weight.mul_(0)
        model[2].bias.copy_(torch.tensor([95.0, 0, 0, 0]))
    found = compute(model, (x, 0 * y), tmp_path)
    assert (found.norms > 0).all() and (found.norms < 1e-38).all()
    assert np.isfinite(found.rows).all()
    lengths = np.linalg.norm(found.rows.astype(float), axis=1)
    np.testing.assert_allclose(lengths, np.sqrt(found.size), rtol=0.01)


def test_gradients_of_another_model_or_of_other_inputs_are_refused(tmp_path):
    model, (x, y) = case("mlp")
    compute(model, (x, y), tmp_path)
    with pytest.raises(TraceError, match="gradients with other inputs_sha256 .*; delete"):
        compute(model, (x + 1, y), tmp_path)
    with pytest.raises(TraceError, match=r"gradients with other inputs \(5, not 4\); delete"):
        compute(model, (x[:4], y[:4]), tmp_path)
    with pytest.raises(TraceError, match="gradients with other names; delete"):
        compute(model, (x, y), tmp_path, parameters="0.*")
    with pytest.raises(TraceError, match="other dtype .float16, not float32"):
        compute(model, (x, y), tmp_path, dtype="float32")
    with torch.no_grad():
        model[0].weight += 1
    with pytest.raises(TraceError, match="gradients with other weights_sha256 .*; delete"):
        compute(model, (x, y), tmp_path)


def test_columns_of_some_parameters(tmp_path):
    model, data = case("mlp")  # 0.weight 35, 0.bias 7, 2.weight 28, 2.bias 4
    found = compute(model, data, tmp_path)
    assert found.columns() == [slice(0, 74)]
    assert found.columns("0.*") == [slice(0, 42)]
    assert found.columns(["*.weight"]) == [slice(0, 35), slice(42, 70)]
    assert found.columns("!0.weight") == [slice(35, 74)]
    with pytest.raises(ConfigError, match="'layer3' matches none of the model's 4 parameters"):
        found.columns("layer3")
    parts = list(found.blocks("*.weight", block=30))
    assert [part for part, _ in parts] == [slice(0, 30), slice(30, 35), slice(42, 70)]
    assert all(np.array_equal(rows, found.rows[:, part]) for part, rows in parts)
    with pytest.raises(ConfigError, match="block = 0 must be at least 1"):
        next(found.blocks(block=0))


def test_a_data_set_gives_what_its_tensors_give(tmp_path):
    model, data = case("convnet")
    tensors = compute(model, data, tmp_path / "a")
    dataset = compute(model, torch.utils.data.TensorDataset(*data), tmp_path / "b")
    assert np.array_equal(tensors.rows, dataset.rows)
    assert tensors.inputs_sha256 == dataset.inputs_sha256


def test_bad_input_is_told_in_one_line(tmp_path, full_disk):
    model, (x, y) = case("mlp")
    with pytest.raises(ConfigError, match="dtype: 'int8' is not one of float16, float32"):
        compute(model, (x, y), tmp_path, dtype="int8")
    with pytest.raises(TraceError, match="nowhere: holds no gradients; compute"):
        Gradients.load(tmp_path / "nowhere")
    x[3] = torch.inf
    with pytest.raises(DataError, match="input 3 holds NaN or an infinite number; mend"):
        compute(model, (x, y), tmp_path / "infinite", engine="sequential")
    with pytest.raises(DataError, match="input 3 holds NaN or an infinite number; mend"):
        compute(model, (x, y), tmp_path / "infinite at once", engine="batched")
    (tmp_path / "damaged").mkdir()
    for text in ("{", '{"names": []}', "[]"):
        (tmp_path / "damaged/index.json").write_text(text)
        with pytest.raises(TraceError, match="index.json: .*; delete the folder to start over"):
            Gradients.load(tmp_path / "damaged")


@pytest.mark.parametrize("space", [300, 2_000])
def test_a_full_disk_leaves_what_can_be_continued(tmp_path, full_disk, space):
    """The index needs 600 bytes, a row 148: the first space is too short for either."""
    model, data = case("mlp", inputs=20)
    expected = compute(model, data, tmp_path / "whole", engine="sequential")
    with full_disk(space), pytest.raises(LossKernelError, match="cannot be written .*; free disk"):
        compute(model, data, tmp_path / "run", engine="sequential")
    found = compute(model, data, tmp_path / "run", engine="sequential")
    assert np.array_equal(found.rows, expected.rows)
