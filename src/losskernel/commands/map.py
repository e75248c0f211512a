"""The map of a trace or of several kernels as one page for the browser."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from losskernel.data.images import WNID
from losskernel.errors import ConfigError, DataError
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.covariance import correlation_blocks, self_covariance
from losskernel.pages.document import thumbnails
from losskernel.pages.map import Inputs, View, missing, view, write_map, write_table
from losskernel.progress import bar
from losskernel.semantics.wordnet import Hierarchy
from losskernel.trace import LossTrace

BLOCK = 1024
log = logging.getLogger(__name__)


def map(
    output: Path,
    trace: Path | None = None,
    kernel: list[str] | None = None,
    images: Path | None = None,
    hierarchy: Path | None = None,
    table: Path | None = None,
    title: str = "Map of a loss kernel",
    neighbors: int = 15,
    k: int = 5,
    keep_equal_labels: bool = False,
    thumbnail: int = 64,
    seed: int = 0,
) -> None:
    """Write a map of the inputs as one HTML file that opens from disk and loads nothing.

    Inputs lie where UMAP puts them by the distances sqrt(2 (1 - R)). Of several kernels each has a
    map of its own, and the points move from one to the other.

    Args:
        output: the page (.html).
        trace: a saved trace (.nc): the first kernel, and the names, labels and losses.
        kernel: further kernels, NAME=FILE or FILE: a trace (.nc), or an .npz with R or K, gram (of
            gradients), or features, whose cosine is taken; name in it names the inputs.
        images: folder of the images, if small copies of them are to be in the page.
        hierarchy: file of the classes' hierarchy; read from WordNet if classes are wnids and it is
            installed.
        table: also a table (.parquet) of points and neighbors, for other explorers.
        title: of the page.
        neighbors: of each input, in the graph that is laid out.
        k: nearest and opposed inputs that are shown of each input.
        keep_equal_labels: let inputs of equal label be neighbors; without it they are left out
            before the neighbors are chosen, as in the paper.
        thumbnail: longest side of the small copies, in pixels.
        seed: of the layout.
    """
    kernels = _kernels(trace, kernel or [])
    names = kernels[0].names
    if names is None:
        names = np.arange(kernels[0].size).astype(str)
    for one in kernels[1:]:
        one.match(names)
    loaded = kernels[0].trace
    labels = _labels(loaded, len(names))
    inputs = _inputs(names, labels, loaded, hierarchy)
    small = None if images is None else thumbnails(images, names, thumbnail)
    apart = np.arange(len(names)) if keep_equal_labels or labels is None else labels
    views: list[View] = []
    try:
        for one in bar(kernels, "maps", unit="map"):
            begin = views[0] if views else None
            variance = one.self_covariance
            views.append(view(one.name, one.blocks(), apart, neighbors, seed, variance, begin))
        left_out = labels is not None and not keep_equal_labels
        note = (
            f"{len(names)} inputs. Near on the map is similar by R: their losses rise and fall "
            "together under small noise on the weights. "
        ) + ("Inputs of equal label are no neighbors of each other." if left_out else "")
        write_map(inputs, views, output, k=k, thumbnails=small, title=title, note=note)
    except ModuleNotFoundError as error:
        raise ConfigError(missing(error.name or "a package")) from error
    if table is not None:
        write_table(inputs, views, table)
    log.info("%s: %.2f MB", output, output.stat().st_size / 1e6)


@dataclass
class _Kernel:
    """One kernel's file, its rows put into the order of the first kernel's inputs.

    Attributes:
        name: shown.
        vectors: ``(input, feature)`` whose cosine is R, or None.
        matrix: ``(input, input)`` of R, or None; without either, R is that of the trace's losses.
        names: of the inputs, if the file has them.
        trace: if the file is one.
        variances: diagonal of K, if known.
        order: rows that are taken.
    """

    name: str
    names: np.ndarray | None = None
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
        for start in range(0, len(order), BLOCK):
            rows = slice(start, min(start + BLOCK, len(order)))
            if self.vectors is None:
                yield rows, self.matrix[np.ix_(order[rows], order)]
            else:
                yield rows, self.vectors[order[rows]] @ self.vectors[order].T


def _kernels(trace: Path | None, given: list[str]) -> list[_Kernel]:
    found = [] if trace is None else [_read("draws", trace)]
    for text in given:
        name, equals, path = text.partition("=")
        found.append(_read(name, Path(path)) if equals else _read(Path(text).stem, Path(text)))
    if not found:
        raise ConfigError("nothing to show: give a trace, or a kernel as NAME=FILE")
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"kernels {', '.join(names)}: give each another name, as NAME=FILE")
    return found


def _read(name: str, path: Path) -> _Kernel:
    if path.suffix == ".nc":
        trace = LossTrace.load(path)
        return _Kernel(name, trace.coordinate(_name_of(trace)).astype(str), trace)
    if not path.is_file():
        raise DataError(f"{path}: no such kernel; correct the path")
    try:
        with np.load(path) as stored:
            held = {key: stored[key] for key in stored.files}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: unreadable as .npz ({error}); make it again") from error
    names = held["name"].astype(str) if "name" in held else None
    if "features" in held:
        vectors = held["features"].astype(np.float64)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
        return _Kernel(name, names, vectors=vectors)
    covariance = held.get("K", held.get("gram"))
    if "R" in held:
        matrix = held["R"].astype(np.float64)
    elif covariance is not None:
        matrix = normalize(covariance.astype(np.float64))
    else:
        raise DataError(f"{path}: holds {', '.join(held)}; needs one of R, K, gram, features")
    if matrix.ndim != 2 or len(matrix) != matrix.shape[1] or not np.isfinite(matrix).all():
        raise DataError(f"{path}: not a finite (input, input) matrix; make it again")
    return _Kernel(
        name, names, matrix=matrix, variances=None if covariance is None else np.diag(covariance)
    )


def _name_of(trace: LossTrace) -> str:
    return "name" if "name" in trace.dataset.coords else "input"


def _labels(trace: LossTrace | None, inputs: int) -> np.ndarray | None:
    """Labels of a trace: wnids, or class folders."""
    coords = () if trace is None else trace.dataset.coords
    found = next((c for c in ("wnid", "label") if c in coords), None)
    return None if found is None else trace.coordinate(found).astype(str)


def _inputs(
    names: np.ndarray, labels: np.ndarray | None, trace: LossTrace | None, hierarchy: Path | None
) -> Inputs:
    loss = None if trace is None else trace.initial_loss.astype(float)
    tree = None
    if hierarchy is not None:
        tree = Hierarchy.from_file(hierarchy)
    elif labels is not None and all(WNID.fullmatch(label) for label in labels):
        try:
            tree = Hierarchy.from_wnids(sorted(set(labels)))
        except DataError as error:
            log.info("no hierarchy: %s", error)
    if tree is None:
        classes = np.full(len(names), "") if labels is None else labels
        return Inputs(names, classes, loss)
    index = {wnid: i for i, wnid in enumerate(tree.wnids)}
    if labels is None or not set(labels) <= index.keys():
        raise DataError(
            "hierarchy: the trace has no classes, or others than the hierarchy; leave it out"
        )
    numbers = np.array([index[label] for label in labels])
    return Inputs(names, np.array(tree.names)[numbers], loss, tree, numbers)
