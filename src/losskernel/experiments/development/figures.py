"""Figures of experiment 5: map, lift and order of the depths along training; an animated map."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axis import Axis

from losskernel.data.arithmetic import ADDITION, DIVISION
from losskernel.experiments.development.analyze import ALL, SHUFFLED
from losskernel.experiments.style import (
    BLUE,
    GRAY,
    GREEN,
    HIERARCHY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    apply_style,
    save_figure,
)
from losskernel.files import atomic_path
from losskernel.semantics.wordnet import OTHER_GROUP

STYLES = {
    "loss kernel, fixed gamma": (BLUE, "o"),
    "loss kernel, fixed rise": (SKY, "D"),
    "gradient cosine": (GREEN, "^"),
    "feature cosine": (ORANGE, "s"),
}
NAMED = {"lift": "lift", "conditional_auc": "conditional AUC"}
LIFTED = ("loss kernel, fixed gamma", "loss kernel, fixed rise", "feature cosine")
SHOWN_MAPS = 6
BETWEEN, PAUSE = 6, 8  # frames of the animation between two checkpoints, and at each


def trajectory(
    metrics: Path, crossings: Path, order: Path, arrays: Path, output: Path, output_png: Path
) -> None:
    """Maps in a row; below, lift by depth along training, crossing steps, CKA of checkpoints.

    Maps and CKA are of one network, the rest of the mean over networks, if there are several.
    """
    apply_style()
    with np.load(arrays) as stored:
        data = dict(stored)
    steps = data["steps"]
    figure = plt.figure(figsize=(12.5, 10.5))
    above, below = figure.subfigures(2, 1, height_ratios=(1, 3))
    maps = above.subplots(1, SHOWN_MAPS)
    lift_axes, order_axes = below.subplots(2, 3)
    chosen = np.unique(np.linspace(0, len(steps) - 1, SHOWN_MAPS).round().astype(int))
    for axis in maps[len(chosen) :]:
        axis.axis("off")
    for axis, at in zip(maps, chosen, strict=False):
        points = _scatter(axis, data, data["maps"][0, at])
        axis.set_title(f"step {steps[at]} (top-1 {data['top1'][at]:.1%})")
    maps[0].set_ylabel(f"UMAP: {data['map_kernels'][0]}")
    bar = above.colorbar(points, ax=maps, shrink=0.95, pad=0.01)
    present = [g for g in np.unique(data["group"]) if data["group_names"][g] != OTHER_GROUP]
    where = [float(np.median(data["position"][data["group"] == g])) for g in present]
    order_along = np.argsort(where)
    # Names nearer than this would lie on each other.
    far = order_along[np.diff(np.array(where)[order_along], prepend=-1) > 0.06]
    names = [str(data["group_names"][present[i]]) for i in far]
    bar.set_ticks([where[i] for i in far], labels=names)
    bar.set_label("place in the\nWordNet hierarchy")
    table = pd.read_csv(metrics, dtype={"network": str})
    network = ALL if (table["network"] == ALL).any() else table["network"].iloc[0]
    lifts = table[(table["statistic"] == "lift") & (table["network"] == network)]
    lifts = lifts[lifts["kernel"].isin(LIFTED) & lifts["depth"].isin(_every_other(lifts["depth"]))]
    top = (lifts["value"] + _error(lifts, "error_")).max() * 1.03
    for axis, name in zip(lift_axes, LIFTED, strict=True):
        _lift(axis, lifts[lifts["kernel"] == name], steps)
        axis.set(title=name, ylim=(min(0.8, lifts["value"].min()), top))
    own = [one for one in table["network"].unique() if not one.startswith((ALL, SHUFFLED))]
    of = f"mean of {len(own)} networks" if network == ALL else "one network"
    lift_axes[0].set_ylabel(f"taxonomic lift (1 = chance),\n{of}, ± s.e.")
    lift_axes[0].legend(title="hypernym depth", frameon=False, loc="upper left")
    _crossings(order_axes[0], crossings, order, network, "lift", steps)
    _crossings(order_axes[1], crossings, order, network, "conditional_auc", steps)
    _similarity(below, order_axes[2], data)
    save_figure(figure, output, output_png)


def _every_other(depths: pd.Series) -> np.ndarray:
    """Every second depth, the deepest among them: more lines cannot be told apart."""
    return np.sort(depths.unique())[::-2]


def _scatter(axis, data: dict, points: np.ndarray):
    axis.set(xticks=[], yticks=[])
    return axis.scatter(
        *points.T, c=data["position"], cmap=HIERARCHY, s=7, vmin=0, vmax=1, linewidths=0
    )


def _step_axis(axis: Axis, steps: np.ndarray) -> None:
    """Logarithmic from the first checkpoint after initialization, which has a place beside it."""
    first, last = np.unique(steps)[1], np.max(steps)
    scale = {"linthresh": first, "linscale": 0.4}
    getattr(axis.axes, f"set_{axis.axis_name}scale")("symlog", **scale)
    getattr(axis.axes, f"set_{axis.axis_name}lim")(-first / 4, 1.2 * last)
    ticks = [0, first]
    for step in np.unique(steps)[2:]:
        if step >= 2.5 * ticks[-1] and last >= 2.5 * step:
            ticks.append(step)
    axis.set_ticks([*ticks, last], labels=[f"{tick:g}" for tick in (*ticks, last)])
    axis.set_ticks([], minor=True)


def _lift(axis, rows: pd.DataFrame, steps: np.ndarray) -> None:
    depths = sorted(rows["depth"].unique())
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.92, len(depths)))
    for depth, color, marker in zip(depths, colors, cycle("osD^v"), strict=False):
        curve = rows[rows["depth"] == depth].sort_values("step")
        error = _error(curve, "error_")
        axis.errorbar(
            curve["step"],
            curve["value"],
            error,
            color=color,
            marker=marker,
            ms=4,
            elinewidth=0.8,
            label=f"{depth:g}",
        )
    deepest = rows[rows["depth"] == depths[-1]].sort_values("step")
    band = deepest["null_low"], deepest["null_high"]
    axis.fill_between(deepest["step"], *band, color=GRAY, alpha=0.2, lw=0)
    axis.axhline(1, color="black", linewidth=0.6)
    _step_axis(axis.xaxis, steps)
    axis.set_xlabel("training step (0 = initialization)")


def _error(rows: pd.DataFrame, prefix: str) -> pd.Series:
    """All kinds of standard error of a row in one; a kind that is not known counts as none."""
    kinds = [column for column in rows if column.startswith(prefix)]
    return np.sqrt((rows[kinds].fillna(0) ** 2).sum(axis=1))


def _crossings(
    axis, crossings: Path, order: Path, network: str, statistic: str, steps: np.ndarray
) -> None:
    table = pd.read_csv(crossings, dtype={"network": str})
    orders = pd.read_csv(order, dtype={"network": str})
    chosen = {"network": network, "statistic": statistic, "from": "chance"}
    for column, value in chosen.items():
        table, orders = table[table[column] == value], orders[orders[column] == value]
    trends = orders.set_index("kernel")["spearman"]
    for shift, (name, (color, marker)) in enumerate(STYLES.items()):
        own = table[(table["kernel"] == name) & np.isfinite(table["step"])]
        for resolved, alpha in ((True, 1.0), (False, 0.25)):
            part = own[own["resolved"] == resolved]
            error = _error(part, "log_error_")
            low, high = (np.expm1(np.log1p(part["step"]) + sign * error) for sign in (-1, 1))
            axis.errorbar(
                part["depth"] + 0.12 * (shift - 1.5),
                part["step"],
                (part["step"] - low.clip(0), high.clip(upper=steps.max()) - part["step"]),
                fmt=marker,
                color=color,
                alpha=alpha,
                ms=5,
                elinewidth=0.8,
            )
        trend = f"{trends[name]:+.2f}" if np.isfinite(trends.get(name, np.nan)) else "not told"
        axis.plot([], [], marker, color=color, label=f"{name}: {trend}")
    _step_axis(axis.yaxis, steps)
    axis.set(xlabel="hypernym depth", ylabel="step at half of the final value")
    axis.set_title(f"When each depth appears, by {NAMED[statistic]}\n(± s.e.; faint: within null)")
    axis.legend(
        frameon=False,
        title="rank correlation of depth and step",
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
    )


def _similarity(figure, axis, data: dict) -> None:
    which = list(data["kernels"]).index(str(data["map_kernels"][0]))
    image = axis.imshow(data["similarity"][which], cmap="viridis", vmin=0, vmax=1)
    steps = data["steps"]
    axis.set_xticks(range(len(steps)), steps, rotation=90)
    axis.set_yticks(range(len(steps)), steps)
    axis.set(xlabel="training step", ylabel="training step")
    axis.set_title("CKA of checkpoints, corrected for noise\n(blank: kernel not above its noise)")
    figure.colorbar(image, ax=axis, shrink=0.8, label="CKA", extend="both")


def animation(arrays: Path, output: Path) -> None:
    """The map of the inputs along training as a GIF, positions moved evenly between checkpoints."""
    apply_style()
    with np.load(arrays) as stored:
        data = dict(stored)
    maps, steps = data["maps"][0], data["steps"]
    maps = (maps - maps.mean(axis=1, keepdims=True)) / np.abs(maps).std(axis=(1, 2), keepdims=True)
    frames = [(at, 0.0) for at in range(len(steps)) for _ in range(PAUSE)]
    frames += [
        (at, share)
        for at in range(len(steps) - 1)
        for share in np.linspace(0, 1, BETWEEN + 2)[1:-1]
    ]
    frames.sort()
    figure, axis = plt.subplots(figsize=(4.8, 5), dpi=90)
    points = _scatter(axis, data, maps[0])
    limit = 1.05 * np.abs(maps).max()
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")

    def draw(frame: tuple[int, float]):
        at, share = frame
        moved = maps[at] if share == 0 else (1 - share) * maps[at] + share * maps[at + 1]
        points.set_offsets(moved)
        axis.set_title(f"{data['map_kernels'][0]}\nstep {steps[at]}, top-1 {data['top1'][at]:.1%}")
        return (points,)

    drawn = FuncAnimation(figure, draw, frames=frames, blit=False)
    with atomic_path(output) as temporary:
        drawn.save(temporary, writer=PillowWriter(fps=12))
    plt.close(figure)


def arithmetic(table: Path, maps: Path, output: Path, output_png: Path) -> None:
    """Accuracy, separation, R and learning coefficient along training; maps of the inputs."""
    apply_style()
    rows = pd.read_csv(table)
    with np.load(maps) as stored:
        data = dict(stored)
    steps = np.sort(rows["step"].unique())
    mean = rows.groupby("step").mean(numeric_only=True)
    spread = rows.groupby("step").std(ddof=1, numeric_only=True)
    networks = rows["training_seed"].nunique()
    at = mean.index
    figure, axes = plt.subplots(2, 4, figsize=(14, 6.6))

    def line(axis, column, color, marker, label, error=None, **options):
        sizes = spread[column] if networks > 1 else (None if error is None else mean[error])
        axis.errorbar(
            at, mean[column], sizes, color=color, marker=marker, ms=4, label=label, **options
        )

    line(axes[0, 0], "train_accuracy", BLUE, "o", "training pairs")
    line(axes[0, 0], "test_accuracy", VERMILION, "s", "held-out pairs")
    axes[0, 0].set(ylabel="accuracy", title="Memorization, then generalization")
    line(axes[0, 1], "auc_corrected", BLUE, "o", "signed R", "auc_corrected_error")
    line(axes[0, 1], "limit_auc_R", GREEN, "^", "exact limit, signed", ls="--")
    line(axes[0, 1], "limit_auc_|R|", GREEN, "v", "exact limit, magnitude", ls=":")
    line(axes[0, 1], "auc_null", GRAY, ".", "random groups", ls=":")
    axes[0, 1].set(ylabel="ROC-AUC of same-task pairs", title="Separation, without noise")
    line(axes[0, 2], "R_mean_addition", BLUE, "o", "within addition", "R_mean_error_addition")
    line(axes[0, 2], "R_mean_division", ORANGE, "s", "within division", "R_mean_error_division")
    line(axes[0, 2], "R_mean_across", GRAY, "^", "across tasks", "R_mean_error_across")
    axes[0, 2].axhline(0, color="black", linewidth=0.6)
    axes[0, 2].set(ylabel="mean R over pairs", title="R by relation")
    line(axes[0, 3], "learning_coefficient", PURPLE, "o", None, "learning_coefficient_error")
    axes[0, 3].axhline(0, color="black", linewidth=0.6)
    axes[0, 3].set(ylabel="local learning coefficient", title="nβ × rise of the mean loss")
    for axis in axes[0]:
        _step_axis(axis.xaxis, steps)
        axis.set_xlabel("training step (0 = initialization)")
    for axis in axes[0, :3]:
        axis.legend(frameon=False, fontsize="small")
    chosen = np.unique(np.linspace(0, len(data["steps"]) - 1, 4).round().astype(int))
    for axis in axes[1, len(chosen) :]:
        axis.axis("off")
    for axis, number in zip(axes[1], chosen, strict=False):
        for task, name, color in ((ADDITION, "addition", BLUE), (DIVISION, "division", ORANGE)):
            points = data["maps"][number][data["task"] == task]
            axis.scatter(*points.T, color=color, s=8, linewidths=0, label=name)
        axis.set(xticks=[], yticks=[], title=f"UMAP of signed R, step {data['steps'][number]}")
    axes[1, 0].legend(frameon=False, fontsize="small")
    save_figure(figure, output, output_png)
