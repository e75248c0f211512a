"""Figures of the localization sweeps."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter

from losskernel.experiments.gamma_sweep.analyze import (
    BY_DEPTH,
    COLOR,
    COLOR_LIFT,
    HIERARCHY,
    LIFT,
    MAGNITUDE,
    OPPOSED,
    TEXTURE,
    TEXTURE_LIFT,
    all_errors,
)
from losskernel.experiments.style import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    VERMILION,
    apply_style,
    save_figure,
)


def sweep(metrics: Path, output: Path, output_png: Path) -> None:
    """Hierarchy and color in the kernel, and the rise of the loss, from the limit to low gamma."""
    apply_style()
    table = pd.read_csv(metrics)
    gammas = np.sort(table.gamma.dropna().unique())[::-1]  # the exact limit, infinite, first
    place = {gamma: number for number, gamma in enumerate(gammas)}
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 7))

    def curve(axis, statistic: str, label: str, **style) -> None:
        rows = table[(table.statistic == statistic) & table.gamma.notna()]
        rows = rows.sort_values("gamma", ascending=False)
        axis.errorbar(
            rows.gamma.map(place), rows.value, all_errors(rows), label=label, ms=5, **style
        )

    curve(axes[0, 0], HIERARCHY, "WordNet, signed R", color=BLUE, marker="o")
    curve(axes[0, 0], MAGNITUDE, "WordNet, |R|", color=BLUE, marker="o", ls=":", mfc="white")
    curve(axes[0, 0], COLOR, "likeness of mean color, signed R", color=VERMILION, marker="s")
    curve(axes[0, 0], TEXTURE, "likeness of texture, signed R", color=ORANGE, marker="D")
    axes[0, 0].set(ylabel="correlation over pairs", title="What R follows (without noise)")
    axes[0, 0].axhline(0, color="black", linewidth=0.6)
    curve(axes[0, 1], LIFT, "nearest, hierarchy", color=BLUE, marker="o")
    curve(axes[0, 1], OPPOSED, "most opposed, hierarchy", color=GREEN, marker="^")
    curve(axes[0, 1], COLOR_LIFT, "nearest, color", color=VERMILION, marker="s")
    curve(axes[0, 1], TEXTURE_LIFT, "nearest, texture", color=ORANGE, marker="D")
    axes[0, 1].set(ylabel="lift (1 = chance; noise lowers it)", title="Neighbors")
    axes[0, 1].axhline(1, color="black", linewidth=0.6)
    bins = [name for name in table.statistic.unique() if name.startswith(BY_DEPTH)]
    shades = plt.get_cmap("viridis_r")(np.linspace(0.15, 1, max(1, len(bins))))
    for name, color in zip(bins, shades, strict=False):
        depth = name.removeprefix(BY_DEPTH).strip()
        curve(axes[1, 0], name, f"depth {depth}", color=color, marker="o")
    axes[1, 0].set(ylabel="mean R", title="Pairs by depth of their common hypernym")
    axes[1, 0].axhline(0, color="black", linewidth=0.6)
    curve(axes[1, 1], "rise", "rise of the mean loss (nats)", color=ORANGE, marker="o")
    curve(axes[1, 1], "reliability", "reliability of R", color=GRAY, marker="^", ls="--")
    if table[table.statistic == "linear share"].value.notna().any():
        curve(axes[1, 1], "linear share", "linear share", color=GREEN, marker="v", ls="--")
    axes[1, 1].set(ylabel="nats, or share", title="Distance from the linear limit")
    for axis in axes.flat:
        labels = ["limit" if np.isinf(gamma) else EngFormatter(sep="")(gamma) for gamma in gammas]
        axis.set_xticks(range(len(gammas)), labels)
        axis.set(xlabel="localization γ (1 / weight²)", xlim=(-0.3, len(gammas) - 0.7))
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
        axis.legend(frameon=False, fontsize="small", loc="upper left")
    save_figure(figure, output, output_png)
