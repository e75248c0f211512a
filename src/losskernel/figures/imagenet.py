"""Figures of experiment 2: map of the inputs, kernel beside the hierarchy, lift, convergence."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image

from losskernel.figures.style import (
    BLUE,
    DIVERGING,
    GRAY,
    GREEN,
    ORANGE,
    SKY,
    VERMILION,
    apply_style,
    log_axis,
    save_figure,
)
from losskernel.trace import LossTrace

STYLES = {
    "loss kernel": {"color": BLUE, "marker": "o"},
    "loss kernel, draws alone": {"color": SKY, "marker": "x"},
    "exact limit": {"color": GREEN, "marker": "^"},
    "penultimate features": {"color": ORANGE, "marker": "s"},
    "time-shifted null": {"color": GRAY, "marker": "v", "linestyle": "--"},
    "label-shuffled null": {"color": "black", "marker": None, "linestyle": ":"},
}
# Dashed: the covariance of the draws alone, without the control variate.
CURVES = {
    "to final": {"color": BLUE, "marker": "o"},
    "split halves": {"color": VERMILION, "marker": "o"},
    "split halves, draws alone": {"color": VERMILION, "marker": "x", "linestyle": "--"},
    "to the exact limit": {"color": GREEN, "marker": "o"},
    "to the exact limit, draws alone": {"color": GREEN, "marker": "x", "linestyle": "--"},
    "split halves, time-shifted null": {"color": GRAY, "marker": "v", "linestyle": ":"},
}


def map(arrays: Path, output: Path, output_png: Path, images: Path | None = None) -> None:
    """UMAP of the loss kernel beside that of the baseline, colored by position in the hierarchy.

    Class names mark a spread-out sample of inputs. With ``images`` (the image folder), thumbnails
    take the place of points and names, to look at, not to publish: photographs are not ours to give
    away.
    """
    apply_style()
    with np.load(arrays) as stored:
        data = dict(stored)
    summary = json.loads(str(data["summary"]))
    figure, axes = plt.subplots(1, 2, figsize=(13, 6.4))
    run = summary["convergence"]
    panels = (
        ("embedding", f"Loss kernel (chains: {run['chains']}, draws: {run['draws']} each)"),
        ("features_embedding", "Baseline: cosine of penultimate features"),
    )
    for axis, (name, title) in zip(axes, panels, strict=True):
        points = axis.scatter(
            *data[name].T, c=data["position"], cmap="turbo", s=9, vmin=0, vmax=1, linewidths=0
        )
        if images is None:
            _label_examples(axis, data, name)
        else:
            _thumbnails(axis, data, name, images)
        axis.set(xlabel="UMAP 1", ylabel="UMAP 2", title=title)
    bar = figure.colorbar(points, ax=axes, shrink=0.85, pad=0.01)
    bar.set_label("position of the class in the WordNet hierarchy (depth-first)")
    names, where = _group_ticks(data)
    bar.set_ticks(where, labels=names, fontsize=6)
    save_figure(figure, output, output_png)


def _group_ticks(data: dict) -> tuple[list[str], list[float]]:
    present = np.unique(data["group"])
    where = [float(np.median(data["position"][data["group"] == g])) for g in present]
    return [str(data["group_names"][g]) for g in present], where


def _label_examples(axis, data: dict, embedding: str, examples: int = 40) -> None:
    """Name a spread-out sample of inputs by their class."""
    points = data[embedding]
    chosen = [0]
    distance = np.linalg.norm(points - points[0], axis=1)
    while len(chosen) < min(examples, len(points)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    for i in chosen:
        axis.annotate(
            str(data["class_name"][i]), points[i], fontsize=5, alpha=0.85, ha="center", va="bottom"
        )


def _thumbnails(axis, data: dict, embedding: str, images: Path) -> None:
    for point, name in zip(data[embedding], data["name"], strict=True):
        with Image.open(images / str(name)) as image:
            picture = image.convert("RGB").resize((24, 24))
        box = AnnotationBbox(OffsetImage(np.asarray(picture), zoom=0.5), point, frameon=False)
        axis.add_artist(box)


def matrix(arrays: Path, output: Path, output_png: Path) -> None:
    """Normalized kernel and depth of the lowest common hypernym, both in hierarchy order."""
    apply_style()
    with np.load(arrays) as stored:
        data = dict(stored)
    r, depth = data["R"].astype(float), data["hierarchy_depth"].astype(float)
    off = ~np.eye(len(r), dtype=bool)
    floor = json.loads(str(data["summary"]))["convergence"]["noise_floor"]
    figure, axes = plt.subplots(1, 3, figsize=(15.5, 5))
    limit = np.quantile(np.abs(r[off]), 0.99)
    image = axes[0].imshow(r, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="antialiased")
    figure.colorbar(image, ax=axes[0], label="R", shrink=0.85, extend="both")
    axes[0].set_title(f"Normalized kernel R (noise floor {floor:.3f})")
    width = max(1, len(r) // 50)
    smooth = _block_means(r, width)
    limit = np.quantile(np.abs(smooth[~np.eye(len(smooth), dtype=bool)]), 0.99)
    image = axes[1].imshow(
        smooth, cmap=DIVERGING, vmin=-limit, vmax=limit, extent=(0, len(r), len(r), 0)
    )
    figure.colorbar(image, ax=axes[1], label="mean R of a block", shrink=0.85, extend="both")
    axes[1].set_title(f"R averaged over blocks of {width} x {width} inputs")
    image = axes[2].imshow(depth, cmap="viridis", interpolation="antialiased")
    figure.colorbar(image, ax=axes[2], label="depth (steps from entity.n.01)", shrink=0.85)
    axes[2].set_title("Depth of the lowest common hypernym")
    for axis in axes:
        axis.set(xlabel="inputs in hierarchy order", ylabel="inputs in hierarchy order")
    save_figure(figure, output, output_png)


def _block_means(matrix: np.ndarray, width: int) -> np.ndarray:
    """Means over square blocks, the diagonal of the matrix left out."""
    matrix = matrix.copy()
    np.fill_diagonal(matrix, np.nan)
    n = len(matrix) // width * width
    blocks = matrix[:n, :n].reshape(n // width, width, n // width, width)
    if width == 1:
        return np.nan_to_num(matrix)
    return np.nanmean(blocks, axis=(1, 3))


def lift(lift: Path, output: Path, output_png: Path) -> None:
    """Lift of the nearest neighbors by depth (largest k) and by k (at one depth)."""
    apply_style()
    table = pd.read_csv(lift)
    table = table[table.lift > 0]  # no neighbor reaches the depth: nothing to put on a log axis
    values = table[table.statistic == "value"]
    errors = table[(table.statistic == "standard_error")].set_index(["k", "depth"])["lift"]
    low, high = (
        table[table.statistic == f"quantile_{side}"].set_index(["k", "depth"])["lift"]
        for side in ("low", "high")
    )
    ks = sorted(values.k.unique())
    k = 10 if 10 in ks else ks[-1]
    depths = sorted(values.depth.unique())
    shown = 9 if 9 in depths else depths[len(depths) // 2]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=False)
    for axis, x, fixed, at in ((axes[0], "depth", "k", k), (axes[1], "k", "depth", shown)):
        for name, rows in values[values[fixed] == at].groupby("kernel", sort=False):
            rows = rows.sort_values(x)
            axis.plot(rows[x], rows.lift, label=name, markersize=4, **STYLES[name])
            if name == "loss kernel":
                error = [errors.get((row.k, row.depth), 0.0) for row in rows.itertuples()]
                axis.fill_between(
                    rows[x], rows.lift - error, rows.lift + error, color=BLUE, alpha=0.2, lw=0
                )
            if name == "label-shuffled null":
                keys = [(row.k, row.depth) for row in rows.itertuples()]
                axis.fill_between(
                    rows[x],
                    [low.get(key, np.nan) for key in keys],
                    [high.get(key, np.nan) for key in keys],
                    color="black",
                    alpha=0.12,
                    lw=0,
                )
        axis.axhline(1, color="black", linewidth=0.6)
        axis.set_ylabel("taxonomic lift (1 = chance)")
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:g}")
    axes[0].set(xlabel="depth of the shared hypernym (steps from entity)")
    axes[0].set_title(f"{k} nearest neighbors")
    axes[1].set(xlabel="number of nearest neighbors k")
    log_axis(axes[1].xaxis, min(ks), max(ks))
    axes[1].set_title(f"shared hypernym at depth {shown} or deeper")
    axes[0].legend(frameon=False, title="bands: ± s.e.; 95 % of shuffles", fontsize="small")
    save_figure(figure, output, output_png)


def convergence(convergence: Path, trace: Path, output: Path, output_png: Path) -> None:
    """CKA of R against draws, and the mean loss along each chain."""
    apply_style()
    table, loaded = pd.read_csv(convergence), LossTrace.load(trace)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for kind, rows in table.groupby("kind", sort=False):
        axes[0].plot(rows.draws, rows.cka, markersize=3, label=kind, **CURVES[kind])
    axes[0].set(xlabel="draws a chain", ylabel="CKA of R", ylim=(0, 1.02), title="Convergence")
    log_axis(axes[0].xaxis, table.draws.min(), table.draws.max())
    axes[0].legend(frameon=False, fontsize="small")
    mean = loaded.dataset["loss"].mean("input")
    for chain in mean.chain.values:
        axes[1].plot(mean.draw, mean.sel(chain=chain), linewidth=0.8, label=f"chain {chain}")
    axes[1].axhline(float(loaded.initial_loss.mean()), color="black", linestyle="--", linewidth=0.8)
    axes[1].annotate(
        "trained weights",
        (1, float(loaded.initial_loss.mean())),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=7,
    )
    axes[1].set(xlabel="draw", ylabel="mean loss (nats)", title="Loss under the probe")
    axes[1].legend(frameon=False, fontsize="small")
    save_figure(figure, output, output_png)
