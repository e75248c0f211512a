"""Weights from Caffe's files."""

import logging

import numpy as np
import pytest
from safetensors.numpy import load_file

from commandline import run
from losskernel.commands.weights import PUBLISHED
from losskernel.errors import WeightsError
from losskernel.models.inception_v1 import InceptionV1
from losskernel.models.loader import load_classifier

pytest.importorskip("google.protobuf", reason="needs the extra 'vision'")


def varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, content: bytes | int) -> bytes:
    """A field of a protocol buffer, by hand: the reader is not tested by its own schema."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(array: np.ndarray, old: bool) -> bytes:
    data = field(5, array.astype("<f4").tobytes())
    if old:
        four = (1,) * (4 - array.ndim) + array.shape
        return b"".join(field(i, size) for i, size in enumerate(four, 1)) + data
    return field(7, field(1, b"".join(map(varint, array.shape)))) + data


def caffemodel(layers: dict, old: bool) -> bytes:
    made = field(1, b"GoogleNet")
    name_at, blobs_at, layer_at = (4, 6, 2) if old else (1, 7, 100)
    for name, arrays in layers.items():
        # A type, which the schema here does not know; layers without weights have no blobs.
        layer = field(name_at, name.encode()) + field(9, b"unknown")
        layer += b"".join(field(blobs_at, blob(array, old)) for array in arrays)
        made += field(layer_at, layer)
    return made


def layers(rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """Random weights of the shapes that BVLC published, a pooling layer and an auxiliary head."""
    found: dict = {"pool1/3x3_s2": [], "loss1/classifier": [np.ones((3, 2)), np.ones(3)]}
    for name, value in InceptionV1().state_dict().items():
        layer, kind = name.rsplit(".", 1)
        layer = layer.replace(".", "/") if layer.startswith("inception") else layer
        array = rng.standard_normal(value.shape).astype(np.float32)
        found.setdefault(layer, []).append(array)
        assert len(found[layer]) == {"weight": 1, "bias": 2}[kind]
    return found


@pytest.mark.parametrize("old", [True, False])
def test_a_caffemodel_becomes_weights_that_the_loader_takes(tmp_path, caplog, old):
    made = layers(np.random.default_rng(0))
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(made, old))
    output = tmp_path / "weights.safetensors"
    call = ("weights", "convert", "--caffemodel", tmp_path / "net.caffemodel", "--output", output)
    with caplog.at_level(logging.INFO, "losskernel"):
        assert run(*call) == 0
    assert "116 tensors" in caplog.text and "NOT the published weights" in caplog.text
    found = load_file(output)
    assert len(found) == 116 and not any(name.startswith("loss1") for name in found)
    for layer, arrays in made.items():
        for kind, array in zip(("weight", "bias"), arrays, strict=False):
            if layer != "loss1/classifier":
                np.testing.assert_array_equal(found[f"{layer}.{kind}"], array)
    model = load_classifier("inception_v1", output).model
    weights = model.state_dict()["inception_3a.3x3.weight"]
    np.testing.assert_array_equal(weights, made["inception_3a/3x3"][0])


def test_what_is_no_googlenet_is_named(tmp_path, capsys):
    file, output = tmp_path / "net.caffemodel", tmp_path / "weights.safetensors"
    call = ("weights", "convert", "--caffemodel", file, "--output", output)
    assert run(*call) == 1
    assert "no such file" in capsys.readouterr().err
    made = layers(np.random.default_rng(0))
    for content, message in (
        (b"\xff" * 9, "unreadable as a caffemodel"),
        (field(1, b"name"), "holds no weights"),
        (caffemodel({k: v for k, v in made.items() if "4c/5x5" not in k}, True), "no tensor"),
        (
            caffemodel(made | {"loss3/classifier": [np.ones((10, 1024)), np.ones(10)]}, True),
            "'loss3/classifier.weight' has shape (1, 1, 10, 1024), not (1000, 1024)",
        ),
        (caffemodel(made, False)[:-9], "unreadable as a caffemodel"),
    ):
        file.write_bytes(content)
        assert run(*call) == 1
        said = capsys.readouterr().err
        assert message in said and "\n" not in said.strip() and not output.exists()


def test_a_blob_that_is_not_of_its_shape_is_refused(tmp_path):
    from losskernel.models.caffe import read_caffemodel

    broken = field(1, 2) + field(2, 3) + field(3, 1) + field(4, 1) + field(5, bytes(20))
    layer = field(2, field(4, b"conv") + field(6, broken))
    (tmp_path / "net.caffemodel").write_bytes(layer)
    with pytest.raises(WeightsError, match=r"conv: 5 numbers for the shape \(2, 3, 1, 1\)"):
        read_caffemodel(tmp_path / "net.caffemodel")


@pytest.mark.data
def test_the_published_sums_are_those_of_the_published_weights(shared_data):
    tensors = load_file(shared_data / "bvlc_googlenet.safetensors").values()
    assert sum(tensor.size for tensor in tensors) == 6_998_552
    sums = (
        sum(tensor.sum(dtype=float) for tensor in tensors),
        sum(np.square(tensor, dtype=float).sum() for tensor in tensors),
    )
    assert sums == pytest.approx(PUBLISHED, rel=1e-12)
