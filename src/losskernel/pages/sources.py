"""Kernels as they lie in files: traces, matrices, gradients' Gram matrices, features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from losskernel.errors import DataError
from losskernel.files import read_npz
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.covariance import correlation_blocks, self_covariance, slices
from losskernel.kernel.stored import StoredKernel
from losskernel.trace import LossTrace

BLOCK = 1024


@dataclass
class KernelFile:
    """One kernel's file, its rows put into the order of the first kernel's inputs.

    Attributes:
        name: shown.
        vectors: ``(input, feature)`` whose cosine is R, or None.
        matrix: ``(input, input)`` of R, or None; without either, R is that of the trace's losses.
        names: of the inputs, if the file has them.
        labels: of the inputs, wnids or class folders, if the file has them.
        trace: if the file is one.
        variances: diagonal of K, if known.
        order: rows that are taken.
    """

    name: str
    names: np.ndarray | None = None
    labels: np.ndarray | None = None
    trace: LossTrace | None = None
    vectors: np.ndarray | None = None
    matrix: np.ndarray | None = None
    variances: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.order = np.arange(self.size)

    @property
    def size(self) -> int:
        if self.trace is not None:
            return self.trace.dataset.sizes["input"]
        return len(self.matrix if self.vectors is None else self.vectors)

    @property
    def self_covariance(self) -> np.ndarray | None:
        if self.trace is not None:
            return self_covariance(self.trace.losses)[self.order]
        return None if self.variances is None else self.variances[self.order]

    def match(self, names: np.ndarray) -> None:
        """Take the rows of these inputs, by name, or all in their order if the file has no names.

        Raises:
            DataError: an input is missing, or without names their number differs.
        """
        if self.names is None:
            if self.size != len(names):
                raise DataError(
                    f"{self.name}: {self.size} inputs without names, the first kernel has "
                    f"{len(names)}; give kernels of the same inputs"
                )
            return
        position = {name: i for i, name in enumerate(self.names)}
        for name in names:
            if name not in position:
                raise DataError(
                    f"{self.name}: has no input '{name}', which the first kernel has; give kernels "
                    "of the same inputs"
                )
        self.order = np.array([position[name] for name in names])

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows of R, a block at a time."""
        order = self.order
        if self.trace is not None:
            yield from correlation_blocks(self.trace.losses[..., order], block=BLOCK)
            return
        for rows in slices(len(order), BLOCK):
            if self.vectors is None:
                yield rows, self.matrix[np.ix_(order[rows], order)]
            else:
                yield rows, self.vectors[order[rows]] @ self.vectors[order].T


def read_kernel(text: str) -> KernelFile:
    """Read a kernel from ``NAME=FILE`` or ``FILE``: a trace (.nc), or an .npz with one of its keys.

    R, or K or ``gram`` (of gradients) that are normalized, or ``features`` whose cosine is taken;
    ``name`` in it, if there, names the inputs, and ``wnid`` or ``label`` is their label. Or what
    :meth:`losskernel.kernel.stored.StoredKernel.save` wrote.

    Raises:
        DataError: there is no such file, or nothing of this in it.
        TraceError: the trace cannot be read.
    """
    name, equals, path = text.partition("=")
    path = Path(path if equals else text)
    name = name if equals else path.stem
    if path.suffix == ".nc":
        trace = LossTrace.load(path)
        coords = {str(key): values.values for key, values in trace.dataset.coords.items()}
        names = coords["name" if "name" in coords else "input"].astype(str)
        return KernelFile(name, names, _labels(coords), trace)
    held = read_npz(path)
    if "triangle" in held:
        stored = StoredKernel.load(path)
        return KernelFile(
            name,
            stored.coordinates["name"].astype(str),
            _labels(stored.coordinates),
            matrix=stored.r,
            variances=stored.self_covariance,
        )
    names = held["name"].astype(str) if "name" in held else None
    labels = _labels(held)
    if "features" in held:
        vectors = held["features"].astype(np.float64)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
        return KernelFile(name, names, labels, vectors=vectors)
    covariance = held.get("K", held.get("gram"))
    if "R" in held:
        matrix = held["R"].astype(np.float64)
    elif covariance is not None:
        matrix = normalize(covariance.astype(np.float64))
    else:
        raise DataError(f"{path}: holds {', '.join(held)}; needs one of R, K, gram, features")
    if matrix.ndim != 2 or len(matrix) != matrix.shape[1] or not np.isfinite(matrix).all():
        raise DataError(f"{path}: not a finite (input, input) matrix; make it again")
    variances = None if covariance is None else np.diag(covariance)
    return KernelFile(name, names, labels, matrix=matrix, variances=variances)


def _labels(held: dict[str, np.ndarray]) -> np.ndarray | None:
    found = next((key for key in ("wnid", "label") if key in held), None)
    return None if found is None else np.asarray(held[found]).astype(str)
