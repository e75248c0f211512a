"""Published weights in the formats that they come in."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from losskernel.errors import WeightsError
from losskernel.files import atomic_path
from losskernel.models.caffe import net_message, read_caffemodel
from losskernel.models.inception_v1 import InceptionV1, from_caffe_names

# Sum and sum of squares of all 6,998,552 numbers of BVLC's GoogLeNet, in float64.
PUBLISHED = (-10978.869149527163, 15288.183672449904)
log = logging.getLogger(__name__)


def convert(caffemodel: Path, output: Path) -> None:
    """Turn BVLC's GoogLeNet from a caffemodel into a safetensors file, for inception_v1.

    Tensors keep Caffe's names, such as inception_3a/3x3.weight; the two auxiliary heads of the
    training are left out. It is told whether the sums are those of the published weights.

    Args:
        caffemodel: the file that Caffe's model zoo publishes; docs/data.md says where.
        output: the weights (.safetensors).
    """
    net_message()  # tells where protobuf is missing before a large file is read
    blobs = read_caffemodel(caffemodel)
    state = {
        f"{layer}.{kind}": array
        for layer, arrays in blobs.items()
        for kind, array in zip(("weight", "bias"), arrays, strict=False)
    }
    tensors = {}
    wanted = {name: tuple(value.shape) for name, value in InceptionV1().state_dict().items()}
    caffe = {ours: theirs for theirs in state for ours in from_caffe_names({theirs: None})}
    for name, shape in wanted.items():
        if name not in caffe:
            raise WeightsError(f"{caffemodel}: has no tensor '{name}'; it is no GoogLeNet of BVLC")
        array = state[caffe[name]]
        # The old layout fills shapes up to four numbers by ones in front.
        if array.size != np.prod(shape) or array.shape[array.ndim - len(shape) :] != shape:
            raise WeightsError(
                f"{caffemodel}: '{caffe[name]}' has shape {array.shape}, not {shape}; it is no "
                "GoogLeNet of BVLC for 1,000 classes"
            )
        tensors[caffe[name]] = array.reshape(shape)
    with atomic_path(output) as temporary:
        save_file(tensors, temporary)
    found = (
        sum(array.sum(dtype=float) for array in tensors.values()),
        sum(np.square(array, dtype=float).sum() for array in tensors.values()),
    )
    same = np.allclose(found, PUBLISHED, rtol=1e-9, atol=0)
    log.info(
        "%d tensors, sum %.9g, sum of squares %.9g: %s",
        *(len(tensors), *found),
        "the published weights" if same else "NOT the published weights",
    )
