"""The map of a trace or of several kernels as one page for the browser."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.data.images import WNID
from losskernel.errors import ConfigError, DataError
from losskernel.pages.document import thumbnails
from losskernel.pages.map import Inputs, View, view, write_map, write_table
from losskernel.pages.sources import KernelFile, read_kernel
from losskernel.semantics.wordnet import Hierarchy
from losskernel.trace import LossTrace

log = logging.getLogger(__name__)


def map(
    output: Path,
    trace: Path | None = None,
    kernel: list[str] | None = None,
    labels: Path | None = None,
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
        trace: a saved trace (.nc): the first kernel, and the names and losses.
        kernel: further kernels, NAME=FILE or FILE: a trace (.nc), or an .npz with R or K, gram (of
            gradients), or features, whose cosine is taken; name in it names the inputs, wnid or
            label is their label.
        labels: table (.csv) of the columns name and label; if not given, labels are those of the
            first kernel that has them.
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
    given = _labels(kernels) if labels is None else _labels_of(labels, names)
    inputs = _inputs(names, given, kernels[0].trace, hierarchy)
    small = None if images is None else thumbnails(images, names, thumbnail)
    apart = np.arange(len(names)) if keep_equal_labels or given is None else given
    views: list[View] = []
    for one in kernels:
        log.info("%s: laying out %d inputs", one.name, len(names))
        variances, first = one.self_covariance, views[0] if views else None
        views.append(view(one.name, one.blocks(), apart, neighbors, seed, variances, first))
    left_out = given is not None and not keep_equal_labels
    note = (
        f"{len(names)} inputs. Near on the map is similar by R: their losses rise and fall "
        "together under small noise on the weights. "
    ) + ("Inputs of equal label are no neighbors of each other." if left_out else "")
    write_map(inputs, views, output, k=k, thumbnails=small, title=title, note=note)
    if table is not None:
        write_table(inputs, views, table)
    log.info("%s: %.2f MB", output, output.stat().st_size / 1e6)


def _kernels(trace: Path | None, given: list[str]) -> list[KernelFile]:
    found = [read_kernel(text) for text in ([f"draws={trace}"] if trace else []) + given]
    if not found:
        raise ConfigError("nothing to show: give a trace, or a kernel as NAME=FILE")
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"kernels {', '.join(names)}: give each another name, as NAME=FILE")
    return found


def _labels(kernels: list[KernelFile]) -> np.ndarray | None:
    """Labels of the first kernel that has them."""
    for one in kernels:
        if one.labels is not None:
            if len(one.labels) != one.size:
                raise DataError(f"{one.name}: {len(one.labels)} labels of {one.size} inputs")
            return one.labels[one.order]
    return None


def _labels_of(path: Path, names: np.ndarray) -> np.ndarray:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("name")["label"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: no table with columns name and label ({error})") from error
    absent = sorted(set(names) - set(table.index))
    if absent or table.index.has_duplicates:
        name = absent[0] if absent else table.index[table.index.duplicated()][0]
        raise DataError(f"{path}: input '{name}' is not there once; give a row an input")
    return table[names].to_numpy(str)


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
            "hierarchy: the inputs have no classes, or others than the hierarchy; leave it out"
        )
    numbers = np.array([index[label] for label in labels])
    return Inputs(names, np.array(tree.names)[numbers], loss, tree, numbers)
