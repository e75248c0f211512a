"""Weights from Caffe's files, which are protocol buffers: the parts of its schema that hold them.

Field numbers are those of Caffe's ``caffe.proto``, in both of its layouts: ``layer`` since 2014,
``layers`` before, which BVLC's published networks have.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from losskernel.errors import WeightsError, needs

# message: {field: (number, type)}; a type in capitals is another message, [] marks a repeated one.
_SCHEMA = {
    "Shape": {"dim": (1, "int64[]")},
    "Blob": {
        "num": (1, "int32"),
        "channels": (2, "int32"),
        "height": (3, "int32"),
        "width": (4, "int32"),
        "data": (5, "float[]"),
        "shape": (7, "Shape"),
        "double_data": (8, "double[]"),
    },
    "Layer": {"name": (1, "string"), "blobs": (7, "Blob[]")},
    "OldLayer": {"name": (4, "string"), "blobs": (6, "Blob[]")},
    "Net": {"layers": (2, "OldLayer[]"), "layer": (100, "Layer[]")},
}


@cache
def net_message() -> type:
    """The message class of a whole file.

    Raises:
        LossKernelError: protobuf is not installed.
    """
    with needs("vision"):
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    file = descriptor_pb2.FileDescriptorProto(name="caffe", package="caffe", syntax="proto2")
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, fields in _SCHEMA.items():
        made = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            repeated, kind = kind.endswith("[]"), kind.removesuffix("[]")
            field = made.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind in _SCHEMA:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
                field.options.packed = repeated
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.Net"))


def read_caffemodel(path: str | Path) -> dict[str, list[np.ndarray]]:
    """The blobs of each layer that has any, float32: of a convolution its weights and biases.

    Raises:
        WeightsError: the file is missing, is no caffemodel, or a blob is not of its shape.
    """
    with needs("vision"):
        from google.protobuf.message import DecodeError

    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; correct the path")
    net = net_message()()
    try:
        net.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise WeightsError(f"{path}: unreadable as a caffemodel; fetch it again") from error
    found = {
        layer.name: [_array(blob, f"{path}: {layer.name}") for blob in layer.blobs]
        for layers in (net.layers, net.layer)
        for layer in layers
        if layer.blobs
    }
    if not found:
        raise WeightsError(f"{path}: holds no weights; fetch the .caffemodel, not the .prototxt")
    return found


def _array(blob, where: str) -> np.ndarray:
    values = np.array(blob.data or blob.double_data, np.float32)
    old = (blob.num, blob.channels, blob.height, blob.width)  # always four, filled up with ones
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else old
    if values.size != np.prod(shape):
        raise WeightsError(f"{where}: {values.size} numbers for the shape {shape}; fetch it again")
    return values.reshape(shape)
