import sys
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from losskernel.errors import ConfigError, WeightsError
from losskernel.models import loader
from losskernel.models.inception_v1 import InceptionV1
from losskernel.models.loader import (
    caffe_preprocessing,
    from_timm,
    load_classifier,
    load_weights,
    read_weights,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (256, 301, 3)).astype(np.uint8)
IMAGE = Image.fromarray(PIXELS)
KEY = "inception_3a/3x3.weight"


@pytest.fixture(scope="module")
def caffe_state():
    torch.manual_seed(0)
    state = InceptionV1().state_dict()
    return {
        name.replace(".", "/", 1) if name.startswith("inception_") else name: tensor
        for name, tensor in state.items()
    }


def test_caffe_preprocessing():
    """BGR, 0-255, minus the means; the crop starts at floor(77 / 2) of the 301 pixels."""
    found = caffe_preprocessing()(IMAGE)
    crop = PIXELS[16 : 16 + 224, 38 : 38 + 224].astype(np.float32)
    expected = crop[..., ::-1] - np.array([104, 117, 123], np.float32)
    assert np.array_equal(found.numpy(), expected.transpose(2, 0, 1))
    assert caffe_preprocessing(160)(IMAGE).shape == (3, 160, 160)
    assert caffe_preprocessing()(IMAGE.resize((400, 700))).shape == (3, 224, 224)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_load_from_both_formats(tmp_path, caffe_state, suffix):
    path = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(caffe_state, path)
    model = load_classifier("inception_v1", path).model
    assert not model.training
    assert torch.equal(model.state_dict()["inception_3a.3x3.weight"], caffe_state[KEY])


def test_an_efficientnet_lite_under_the_names_of_another_library(tmp_path):
    """The published file of Lite0 begins with ``_conv_stem.weight``; its order is that of timm."""
    model = timm.create_model("tf_efficientnet_lite0")
    state = {f"_{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(state, tmp_path / "lite0.pth")
    loaded = load_classifier("timm:tf_efficientnet_lite0", tmp_path / "lite0.pth", 64).model
    assert all(torch.equal(t, state[f"_{name}"]) for name, t in loaded.state_dict().items())
    torch.save(dict(sorted(state.items())), tmp_path / "sorted.pth")
    with pytest.raises(WeightsError, match="no tensor 'conv_stem.weight'"):
        load_classifier("timm:tf_efficientnet_lite0", tmp_path / "sorted.pth", 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {KEY: torch.zeros(128, 96, 5, 5)}, r"shape \(128, 96, 5, 5\), the model"),
        (
            lambda s: {k: v for k, v in s.items() if k != KEY},
            r"no tensor 'inception_3a.3x3.weight'",
        ),
        (lambda s: s | {"aux.weight": torch.zeros(3)}, "'aux.weight' that the model lacks"),
        (lambda s: {"fc.weight": torch.zeros(10, 5)}, "weights of another architecture"),
        (
            lambda s: s | {"loss3/classifier.bias": torch.zeros(200)},
            r"'loss3/classifier.bias' has shape \(200,\), the model needs \(1000,\)",
        ),
    ],
    ids=["shape", "missing", "surplus", "architecture", "classes"],
)
def test_weights_that_do_not_fit_are_named(tmp_path, caffe_state, change, message):
    path = tmp_path / "weights.safetensors"
    save_file(change(dict(caffe_state)), path)
    with pytest.raises(WeightsError, match=f"weights.safetensors: .*{message}") as caught:
        load_classifier("inception_v1", path)
    assert "\n" not in str(caught.value)


def test_a_model_is_unchanged_by_weights_that_do_not_fit():
    model = torch.nn.Linear(2, 3)
    before = model.weight.clone()
    with pytest.raises(WeightsError):
        load_weights(model, {"weight": torch.zeros(3, 2), "bias": torch.zeros(4)}, "file")
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("keep", [0, 20, 0.5])
def test_damaged_files_are_named(tmp_path, suffix, keep):
    path = tmp_path / f"weights.{suffix}"
    state = {"w": torch.randn(1000)}
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    with pytest.raises(WeightsError, match=f"weights.{suffix}: unreadable as weights") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


class Payload:
    """Unpickled, it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    path, witness = tmp_path / "weights.pt", tmp_path / "witness"
    torch.save({"w": torch.zeros(2), "payload": Payload(witness)}, path)
    with pytest.raises(WeightsError, match="weights.pt: unreadable as weights"):
        read_weights(path)
    assert not witness.exists()
    torch.load(path, weights_only=False)  # the payload does work
    assert witness.exists()


def test_other_things_that_are_not_weights(tmp_path):
    with pytest.raises(WeightsError, match="none.pt: no such weights file"):
        load_classifier("inception_v1", tmp_path / "none.pt")
    path = tmp_path / "checkpoint.pt"
    torch.save({"state_dict": {"w": torch.zeros(2)}, "epoch": 3}, path)
    with pytest.raises(WeightsError, match="checkpoint.pt: not a state dict of tensors"):
        read_weights(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50", "'resnet50' is not inception_v1, torchvision:<name> or timm:<name>"),
        ("hub:resnet50", "'hub:resnet50' is not"),
        ("torchvision:resnet5", "torchvision has no model 'resnet5'"),
        ("timm:resnet5", "timm has no model 'resnet5'"),
    ],
)
def test_unknown_models(name, message):
    with pytest.raises(ConfigError, match=message):
        load_classifier(name, "random")


def test_an_option_that_a_model_of_timm_lacks():
    with pytest.raises(ConfigError, match="timm has no model 'resnet18' as asked for .*'breadth'"):
        from_timm("resnet18", breadth=3)


def test_published_weights_of_inception_v1_need_a_file():
    with pytest.raises(WeightsError, match="give the path"):
        load_classifier("inception_v1", "pretrained")


@pytest.mark.parametrize("name", ["torchvision:googlenet", "timm:tf_efficientnet_lite0"])
def test_a_librarys_model_comes_with_its_preprocessing(name):
    classifier = load_classifier(name, "random")
    if name == "torchvision:googlenet":
        transform = torchvision.models.GoogLeNet_Weights.DEFAULT.transforms()
        assert not any(name.startswith("aux") for name, _ in classifier.model.named_parameters())
    else:
        config = timm.data.resolve_data_config({}, model=timm.create_model("tf_efficientnet_lite0"))
        transform = timm.data.create_transform(**config, is_training=False)
    expected = transform(IMAGE)
    assert torch.equal(classifier.preprocess(IMAGE), expected)
    assert not classifier.model.training
    with torch.inference_mode():
        assert classifier.model(expected[None]).shape == (1, 1000)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18", "inception_v1"])
def test_image_size(name):
    preprocess = load_classifier(name, "random", image_size=160).preprocess
    assert preprocess(IMAGE).shape == (3, 160, 160)


@pytest.mark.parametrize("size", [64, 320])
@pytest.mark.parametrize(
    ("name", "shown"), [("torchvision:resnet18", 7 / 8), ("timm:resnet18", 0.95)]
)
def test_an_image_is_scaled_along_with_its_crop(name, shown, size):
    """The crop shows a frame from 10 % to 20 % of the image's side, and no border of its own."""
    pixels = np.full((400, 400, 3), 255, np.uint8)
    pixels[40:-40, 40:-40] = 100
    pixels[80:-80, 80:-80] = 255
    preprocess = load_classifier(name, "random", image_size=size).preprocess
    found = preprocess(Image.fromarray(pixels))[0].numpy()
    middle = found[size // 2]
    dark = (middle - found.min()) < 0.5 * np.ptp(found)
    assert found[0, 0] == found.max() == middle[size // 2]
    assert dark.mean() == pytest.approx(2 * 40 / (400 * shown), abs=0.04)


def test_random_weights_come_from_the_seed_alone():
    state = torch.random.get_rng_state()
    first, again, other = (
        load_classifier("timm:tf_efficientnet_lite0", "random", seed=seed).model.conv_stem.weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:test_resnet"])
def test_a_model_has_the_outputs_of_its_weights(tmp_path, name):
    source, _, model = name.partition(":")
    make = torchvision.models.get_model if source == "torchvision" else timm.create_model
    torch.manual_seed(0)
    own = make(model, num_classes=3)
    save_file(own.state_dict(), tmp_path / "own.safetensors")
    loaded = load_classifier(name, tmp_path / "own.safetensors", image_size=64)
    x = loaded.preprocess(IMAGE)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(x), own.eval()(x))


OWN = """
import torch

def build():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)), shrink

def shrink(image):
    return torch.tensor(list(image.resize((2, 2)).tobytes())).float().reshape(3, 2, 2)

def nothing():
    return None
"""


def test_a_model_of_your_own(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    own = load_classifier(f"{tmp_path / 'mine.py'}:build")
    assert own.model(own.preprocess(IMAGE)[None]).shape == (1, 3) and not own.model.training
    state = {name: tensor + 1 for name, tensor in own.model.state_dict().items()}
    save_file(state, tmp_path / "mine.safetensors")
    other = load_classifier(f"{tmp_path / 'mine.py'}:build", tmp_path / "mine.safetensors")
    torch.testing.assert_close(other.model[1].bias, own.model[1].bias + 1)


BESIDE = """
from __future__ import annotations
from dataclasses import dataclass

import torch

from layers_beside import WIDTH

@dataclass
class Shape:
    width: int = WIDTH

def build():
    return torch.nn.Linear(Shape().width, 2), torch.as_tensor
"""


def test_a_model_file_imports_what_lies_beside_it_and_may_hold_data_classes(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", sys.path[:])
    (tmp_path / "layers_beside.py").write_text("WIDTH = 5\n")
    (tmp_path / "torch.py").write_text("")  # a name that is taken stays whose it was
    (tmp_path / "own_model.py").write_text(BESIDE)
    assert load_classifier(f"{tmp_path / 'own_model.py'}:build").model.in_features == 5
    (tmp_path / "torch.py").write_text(BESIDE.replace("WIDTH", "WIDTH", 1))
    assert load_classifier(f"{tmp_path / 'torch.py'}:build").model.in_features == 5
    assert sys.modules["torch"] is torch


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name\n", "line 1: ModuleNotFoundError: No module named"),
        ("def build(:\n", "SyntaxError"),
        ("def build(width):\n    pass\n", "TypeError: .*missing 1 required .*'width'"),
        ("def build():\n    x = 1\n    return x / 0\n", "line 3: ZeroDivisionError"),
    ],
)
def test_a_model_file_that_fails_is_named_with_the_line(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr("sys.path", sys.path[:])
    (tmp_path / "failing.py").write_text(text)
    with pytest.raises(ConfigError, match=f"failing.py:build fails .*{message}") as caught:
        load_classifier(f"{tmp_path / 'failing.py'}:build")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.py:make", "mine.py has no function 'make'"),
        ("mine.py:nothing", "mine.py:nothing must return a torch module, or with it a"),
        ("yours.py:build", "yours.py: no such file"),
    ],
)
def test_a_function_that_makes_no_model(tmp_path, name, message):
    (tmp_path / "mine.py").write_text(OWN)
    with pytest.raises(ConfigError, match=message):
        load_classifier(str(tmp_path / name))


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_weights_that_cannot_be_downloaded(monkeypatch, source):
    def unreachable(*_):
        raise URLError("Name or service not known")

    monkeypatch.setitem(loader.BUILDERS, source, unreachable)
    with pytest.raises(WeightsError, match=f"{source}:resnet18: .*downloaded.* give a file"):
        load_classifier(f"{source}:resnet18", "pretrained")
