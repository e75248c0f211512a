"""Figures of experiment 5: lift, order of the depths and maps along training; an animated map."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axis import Axis

from losskernel.data.arithmetic import ADDITION, DIVISION
from losskernel.experiments.development.analyze import ALL, HEADLINE, SHUFFLED
from losskernel.experiments.development.kernels import FEATURES, SAMPLED
from losskernel.experiments.imagenet.figures import group_colors, group_legend
from losskernel.experiments.style import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILION,
    apply_style,
    save_figure,
)
from losskernel.files import atomic_path

BETWEEN, PAUSE = 3, 2  # frames of the animation between two checkpoints, and at each


def trajectory(
    metrics: Path, crossings: Path, arrays: Path, settings: dict, output: Path, output_png: Path
) -> None:
    """Lift by depth over its final value, crossings beside those of growth alone, and two maps.

    Maps are of one network, the rest of the mean over networks, if there are several.
    """
    apply_style()
    with np.load(arrays) as stored:
        data = dict(stored)
    name = SAMPLED[settings["headline"]]
    table = pd.read_csv(metrics, dtype={"network": str})
    network = ALL if (table["network"] == ALL).any() else table["network"].iloc[0]
    crossed = pd.read_csv(crossings, dtype={"network": str})
    crossed = crossed[crossed["network"] == network]
    crossed = crossed[
        (crossed[["share", "of"]] == list(HEADLINE)).all(axis=1) & crossed["resolved"]
    ]
    lifts = table[(table["statistic"] == "lift") & (table["network"] == network)]
    figure = plt.figure(figsize=(10, 8.5))
    above, below = figure.subfigures(2, 1)
    lift_axis, crossing_axis = above.subplots(1, 2)
    own = [one for one in table["network"].unique() if not one.startswith((ALL, SHUFFLED))]
    of = f"mean of {len(own)} networks" if network == ALL else "one network"
    chosen = crossed[crossed["kernel"] == name].sort_values("depth")
    shown = lifts[(lifts["kernel"] == name) & lifts["depth"].isin(_three(chosen["depth"]))]
    _lift(lift_axis, shown, data["steps"])
    lift_axis.set(title=f"Lift by depth ({of}; bands ± s.e.)")
    lift_axis.set(ylabel="(lift − 1) / (final lift − 1)", ylim=(-0.6, 2.6))
    lift_axis.legend(title="hypernym depth", frameon=False, loc="upper left", ncols=3)
    _crossings(crossing_axis, chosen, crossed[crossed["kernel"] == FEATURES], data["steps"])
    maps = below.subplots(1, 2)
    middle = np.log1p(chosen["step"]).median()  # when half of the depths have appeared
    early = int(np.nanargmin(np.abs(np.log1p(data["steps"]) - middle))) if len(chosen) else 0
    for axis, at in zip(maps, (early, len(data["steps"]) - 1), strict=True):
        _scatter(axis, data, data["maps"][at])
        axis.set_title(
            f"UMAP of the inputs at step {data['steps'][at]} (top-1 {data['top1'][at]:.1%})"
        )
    group_legend(below, loc="outside lower center", ncols=5, fontsize="small")
    save_figure(figure, output, output_png)


def _three(depths: pd.Series) -> np.ndarray:
    """Three depths, the finest among them: more lines cannot be told apart."""
    found = np.sort(depths.unique())
    return found[np.linspace(0, len(found) - 1, 4).round().astype(int)[1:]] if len(found) else found


def _scatter(axis, data: dict, points: np.ndarray):
    axis.set(xticks=[], yticks=[])
    return axis.scatter(*points.T, c=group_colors(data), s=7, linewidths=0)


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
        height = curve["value"].iloc[-1] - 1
        value, error = (curve["value"] - 1) / height, _error(curve, "error_") / height
        axis.plot(curve["step"], value, color=color, marker=marker, ms=3.5, label=f"{depth:g}")
        axis.fill_between(
            curve["step"], value - error, value + error, color=color, alpha=0.15, lw=0
        )
    for level in (0, HEADLINE[0], 1):
        axis.axhline(level, color="black", linewidth=0.6, ls=":" if level else "-")
    _step_axis(axis.xaxis, steps)
    axis.set_xlabel("training step (0 = initialization)")


def _error(rows: pd.DataFrame, prefix: str) -> pd.Series:
    """All kinds of standard error of a row in one; a kind that is not known counts as none."""
    kinds = [column for column in rows if column.startswith(prefix)]
    return np.sqrt((rows[kinds].fillna(0) ** 2).sum(axis=1))


def _crossings(axis, rows: pd.DataFrame, features: pd.DataFrame, steps: np.ndarray) -> None:
    middle, spread = np.log1p(rows["grown_step"]), 2 * rows["log_grown_spread"]
    band = np.expm1(middle - spread), np.expm1(middle + spread)
    axis.fill_between(rows["depth"], *band, color=GRAY, alpha=0.25, lw=0)
    axis.plot(rows["depth"], rows["grown_step"], color=GRAY, label="growth of one kernel alone")
    error = _error(rows, "log_error_")
    low, high = (np.expm1(np.log1p(rows["step"]) + sign * error) for sign in (-1, 1))
    bars = rows["step"] - low.clip(0), high.clip(upper=steps.max()) - rows["step"]
    axis.errorbar(rows["depth"], rows["step"], bars, fmt="o", color=BLUE, label="loss kernel")
    late = rows[rows["later"]]
    if len(late):
        axis.plot(late["depth"], late["step"], "o", color=VERMILION, label="later than that")
    axis.plot(features["depth"], features["step"], "s", color=ORANGE, mfc="white", label="features")
    _step_axis(axis.yaxis, steps)
    axis.set(xlabel="hypernym depth", ylabel="step at half of the final lift")
    axis.set_title("When each depth appears (± s.e.; gray ± 2 sd)")
    axis.legend(frameon=False, fontsize="small", loc="upper left")


def animation(arrays: Path, output: Path) -> None:
    """The map of the inputs along training as a GIF, positions moved evenly between checkpoints."""
    apply_style()
    with np.load(arrays) as stored:
        data = dict(stored)
    maps, steps = data["maps"], data["steps"]
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
        axis.set_title(f"{data['kernel']}\nstep {steps[at]}, top-1 {data['top1'][at]:.1%}")
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
