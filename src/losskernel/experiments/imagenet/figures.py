"""Figures of experiment 2: maps of the inputs, the kernel matrix, statistics, controls."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Rectangle

from losskernel.experiments.style import (
    BLUE,
    DIVERGING,
    GRAY,
    GREEN,
    HIERARCHY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    apply_style,
    log_axis,
    save_figure,
)
from losskernel.files import atomic_path
from losskernel.semantics.wordnet import OTHER_GROUP
from losskernel.trace import LossTrace

STYLES = {
    "loss kernel": {"color": BLUE, "marker": "o"},
    "loss kernel, draws alone": {"color": SKY, "marker": "x"},
    "exact limit": {"color": GREEN, "marker": "^"},
    "exact limit, not normalized": {"color": PURPLE, "marker": "D"},
    "penultimate features": {"color": ORANGE, "marker": "s"},
    "time-shifted null": {"color": GRAY, "marker": "v", "linestyle": "--"},
}
CONTROLS = {
    "trained": "trained network, one image a class",
    "untrained": "untrained network, one image a class",
    "tiny": "trained network, Tiny ImageNet",
    "tiny_untrained": "untrained network, Tiny ImageNet",
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


def map(arrays: Path, regions: Path, output: Path, output_png: Path) -> None:
    """UMAP of the first kernel, colored by position in the hierarchy, and its regions enlarged.

    An enlargement is centered where the region is densest and shows half of its inputs by name;
    gray are inputs of other classes. Beside its name: lift of the region among the nearest
    neighbors in the kernel and in the plane, with 97.5 % of what random classes of that number
    reach. The map has a frame for each region that exceeds this in the plane.
    """
    apply_style()
    with np.load(arrays) as stored:
        data = dict(stored)
    table = pd.read_csv(regions)
    kernel, points = str(data["kernels"][0]), data["embeddings"][0]
    table = table[table.kernel == kernel].set_index("region")
    figure = plt.figure(figsize=(14, 8.4))
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.05])
    axis, insets = left.subplots(), right.subplots(3, 3).ravel()
    drawn = _scatter(axis, points, data, size=12)
    axis.set(xlabel="UMAP 1", ylabel="UMAP 2", title=_map_title(kernel, data))
    margin = 0.03 * np.ptp(points, axis=0)
    edges = points.min(axis=0) - margin, points.max(axis=0) + margin
    _hierarchy_bar(left, drawn, axis, data, location="bottom")
    for inset in insets[len(data["regions"]) :]:
        inset.remove()
    for number, (region, inset) in enumerate(zip(data["regions"], insets, strict=False)):
        inside = data["members"][:, number]
        letter = chr(ord("a") + number)
        inset.set_xticks([])
        inset.set_yticks([])
        for side in inset.spines.values():
            side.set_visible(True)
        row = table.loc[str(region)]
        if row.classes < 2:  # no pair of unequal label, so no lift
            title = f"{letter}  {region}: {int(row.classes)} classes among the inputs"
            inset.set_title(title, fontsize=8, loc="left")
            continue
        center, width = _densest(points, inside)
        _enlarge(inset, points, inside, data, center, width)
        inset.set_title(
            f"{letter}  {region} ({int(row.classes)} classes)\n"
            f"lift {row.lift:.1f}{_plus_minus(row.standard_error)} (chance < {row.null_high:.1f})\n"
            f"in the plane {row.map_lift:.1f} (chance < {row.map_null_high:.1f})",
            fontsize=7.5,
            loc="left",
        )
        if not row.map_lift > row.map_null_high:
            continue
        low, high = np.maximum(center - width, edges[0]), np.minimum(center + width, edges[1])
        axis.add_patch(Rectangle(low, *(high - low), fill=False, lw=0.8, edgecolor="0.3"))
        axis.annotate(
            f"{letter}  {region}", (low[0], high[1]), fontsize=8, fontweight="bold", va="bottom"
        )
    save_figure(figure, output, output_png)


def _plus_minus(error: float) -> str:
    return "" if np.isnan(error) else f" ± {error:.1f}"


def _map_title(kernel: str, data: dict) -> str:
    if "loss kernel" in kernel:
        return f"UMAP of the {kernel} ({data['chains']} x {data['draws']} draws)"
    return f"UMAP of the {kernel}"


def _scatter(axis, points: np.ndarray, data: dict, size: float):
    return axis.scatter(
        *points.T, c=data["position"], cmap=HIERARCHY, s=size, vmin=0, vmax=1, linewidths=0
    )


def _densest(points: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, float]:
    """Center and half side of the smallest square around a member that holds half of them."""
    members = points[inside]
    apart = np.abs(members[:, None] - members[None]).max(axis=2)
    half = np.quantile(apart, 0.5, axis=1)
    best = int(half.argmin())
    # No closer than one point is seen beside another.
    return members[best], max(1.08 * float(half[best]), 0.02 * float(np.ptp(points)))


def _enlarge(axis, points, inside, data, center, width, names: int = 9) -> None:
    """Members in color and by name, as many as can be read; all others gray."""
    axis.scatter(*points[~inside].T, s=6, color="0.8", linewidths=0)
    _scatter(axis, points[inside], {"position": data["position"][inside]}, size=16)
    axis.set(xlim=center[0] + width * np.array([-1, 1]), ylim=center[1] + width * np.array([-1, 1]))
    # Not at the very edge, where a name would be cut.
    shown = np.flatnonzero(inside & (np.abs(points - center) <= 0.9 * width).all(axis=1))
    for i in _spread_out(points, shown, names):
        across = (points[i, 0] - center[0]) / width  # from -1 to 1; a name ends within the frame
        axis.annotate(
            str(data["class_name"][i]),
            points[i],
            xytext=(0, 2),
            textcoords="offset points",
            fontsize=7,
            ha="left" if across < -0.6 else "right" if across > 0.6 else "center",
            va="bottom",
            clip_on=True,
        )


def _spread_out(points: np.ndarray, candidates: np.ndarray, count: int) -> list[int]:
    """Up to ``count`` of the candidates, each the farthest from those before it."""
    chosen = [int(candidates[0])]
    distance = np.linalg.norm(points[candidates] - points[chosen[0]], axis=1)
    while len(chosen) < min(count, len(candidates)):
        chosen.append(int(candidates[distance.argmax()]))
        away = np.linalg.norm(points[candidates] - points[chosen[-1]], axis=1)
        distance = np.minimum(distance, away)
    return chosen


def _hierarchy_bar(figure, drawn, axes, data: dict, location: str) -> None:
    """The color bar, with groups of classes named where half of their inputs lie on either side."""
    bar = figure.colorbar(drawn, ax=axes, location=location, shrink=0.9, pad=0.01, aspect=40)
    bar.set_label("position of the class in the WordNet hierarchy (depth-first)")
    present = [g for g in np.unique(data["group"]) if data["group_names"][g] != OTHER_GROUP]
    where = [float(np.median(data["position"][data["group"] == g])) for g in present]
    order = np.argsort(where)
    # Names nearer than this would lie on each other.
    far = np.diff(np.array(where)[order], prepend=-1) > 0.035
    present, where = ([values[i] for i in order[far]] for values in (present, where))
    turned = {"rotation": 30, "ha": "right"} if location == "bottom" else {}
    names = [str(data["group_names"][g]) for g in present]
    bar.set_ticks(where, labels=names, fontsize=7, **turned)


def kernels(arrays: Path, output: Path, output_png: Path) -> None:
    """The maps of several kernels side by side: what sampling noise costs, and the baseline."""
    apply_style()
    with np.load(arrays) as stored:
        data = dict(stored)
    count = len(data["kernels"])
    figure, axes = plt.subplots(1, count, figsize=(4.2 * count + 1, 4.4), squeeze=False)
    for axis, name, points in zip(axes[0], data["kernels"], data["embeddings"], strict=True):
        drawn = _scatter(axis, points, data, size=9)
        for i in _spread_out(points, np.arange(len(points)), 14):
            axis.annotate(
                str(data["class_name"][i]), points[i], fontsize=7.5, ha="center", va="bottom"
            )
        axis.set(xlabel="UMAP 1", ylabel="UMAP 2", title=_map_title(str(name), data))
    _hierarchy_bar(figure, drawn, axes, data, location="right")
    save_figure(figure, output, output_png)


def orbit(arrays: Path, output: Path) -> None:
    """The map in three dimensions, turning once: an animated GIF."""
    apply_style()
    with np.load(arrays) as stored:
        data = dict(stored)
    # Constrained layout is solved anew for every frame, and moves the axes as the labels turn.
    figure = plt.figure(figsize=(5.4, 5), layout="none")
    axis = figure.add_axes((0, 0, 1, 0.95), projection="3d")
    # One size whatever the depth: GIF holds 256 colors, and fading takes many for each hue.
    axis.scatter(
        *data["orbit"].T,
        c=data["position"],
        cmap=HIERARCHY,
        s=10,
        vmin=0,
        vmax=1,
        linewidths=0,
        depthshade=False,
    )
    axis.set(xticks=[], yticks=[], zticks=[], xlabel="UMAP 1", ylabel="UMAP 2", zlabel="UMAP 3")
    figure.suptitle(
        f"{_map_title(str(data['kernels'][0]), data)}; color: place in the hierarchy", fontsize=8
    )
    frames = 60

    def turn(frame: int) -> None:
        axis.view_init(elev=20, azim=360 * frame / frames)

    animation = FuncAnimation(figure, turn, frames, interval=100)
    with atomic_path(output) as temporary:
        animation.save(temporary, writer=PillowWriter(fps=10), dpi=90)
    plt.close(figure)


def thumbnails(arrays: Path, images: Path, output: Path, output_png: Path) -> None:
    """The map with the photographs in place of points: to look at, not to publish.

    Photographs are not ours to give away.
    """
    from losskernel.data.images import decode  # here, as PyTorch comes with it

    apply_style()
    with np.load(arrays) as stored:
        data = dict(stored)
    points = data["embeddings"][0]
    figure, axis = plt.subplots(figsize=(12, 12))
    _scatter(axis, points, data, size=9)
    for point, name in zip(points, data["name"], strict=True):
        picture = decode((images / str(name)).read_bytes()).resize((24, 24))
        box = AnnotationBbox(OffsetImage(np.asarray(picture), zoom=0.5), point, frameon=False)
        axis.add_artist(box)
    title = _map_title(str(data["kernels"][0]), data)
    axis.set(xlabel="UMAP 1", ylabel="UMAP 2", title=title)
    save_figure(figure, output, output_png)


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


def lift(statistics: Path, output: Path, output_png: Path) -> None:
    """Lift of the nearest neighbors by depth (at one k) and by k (at one depth)."""
    apply_style()
    table = pd.read_csv(statistics)
    # A lift of 0 (no neighbor reaches the depth) has no place on a log axis.
    table = table[(table.statistic == "lift") & (table.value > 0)]
    ks = sorted(table.k.unique())
    k = 10 if 10 in ks else ks[-1]
    depths = sorted(table.depth.unique())
    shown = 9 if 9 in depths else depths[len(depths) // 2]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=False)
    for axis, x, fixed, at in ((axes[0], "depth", "k", k), (axes[1], "k", "depth", shown)):
        for name, rows in table[table[fixed] == at].groupby("kernel", sort=False):
            rows = rows.sort_values(x)
            axis.plot(rows[x], rows.value, label=name, markersize=4, **STYLES[name])
            low, high = rows.value - rows.standard_error, rows.value + rows.standard_error
            axis.fill_between(rows[x], low, high, color=STYLES[name]["color"], alpha=0.2, lw=0)
            if name == "loss kernel":
                axis.fill_between(
                    rows[x], rows.null_low, rows.null_high, color="black", alpha=0.12, lw=0
                )
        axis.axhline(1, color="black", linewidth=0.6)
        axis.set_ylabel("taxonomic lift (1 = chance)")
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:g}")
    axes[0].set(xlabel="depth of the shared hypernym (steps from entity)")
    axes[0].set_title(f"{k:g} nearest neighbors")
    axes[1].set(xlabel="number of nearest neighbors k")
    log_axis(axes[1].xaxis, min(ks), max(ks))
    axes[1].set_title(f"shared hypernym at depth {shown:g} or deeper")
    axes[0].legend(
        frameon=False,
        title="colored bands: ± s.e. over draws; gray: 95 % of label\npermutations (loss kernel)",
        fontsize="small",
        title_fontsize="small",
    )
    save_figure(figure, output, output_png)


def semantics(statistics: Path, regions: Path, output: Path, output_png: Path) -> None:
    """Rank correlations, clusters and regions by kernel, with errors and nulls."""
    apply_style()
    table = pd.read_csv(statistics)
    figure, axes = plt.subplots(2, 3, figsize=(14, 8.2))
    measures = {"path": "path", "wu_palmer": "Wu-Palmer", "lch_depth": "depth of\nhypernym"}
    for axis, prefix, title in (
        (axes[0, 0], "spearman", "R against WordNet similarity"),
        (axes[0, 1], "spearman_magnitude", "|R| against WordNet similarity"),
    ):
        rows = table[table.statistic.isin([f"{prefix}_{name}" for name in measures])]
        _dots(axis, rows, [f"{prefix}_{name}" for name in measures], "statistic")
        axis.set_xticks(range(len(measures)), list(measures.values()))
        axis.set(ylabel="Spearman correlation", title=title)
    alignments = {
        "spearman_features": "R",
        "spearman_magnitude_features": "|R|",
    }
    # Not CKA: its diagonal, 1 in every kernel, outweighs the rest.
    rows = table[table.statistic.isin(alignments) & (table.kernel != "penultimate features")]
    _dots(axes[0, 2], rows, list(alignments), "statistic")
    axes[0, 2].set_xticks(range(len(alignments)), list(alignments.values()))
    axes[0, 2].set(ylabel="Spearman correlation", title="Agreement with the kernel of the features")
    for axis, name, title in (
        (axes[1, 0], "ami", "Clusters against groups: adjusted mutual information"),
        (axes[1, 1], "purity", "Clusters against groups: purity"),
    ):
        rows = table[table.statistic == name]
        found = sorted(rows.depth.unique())
        _dots(axis, rows, found, "depth")
        number = rows.drop_duplicates("depth").set_index("depth").k
        axis.set_xticks(
            range(len(found)), [f"{depth:g}\n({number[depth]:g} clusters)" for depth in found]
        )
        axis.set(xlabel="depth of the groups (steps from entity)", ylabel=name, title=title)
    axes[1, 0].set_ylabel("AMI (0 = chance)")
    axes[1, 1].set_ylabel("share of the commonest group")
    where = pd.read_csv(regions).rename(columns={"lift": "value"})
    found = list(where.region.unique())
    _dots(axes[1, 2], where, found, "region")
    axes[1, 2].set_xticks(range(len(found)), found, rotation=40, ha="right")
    axes[1, 2].set(
        ylabel="lift (1 = chance)", title=f"Regions among the {where.k.iloc[0]} nearest neighbors"
    )
    axes[1, 2].set_yscale("symlog", linthresh=1)
    axes[1, 2].set_ylim(0, 1.4 * where.value.max())
    axes[1, 2].yaxis.set_major_formatter("{x:g}")
    for axis in axes.flat:
        axis.axhline(1 if axis is axes[1, 2] else 0, color="black", linewidth=0.5)
    handles = [
        Line2D([], [], color=STYLES[n]["color"], marker=STYLES[n]["marker"], ls="", label=n)
        for n in STYLES
        if n in set(table.kernel)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        title="whiskers: ± s.e. over draws (exact kernels have none); gray bars: 95 % of label "
        "permutations",
    )
    save_figure(figure, output, output_png)


def _dots(axis, rows: pd.DataFrame, categories: list, column: str) -> None:
    """One dot a kernel and category, beside each other, with whiskers and the null behind it."""
    shown = [name for name in STYLES if name in set(rows.kernel)]
    step = 0.8 / len(shown)
    for number, name in enumerate(shown):
        own = rows[rows.kernel == name].set_index(column).reindex(categories)
        x = np.arange(len(categories)) + (number - (len(shown) - 1) / 2) * step
        axis.bar(
            x,
            own.null_high - own.null_low,
            bottom=own.null_low,
            width=0.8 * step,
            color="0.8",
            zorder=1,
        )
        style = STYLES[name]
        axis.errorbar(
            x,
            own.value,
            yerr=own.standard_error.fillna(0),
            color=style["color"],
            marker=style["marker"],
            linestyle="",
            markersize=5,
            elinewidth=1.2,
            zorder=3,
        )


def controls(controls: Path, depth: int, output: Path, output_png: Path) -> None:
    """Neighbors of equal label, and lift by depth with and without them, for each control."""
    apply_style()
    table = pd.read_csv(controls)
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
            style = STYLES[kernel] | {"linestyle": "--" if "untrained" in control else "-"}
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
    top = 4 * lifts.value.max()  # room for the legend
    for axis, control in zip(axes[1:], names, strict=False):
        own = lifts[lifts.control == control]
        for (kernel, pairs), rows in own.groupby(["kernel", "pairs"], sort=False):
            if pairs == "kept" and control not in several:
                continue  # one image a class: nothing to remove
            rows = rows.sort_values("depth")
            style = STYLES[kernel] | {"linestyle": "-" if pairs == "removed" else ":"}
            label = f"{kernel}, pairs of equal label {pairs}" if control in several else kernel
            axis.plot(rows.depth, rows.value, label=label, markersize=3.5, **style)
            if pairs == "removed":
                band = axis.fill_between(
                    rows.depth, rows.null_low, rows.null_high, color="black", alpha=0.1, lw=0
                )
        band.set_label("95 % of shuffled labels")
        axis.axhline(1, color="black", linewidth=0.6)
        axis.axvline(
            depth, color="0.8", linewidth=0.8, zorder=0, label="depth of the table's claim"
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
        axis.legend(frameon=False, fontsize="small", loc="upper left")
    save_figure(figure, output, output_png)


def convergence(convergence: Path, trace: Path, output: Path, output_png: Path) -> None:
    """CKA of R against draws, and the mean loss along each chain."""
    apply_style()
    table, loaded = pd.read_csv(convergence), LossTrace.load(trace)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for kind, rows in table.groupby("kind", sort=False):
        axes[0].plot(
            rows.draws,
            rows.cka,
            markersize=3,
            label=kind.replace("to final", "to the whole run"),
            **CURVES[kind],
        )
    axes[0].set(xlabel="draws a chain", ylabel="CKA of R", ylim=(0, 1.02), title="Convergence")
    log_axis(axes[0].xaxis, table.draws.min(), table.draws.max())
    both = table.kind.str.endswith("draws alone").any()
    axes[0].legend(
        frameon=False,
        fontsize="small",
        title="with the control variate, or draws alone" if both else None,
        title_fontsize="small",
    )
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
