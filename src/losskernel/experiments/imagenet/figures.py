"""Figures of experiment 2: maps of the inputs, the kernel matrix, statistics, controls."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from losskernel.experiments.imagenet.kernels import FEATURES, LIMIT
from losskernel.experiments.style import (
    BLUE,
    DIVERGING,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    apply_style,
    log_axis,
    save_figure,
)
from losskernel.files import read_npz

# Groups of the hierarchy in eight colors; what is not named is an artifact, or none of these.
GROUPS = {
    "dogs": (BLUE, ("dogs",)),
    "other mammals": (SKY, ("other mammals",)),
    "birds": (GREEN, ("birds",)),
    "other animals": (YELLOW, ("reptiles and amphibians", "fish", "invertebrates")),
    "plants, fungi and food": (ORANGE, ("plants, fungi and food",)),
    "vehicles": (VERMILION, ("vehicles",)),
    "structures and furniture": (PURPLE, ("structures and furniture",)),
    "other artifacts": (
        "black",
        ("clothing", "musical instruments", "devices and tools", "other artifacts"),
    ),
}
REST = "landscapes, people and others"
CONTROLS = {
    "trained": "trained network, one image a class",
    "untrained": "untrained network, one image a class",
    "tiny": "trained network, Tiny ImageNet",
    "tiny_untrained": "untrained network, Tiny ImageNet",
}
MARKERS = ("o", "v", "P", "X")
NAMES = 45  # of classes on the large map


def styles(kernels: list[str]) -> dict[str, dict]:
    """Color and marker of each kernel: the darker, the lower the localization."""
    own = [name for name in kernels if name not in (LIMIT, FEATURES)]
    shades = plt.get_cmap("Blues")(np.linspace(0.45, 1, len(own)))
    found = {
        name: {"color": color, "marker": MARKERS[number % len(MARKERS)]}
        for number, (name, color) in enumerate(zip(own, shades, strict=True))
    }
    return {
        LIMIT: {"color": GREEN, "marker": "^"},
        **found,
        FEATURES: {"color": ORANGE, "marker": "s"},
    }


def _ordered(kernels) -> list[str]:
    """From the limit to the lowest localization, then the features."""
    return [name for name in styles(list(kernels)) if name in set(kernels)]


def group_colors(data: dict) -> np.ndarray:
    """Color of each input by its ``group``, a place in ``group_names``."""
    colors = {part: color for color, parts in GROUPS.values() for part in parts}
    return np.array([colors.get(str(data["group_names"][g]), "0.75") for g in data["group"]])


def group_legend(target, **options) -> None:
    """A legend of these colors on an axis or a figure."""
    handles = [
        Line2D([], [], color=color, marker="o", ls="", ms=5, label=name)
        for name, (color, _) in GROUPS.items()
    ]
    handles.append(Line2D([], [], color="0.75", marker="o", ls="", ms=5, label=REST))
    target.legend(handles=handles, frameon=False, **options)


def _described(kernel: str, headline: pd.DataFrame) -> str:
    facts = headline[headline.kernel == kernel].set_index("statistic").value
    if "rise" not in facts:
        return kernel
    return f"{kernel}: loss + {facts['rise']:.2f} nats, reliability {facts['reliability']:.2f}"


def kernels(arrays: Path, headline: Path, output: Path, output_png: Path) -> None:
    """The maps of all kernels, from the exact limit on: the hierarchy comes in."""
    apply_style()
    data = read_npz(arrays)
    facts, names = pd.read_csv(headline), [str(name) for name in data["kernels"]]
    order, colors = _ordered(names), group_colors(data)
    columns = 3
    lines = -(-(len(order) + 1) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(3.7 * columns, 3.5 * lines))
    axes = grid.ravel()
    for axis, name in zip(axes, order, strict=False):
        points = data["embeddings"][names.index(name)]
        axis.scatter(*points.T, c=colors, s=6, linewidths=0)
        axis.set(xticks=[], yticks=[])
        axis.set_title(_described(name, facts), fontsize="medium")
    for axis in axes[len(order) :]:
        axis.axis("off")
    group_legend(axes[len(order)], loc="center", title="class of the image", fontsize="medium")
    save_figure(figure, output, output_png)


def map(arrays: Path, regions: Path, headline: Path, output: Path, output_png: Path) -> None:
    """The map of the headline's kernel with names, and how concentrated regions are by kernel."""
    apply_style()
    data = read_npz(arrays)
    table, facts = pd.read_csv(regions), pd.read_csv(headline)
    names, chosen = [str(name) for name in data["kernels"]], str(data["headline"])
    points, colors = data["embeddings"][names.index(chosen)], group_colors(data)
    figure, axes = plt.subplots(1, 2, figsize=(13, 6.6), width_ratios=(1.25, 1))
    axes[0].scatter(*points.T, c=colors, s=12, linewidths=0)
    for i in _spread_out(points, NAMES):
        axes[0].annotate(
            str(data["class_name"][i]),
            points[i],
            xytext=(0, 2),
            textcoords="offset points",
            fontsize=7.5,
            color=colors[i] if colors[i] != YELLOW else "#8F8600",
            ha="center",
            va="bottom",
        )
    axes[0].set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    axes[0].set_title(f"UMAP of R, {_described(chosen, facts)}")
    group_legend(
        axes[0], loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=3, fontsize="small"
    )
    shown = [name for name in (LIMIT, chosen, FEATURES) if name in names]
    found = list(table.region.unique())[::-1]
    look = styles(names)
    height = 0.8 / len(shown)
    for number, name in enumerate(shown):
        own = table[table.kernel == name].set_index("region").reindex(found)
        y = np.arange(len(found)) + ((len(shown) - 1) / 2 - number) * height
        axes[1].barh(
            y,
            own.lift,
            height * 0.9,
            xerr=own.standard_error.fillna(0),
            color=look[name]["color"],
            error_kw={"elinewidth": 1},
            label=name,
        )
        axes[1].plot(
            own.null_high,
            y,
            "|",
            color="black",
            ms=9,
            label="" if number else "97.5 % of random classes",
        )
    axes[1].set_yticks(range(len(found)), found)
    axes[1].axvline(1, color="black", linewidth=0.6)
    axes[1].set(
        xlabel=f"lift of the region among the {table.k.iloc[0]} nearest (1 = chance)",
        title="Regions of the hierarchy",
    )
    handles, labels = axes[1].get_legend_handles_labels()
    kept = [(handle, label) for handle, label in zip(handles, labels, strict=True) if label]
    axes[1].legend(*zip(*kept, strict=True), frameon=False, loc="lower right")
    save_figure(figure, output, output_png)


def _spread_out(points: np.ndarray, count: int) -> list[int]:
    """Up to ``count`` points, each the farthest from those before it."""
    chosen = [int(np.linalg.norm(points - np.median(points, axis=0), axis=1).argmin())]
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < min(count, len(points)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen


def matrix(arrays: Path, output: Path, output_png: Path) -> None:
    """Normalized kernel and depth of the lowest common hypernym, both in hierarchy order."""
    apply_style()
    data = read_npz(arrays)
    r, depth = data["R"].astype(float), data["hierarchy_depth"].astype(float)
    off = ~np.eye(len(r), dtype=bool)
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.4))
    limit = np.quantile(np.abs(r[off]), 0.99)
    image = axes[0].imshow(r, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="antialiased")
    figure.colorbar(image, ax=axes[0], label="R", shrink=0.7, extend="both")
    gamma, reliability = float(data["gamma"]), float(data["reliability"])
    axes[0].set_title(f"R at γ = {gamma:,.0f} (reliability {reliability:.2f})")
    width = max(1, len(r) // 50)
    smooth = _block_means(r, width)
    limit = np.quantile(np.abs(smooth[~np.eye(len(smooth), dtype=bool)]), 0.99)
    image = axes[1].imshow(
        smooth, cmap=DIVERGING, vmin=-limit, vmax=limit, extent=(0, len(r), len(r), 0)
    )
    figure.colorbar(image, ax=axes[1], label="mean R of a block", shrink=0.7, extend="both")
    axes[1].set_title(f"R averaged over blocks of {width} x {width} inputs")
    image = axes[2].imshow(depth, cmap="viridis", interpolation="antialiased")
    figure.colorbar(image, ax=axes[2], label="depth (steps from entity.n.01)", shrink=0.7)
    axes[2].set_title("Depth of the lowest common hypernym")
    for axis in axes:
        axis.set(xlabel="inputs in the order of WordNet")
    axes[0].set_ylabel("inputs in the order of WordNet")
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


def lift(statistics: Path, output: Path, output_png: Path) -> None:
    """Lift of the nearest and of the most opposed inputs by depth, at one number of neighbors."""
    apply_style()
    table = pd.read_csv(statistics)
    look, k = styles(list(table.kernel.unique())), table[table.statistic == "opposed_lift"].k.max()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
    for axis, statistic, title in (
        (axes[0], "lift", f"{k:g} nearest (largest R)"),
        (axes[1], "opposed_lift", f"{k:g} most opposed (smallest R)"),
    ):
        # A lift of 0 (no neighbor reaches the depth) has no place on a log axis.
        rows = table[(table.statistic == statistic) & (table.k == k) & (table.value > 0)]
        for name in _ordered(rows.kernel.unique()):
            own = rows[rows.kernel == name].sort_values("depth")
            axis.plot(own.depth, own.value, label=name, markersize=4, **look[name])
            low, high = own.value - own.standard_error, own.value + own.standard_error
            axis.fill_between(own.depth, low, high, color=look[name]["color"], alpha=0.25, lw=0)
        null = rows.groupby("depth")[["null_low", "null_high"]].agg(
            {"null_low": "min", "null_high": "max"}
        )
        axis.fill_between(
            null.index, null.null_low, null.null_high, color="black", alpha=0.12, lw=0
        )
        axis.axhline(1, color="black", linewidth=0.6)
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set(xlabel="depth of the shared hypernym (steps from entity)", title=title)
    axes[0].set_ylabel("lift of a shared hypernym (1 = chance)")
    axes[0].legend(
        frameon=False,
        title="colored bands: ± s.e. over draws; gray: 95 % of\npermutations of the classes",
        fontsize="small",
        title_fontsize="small",
    )
    save_figure(figure, output, output_png)


def semantics(statistics: Path, headline: Path, output: Path, output_png: Path) -> None:
    """Agreement with WordNet by kernel: correlation without noise, lift, clusters."""
    apply_style()
    table, facts = pd.read_csv(statistics), pd.read_csv(headline)
    names = _ordered(table.kernel.unique())
    look = styles(names)
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 7.4))
    for axis, chosen, ylabel, title, chance in (
        (axes[0, 0], ("correlation",), "correlation", "Signed R against WordNet similarity", 0),
        (
            axes[0, 1],
            ("correlation of the magnitude",),
            "correlation",
            "|R| against WordNet similarity",
            0,
        ),
        (
            axes[1, 0],
            ("lift", "lift of the most opposed"),
            "lift (1 = chance)",
            "Nearest (filled) and most opposed (open)",
            1,
        ),
    ):
        for number, statistic in enumerate(chosen):
            own = facts[facts.statistic == statistic].set_index("kernel").reindex(names)
            error = np.hypot(own.error_draws.fillna(0), own.error_classes)
            for x, name in enumerate(names):
                style = look[name] | ({"markerfacecolor": "white"} if number else {})
                axis.errorbar(
                    x + 0.12 * (2 * number - 1) * (len(chosen) - 1),
                    own.value[name],
                    error[name],
                    linestyle="",
                    **style,
                )
        axis.axhline(chance, color="black", linewidth=0.6)
        axis.set(ylabel=ylabel, title=title)
        axis.set_xticks(range(len(names)), names, rotation=25, ha="right")
    rows = table[table.statistic == "ami"]
    depths = sorted(rows.depth.unique())
    for number, name in enumerate(names):
        own = rows[rows.kernel == name].set_index("depth").reindex(depths)
        x = np.arange(len(depths)) + (number - (len(names) - 1) / 2) * 0.8 / len(names)
        axes[1, 1].plot(x, own.value, ls="", label=name, **look[name])
        axes[1, 1].bar(
            x, own.null_high - own.null_low, 0.6 / len(names), own.null_low, color="0.8", zorder=0
        )
    axes[1, 1].set_xticks(range(len(depths)), [f"depth {depth:g}" for depth in depths])
    axes[1, 1].set(
        ylabel="AMI (0 = chance)", title="Clusters of R against groups; gray: permuted classes"
    )
    axes[1, 1].set_ylim(None, 1.4 * axes[1, 1].get_ylim()[1])  # room for the legend
    axes[1, 1].legend(frameon=False, fontsize="small", loc="upper right", ncols=2)
    save_figure(figure, output, output_png)


def controls(controls: Path, depth: int, output: Path, output_png: Path) -> None:
    """Neighbors of equal label, and lift by depth with and without them, for each control."""
    apply_style()
    table = pd.read_csv(controls)
    look = styles(list(table.kernel.unique()))
    kept = table[(table.pairs == "kept") & (table.statistic == "same_label_share")]
    several = [c for c in table.control.unique() if kept[kept.control == c].value.max() > 0]
    names = list(table.control.unique())
    columns = min(3, 1 + len(names))
    lines = -(-(1 + len(names)) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(4.3 * columns, 4 * lines), squeeze=False)
    axes = grid.ravel()
    for axis in axes[1 + len(names) :]:
        axis.remove()
    for control in several:
        for kernel, rows in kept[kept.control == control].groupby("kernel", sort=False):
            style = look[kernel] | {"linestyle": "--" if "untrained" in control else "-"}
            network = CONTROLS[control].partition(",")[0]
            axes[0].plot(rows.k, rows.value, label=f"{network}, {kernel}", markersize=4, **style)
        band = axes[0].fill_between(
            rows.k, rows.null_low, rows.null_high, color="black", alpha=0.15, lw=0
        )
    if several:
        band.set_label("95 % of shuffled labels")
    axes[0].set(
        xlabel="number of nearest neighbors k",
        ylabel="share of neighbors of equal label",
        title="Several images a class, none removed",
        ylim=(0, 1.4),  # room for the legend
    )
    axes[0].set_yticks(np.arange(0, 1.01, 0.2))
    log_axis(axes[0].xaxis, table.k.min(), table.k.max())
    axes[0].legend(frameon=False, fontsize="small", loc="upper right")
    lifts = table[(table.statistic == "lift") & (table.value > 0)]
    ks = sorted(lifts.k.unique())
    k = 10 if 10 in ks else ks[-1]
    lifts = lifts[lifts.k == k]
    top, explained = 4 * lifts.value.max(), set()  # room for the legend
    for axis, control in zip(axes[1:], names, strict=False):
        own = lifts[lifts.control == control]
        for (kernel, pairs), rows in own.groupby(["kernel", "pairs"], sort=False):
            if pairs == "kept" and control not in several:
                continue  # one image a class: nothing to remove
            rows = rows.sort_values("depth")
            style = look[kernel] | {"linestyle": "-" if pairs == "removed" else ":"}
            label = f"{kernel}, pairs of equal label {pairs}" if control in several else kernel
            axis.plot(rows.depth, rows.value, label=label, markersize=3.5, **style)
            if pairs == "removed":
                band = axis.fill_between(
                    rows.depth, rows.null_low, rows.null_high, color="black", alpha=0.1, lw=0
                )
        band.set_label("95 % of shuffled labels")
        axis.axhline(1, color="black", linewidth=0.6)
        axis.axvline(
            depth, color="0.8", linewidth=0.8, zorder=0, label="depth of the row imagenet.lift"
        )
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(
            ylim=(0.5, top),
            xlabel="depth of the shared hypernym",
            ylabel=f"lift of the {k:g} nearest (1 = chance)",
            title=CONTROLS[control],
        )
        if (control in several) not in explained:  # the first of its kind
            axis.legend(frameon=False, fontsize="small", loc="upper left")
            explained.add(control in several)
    save_figure(figure, output, output_png)
