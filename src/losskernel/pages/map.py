"""The map of one or several kernels as a page for the browser, drawn by Bokeh.

A *view* is what one kernel says of the inputs: where they lie on its map, which are nearest to
each and which most opposed. A *coloring* sorts the inputs into a few categories. The page switches
between views and between colorings; page and script are map.html and map.js beside this module.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from losskernel.errors import needs
from losskernel.files import atomic_path
from losskernel.kernel.maps import umap_embedding
from losskernel.kernel.neighbors import extremes, vote
from losskernel.pages.document import compressed, embedded, packed, write_page
from losskernel.semantics.wordnet import Hierarchy, coarse_groups, groups_at_depth

# Okabe and Ito's colors, which people with the common color blindnesses can tell apart; three
# shapes make 21 categories of them.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
MARKERS = ("circle", "triangle", "square")
GREY = "#bbbbbb"
MANY = 2000  # inputs from which points are so small that shapes cannot be told apart: shades can
STEPS = 8  # of a coloring by a number


@dataclass(frozen=True)
class Coloring:
    """Inputs in a few categories, each with a color and a marker.

    Attributes:
        name: what is shown.
        categories: their names.
        colors, markers: of each category.
        of: category of each input, ``(input,)``, -1 for none.
    """

    name: str
    categories: tuple[str, ...]
    colors: tuple[str, ...]
    markers: tuple[str, ...]
    of: NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """What one kernel says of the inputs.

    Attributes:
        name: of the kernel.
        points: ``(input, 2)``, the map, within [-1, 1].
        nearest, nearest_r: ``(input, k)``, inputs of the largest R and their R, nearest first.
        opposed, opposed_r: ``(input, k)``, those of the smallest R, most opposed first.
        self_covariance: ``(input,)``, None where the kernel has none, as for features.
    """

    name: str
    points: NDArray[np.float32]
    nearest: NDArray[np.int64]
    nearest_r: NDArray[np.float64]
    opposed: NDArray[np.int64]
    opposed_r: NDArray[np.float64]
    self_covariance: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Inputs:
    """What is known of the inputs without a kernel.

    Attributes:
        names: unique, ``(input,)``.
        classes: what to call the class of each, ``(input,)``.
        loss: at the trained weights, ``(input,)``, or None.
        hierarchy: above the classes, or None.
        labels: class index of each in the hierarchy, ``(input,)``; only with one.
    """

    names: NDArray
    classes: NDArray
    loss: NDArray[np.float64] | None = None
    hierarchy: Hierarchy | None = None
    labels: NDArray[np.int64] | None = None


def view(
    name: str,
    blocks: Iterable[tuple[slice, np.ndarray]],
    labels: ArrayLike,
    neighbors: int = 15,
    seed: int = 0,
    self_covariance: np.ndarray | None = None,
    begin: View | None = None,
) -> View:
    """The view of one kernel: a UMAP of its distances ``sqrt(2 (1 - R))``, and its extremes.

    Args:
        name: of the kernel.
        blocks: rows of R.
        labels: ``(input,)``; inputs of equal label are no neighbors.
        neighbors: of each input in the graph that is laid out.
        seed: of the layout.
        self_covariance: ``(input,)``, if the kernel has one.
        begin: a view whose map this one's layout begins with, so that the two can be compared.

    Raises:
        DataError: as for :func:`losskernel.kernel.neighbors.extremes`.
    """
    nearest, nearest_r, opposed, opposed_r = extremes(blocks, neighbors, labels)
    distances = np.sqrt(2 * (1 - np.clip(nearest_r, -1, 1)))
    init = None if begin is None else begin.points
    points = umap_embedding(nearest, distances, seed=seed, init=init)
    points = points - (points.max(axis=0) + points.min(axis=0)) / 2
    points = (points / np.abs(points).max()).astype(np.float32)
    return View(name, points, nearest, nearest_r, opposed, opposed_r, self_covariance)


def categorical(name: str, values: ArrayLike, order: Sequence[str] | None = None) -> Coloring:
    """Color by a text; the most frequent have a color of their own, the rest are grey.

    Args:
        name: what is shown.
        values: ``(input,)``.
        order: of the categories; by frequency if not given.
    """
    values = np.asarray(values, str)
    present, counts = np.unique(values, return_counts=True)
    frequent = [str(value) for value in present[np.argsort(-counts, kind="stable")]]
    shown = [value for value in order if value in frequent] if order else frequent
    shown = shown[: len(COLORS) * len(MARKERS)]
    index = {value: i for i, value in enumerate(shown)}
    return Coloring(
        name,
        tuple(shown),
        tuple(COLORS[i % len(COLORS)] for i in range(len(shown))),
        tuple(MARKERS[i // len(COLORS)] for i in range(len(shown))),
        np.array([index.get(str(value), -1) for value in values]),
    )


def numerical(name: str, values: ArrayLike) -> Coloring:
    """Color by a number, in steps that hold equally many inputs; not finite ones are grey."""
    with needs("maps"):
        from bokeh.palettes import Cividis8  # made to look the same to the color-blind

    values = np.asarray(values, float)
    known = values[np.isfinite(values)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, STEPS + 1))) if len(known) else []
    steps = max(len(edges) - 1, 1)
    of = np.full(len(values), -1)
    if len(known):
        found = np.searchsorted(edges, values, side="right") - 1
        of = np.where(np.isfinite(values), np.clip(found, 0, steps - 1), -1)
    names = [f"{a:.3g} to {b:.3g}" for a, b in zip(edges, edges[1:], strict=False)]
    names = names or [f"{edge:.3g}" for edge in edges[:1]]
    colors = [Cividis8[round(i * (STEPS - 1) / max(steps - 1, 1))] for i in range(len(names))]
    return Coloring(name, tuple(names), tuple(colors), (MARKERS[0],) * len(names), of)


def input_colorings(inputs: Inputs) -> list[Coloring]:
    """Colorings that are the same for every kernel: place in the hierarchy, class, loss."""
    found = []
    tree, labels = inputs.hierarchy, inputs.labels
    if tree is not None:
        group, names = coarse_groups(tree)
        found.append(categorical("coarse group", np.array(names)[group[labels]], names))
        for depth in range(1, int(tree.class_depth[labels].max())):
            group, names = groups_at_depth(tree, depth)
            words = np.array([_word(name) for name in names])
            found.append(categorical(f"hypernym at depth {depth}", words[group[labels]]))
    else:
        found.append(categorical("class", inputs.classes))
    if inputs.loss is not None:
        found.append(numerical("loss at the trained weights", inputs.loss))
    return found


def view_colorings(shown: View, inputs: Inputs, suggested: np.ndarray) -> list[Coloring]:
    """Colorings by what one kernel says: self-covariance, the label that it suggests."""
    found = []
    if shown.self_covariance is not None:
        found.append(numerical("self-covariance", shown.self_covariance))
    if inputs.hierarchy is not None:
        group, _ = coarse_groups(inputs.hierarchy)
        position = {name: label for label, name in enumerate(inputs.hierarchy.names)}
        other = np.array([group[position[s]] if s else -1 for s in suggested])
        agrees = np.where(other == group[inputs.labels], "same coarse group", "another group")
        agrees = np.where(other < 0, "no suggestion", agrees)
        order = ("same coarse group", "another group", "no suggestion")
        found.append(categorical("given against suggested label", agrees, order))
    else:
        found.append(categorical("suggested label", np.where(suggested == "", "none", suggested)))
    return found


def suggestions(shown: View, inputs: Inputs, voters: int) -> tuple[np.ndarray, np.ndarray]:
    """The class that the most opposed inputs vote for by -R, and its share of the votes.

    A wrong label is memorized against the inputs that look alike. The class is empty where no input
    is opposed.
    """
    opposed, r = shown.opposed[:, :voters], shown.opposed_r[:, :voters]
    chosen, share = vote(opposed, -r, inputs.classes)
    return np.where(share > 0, chosen.astype(object), ""), share


def write_map(
    inputs: Inputs,
    views: Sequence[View],
    output: str | Path,
    *,
    k: int = 5,
    thumbnails: Sequence[str] | None = None,
    title: str = "Map of a loss kernel",
    note: str = "",
) -> None:
    """Write the page.

    Args:
        inputs: what is known of the inputs.
        views: of each kernel, at least one.
        output: the HTML file.
        k: nearest and opposed inputs that are shown of each input.
        thumbnails: of each input, base64 of JPEG.
        title: of the page.
        note: a sentence below it.
    """
    many = len(inputs.names) > MANY
    index_type = np.uint16 if len(inputs.names) <= 2**16 else np.uint32
    shown = []
    for one in views:
        suggested, share = suggestions(one, inputs, k)
        near = slice(min(k, one.nearest.shape[1]))
        shown.append(
            {
                "name": one.name,
                "k": near.stop,
                "x": one.points[:, 0].astype(np.float32),
                "y": one.points[:, 1].astype(np.float32),
                "nearest": one.nearest[:, near].astype(index_type),
                "nearestR": _thousandths(one.nearest_r[:, near]),
                "opposed": one.opposed[:, near].astype(index_type),
                "opposedR": _thousandths(one.opposed_r[:, near]),
                "selfCovariance": _float32(one.self_covariance),
                "suggested": suggested.tolist(),
                "share": _float32(share),
                "colorings": [_plain(c, many) for c in view_colorings(one, inputs, suggested)],
            }
        )
    content = {
        "names": [str(name) for name in inputs.names],
        "classes": [str(name) for name in inputs.classes],
        "places": places(inputs),
        "loss": _float32(inputs.loss),
        "colorings": [_plain(coloring, many) for coloring in input_colorings(inputs)],
        "grey": GREY,
        "views": shown,
    }
    write_page(
        "map",
        title,
        output,
        note=html.escape(note),
        data=packed(content),
        thumbnails=embedded(list(thumbnails or [])),
        plot=packed(_plot(many)),
        bokeh=compressed(_bokeh().encode()),
    )


def write_table(inputs: Inputs, views: Sequence[View], output: str | Path) -> None:
    """Write a row an input as Parquet, for other explorers.

    ``x``, ``y`` and ``neighbors`` (``ids``, rows of the table, and ``distances``) are those of the
    first view; columns of the further views end in their names.

    Args and errors as for :func:`write_map`.
    """
    columns: dict = {"id": np.arange(len(inputs.names)), "name": np.asarray(inputs.names, str)}
    columns["class"] = np.asarray(inputs.classes, str)
    if inputs.loss is not None:
        columns["loss"] = inputs.loss
    for number, one in enumerate(views):
        ending = "" if number == 0 else f" {one.name}"
        columns[f"x{ending}"], columns[f"y{ending}"] = one.points.T
        distances = np.sqrt(2 * (1 - np.clip(one.nearest_r, -1, 1)))
        columns[f"neighbors{ending}"] = [
            {"ids": ids.tolist(), "distances": row.tolist()}
            for ids, row in zip(one.nearest, distances, strict=True)
        ]
        if one.self_covariance is not None:
            columns[f"self_covariance{ending}"] = one.self_covariance
    with needs("maps"), atomic_path(output) as temporary:
        pd.DataFrame(columns).to_parquet(temporary, index=False)


def places(inputs: Inputs) -> list[str] | None:
    """Path of each input's class from the root of the hierarchy, the longest one."""
    if inputs.hierarchy is None:
        return None
    paths = [max(paths, key=len) for paths in inputs.hierarchy.hypernym_paths]
    told = [" › ".join(_word(synset) for synset in path[1:]) for path in paths]
    return [told[label] for label in inputs.labels]


def _word(synset: str) -> str:
    """A readable word of a synset's name such as ``sea_dog.n.01``."""
    return synset.rsplit(".", 2)[0].replace("_", " ")


def _thousandths(r: np.ndarray) -> np.ndarray:
    """R in 2 bytes, exact to 2e-5: what is shown has three digits."""
    return np.round(np.clip(r, -1, 1) * 32767).astype(np.int16)


def _float32(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else np.asarray(values, np.float32)


def _plain(coloring: Coloring, many: bool) -> dict:
    colors, markers = coloring.colors, coloring.markers
    if many:
        shades = [1 - 0.35 * MARKERS.index(marker) for marker in markers]
        colors = [_darker(color, shade) for color, shade in zip(colors, shades, strict=True)]
        markers = (MARKERS[0],) * len(markers)
    return {
        "name": coloring.name,
        "categories": coloring.categories,
        "colors": colors,
        "markers": markers,
        "of": coloring.of.astype(np.int8),
    }


def _darker(color: str, share: float) -> str:
    parts = (round(share * int(color[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{part:02x}" for part in parts)


def _bokeh() -> str:
    """Bokeh's scripts: the core and, for many points, WebGL; not its widgets and tables."""
    with needs("maps"):
        from bokeh.resources import Resources

    return "\n".join(Resources(mode="inline", components=["bokeh", "bokeh-gl"]).js_raw)


def _plot(many: bool) -> dict:
    """The empty plot, for ``Bokeh.embed.embed_item``; map.js fills its sources by their names."""
    with needs("maps"):
        from bokeh.embed import json_item
        from bokeh.models import BooleanFilter, CDSView, ColumnDataSource, CustomJS, HoverTool
        from bokeh.plotting import figure

    def source(name: str, *columns: str) -> ColumnDataSource:
        return ColumnDataSource({column: [] for column in columns}, name=name)

    plot = figure(
        tools="pan,wheel_zoom,box_zoom,tap,reset,save",
        active_scroll="wheel_zoom",
        x_range=(-1.06, 1.06),
        y_range=(-1.06, 1.06),
        aspect_ratio=1,
        sizing_mode="scale_width",
        output_backend="webgl",
        toolbar_location="above",
        name="plot",
    )
    plot.toolbar.logo = None
    plot.axis.visible = False
    plot.grid.visible = False
    plot.segment(
        "x0", "y0", "x1", "y1", color="color", line_width="width",
        source=source("lines", "x0", "y0", "x1", "y1", "color", "width"),
    )  # fmt: skip
    points = plot.scatter(
        "x", "y", marker="marker", fill_color="color", fill_alpha="alpha", line_alpha="alpha",
        size=4 if many else 9, line_color=None if many else "#333333", line_width=0.5,
        name="points",
        source=source("points", "x", "y", "marker", "color", "alpha"),
        view=CDSView(filter=BooleanFilter()),
    )  # fmt: skip
    points.nonselection_glyph = points.selection_glyph = None  # map.js says how they look
    plot.scatter(
        "x", "y", size="size", line_color="color", fill_color=None, line_width=2.5,
        source=source("marks", "x", "y", "size", "color"),
    )  # fmt: skip
    hovered = CustomJS(code="hovered(cb_data)")
    plot.add_tools(HoverTool(renderers=[points], tooltips=None, callback=hovered))
    return json_item(plot)
