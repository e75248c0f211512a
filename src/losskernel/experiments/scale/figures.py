"""The figure of the kernel at the paper's number of inputs."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from losskernel.experiments.imagenet.figures import group_colors, group_legend
from losskernel.experiments.scale.analyze import LIKENESSES
from losskernel.experiments.style import apply_style, save_figure
from losskernel.files import read_npz

MARKERS = ("o", "s", "D", "^")
TOLD = {
    "features, loss held": "features,\nof equal loss",
    "color, features held": "color,\nof equal features",
}
FEWEST = 1e-3  # share of class pairs below which a lift is of a handful of classes


def figure(
    lifts: Path, within: Path, facts: Path, maps: Path, output: Path, output_png: Path
) -> None:
    """Maps without and with pairs of equal label, lift by depth, likeness within classes."""
    apply_style()
    data = read_npz(maps)
    table, inside, told = (pd.read_csv(path) for path in (lifts, within, facts))
    told = told.set_index(["rise", "fact"]).value
    rises = sorted(table.rise.unique())
    page, axes = plt.subplots(2, 2, figsize=(10, 10), height_ratios=(1.25, 1))
    headline = float(data["headline"])
    colors, same = group_colors(data), told[headline, "same_label_share"]
    order = np.random.default_rng(0).permutation(len(colors))  # no group lies above the others
    titles = {
        "removed": f"UMAP of R, loss + {headline:g} nats, pairs of equal label removed",
        "kept": f"the same, kept: {same:.0%} of the nearest are of one's own label",
    }
    for axis, (which, title) in zip(axes[0], titles.items(), strict=True):
        points = data[which].astype(float)[order]
        axis.scatter(
            *points.T, c=colors[order], s=min(8, 2e4 / len(points)), linewidths=0, rasterized=True
        )
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize="medium")
    group_legend(page, loc="outside lower center", ncols=5, fontsize="small")
    shades = plt.get_cmap("Blues")(np.linspace(0.45, 1, len(rises)))
    for number, (rise, color) in enumerate(zip(rises, shades, strict=True)):
        measured, reliability = told[rise, "rise"], told[rise, "reliability_unequal"]
        style = {"color": color, "marker": MARKERS[number % len(MARKERS)], "ms": 5}
        label = f"loss + {measured:.2g} nats, reliability {reliability:.2f}"
        rows = table[(table.rise == rise) & (table.pairs >= FEWEST)]
        axes[1, 0].errorbar(rows.depth, rows.lift, rows.error_classes, label=label, **style)
        if number == len(rises) // 2:
            bounds = rows.depth, rows.null_low, rows.null_high
            axes[1, 0].fill_between(*bounds, color="0.85", lw=0, label="null, classes permuted")
        rows = inside[inside.rise == rise].set_index("likeness").loc[list(LIKENESSES)]
        at = np.arange(len(rows)) + 0.22 * (number - (len(rises) - 1) / 2)
        axes[1, 1].errorbar(rows.value, at, xerr=rows.error_classes, ls="", **style)
        null = None if number else "null, images permuted in their class"
        heights = rows.null_high - rows.null_low
        axes[1, 1].barh(at, heights, 0.2, left=rows.null_low, color="0.8", label=null)
    axes[1, 0].axhline(1, color="black", linewidth=0.6)
    axes[1, 0].set(xlabel="depth of the common hypernym", ylabel="lift of the nearest (1 = chance)")
    axes[1, 0].set_title("Images of different classes: nearest by R", fontsize="medium")
    axes[1, 0].legend(frameon=False, fontsize="small", loc="upper left")
    axes[1, 1].axvline(0, color="black", linewidth=0.6)
    axes[1, 1].set_yticks(range(len(LIKENESSES)), [TOLD.get(name, name) for name in LIKENESSES])
    axes[1, 1].invert_yaxis()
    axes[1, 1].set(xlabel="rank correlation of R with likeness in ...")
    axes[1, 1].set_title("Images of one class: what R follows", fontsize="medium")
    axes[1, 1].legend(frameon=False, fontsize="small", loc="center right")
    save_figure(page, output, output_png)
