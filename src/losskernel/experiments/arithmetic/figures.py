"""Figures of experiment 1: the kernel of one network by task, and the search over regimes."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from losskernel.data.arithmetic import ADDITION, DIVISION
from losskernel.experiments.claims import reported
from losskernel.experiments.style import (
    BLUE,
    DIVERGING,
    GRAY,
    GREEN,
    ORANGE,
    apply_style,
    save_figure,
)
from losskernel.semantics.separation import pair_blocks

COLORS = {"within addition": BLUE, "within division": ORANGE, "across tasks": GRAY}
KINDS = {
    "within addition": (ADDITION, ADDITION),
    "within division": (DIVISION, DIVISION),
    "across tasks": (ADDITION, DIVISION),
}


def separation(kernel: Path, summary: Path, output: Path, output_png: Path) -> None:
    """Figure 3: kernel matrix, embedding, distributions of K and R by task, and AUC over seeds."""
    apply_style()
    with np.load(kernel) as stored:
        data = dict(stored)
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.6), width_ratios=(1.1, 1, 1))
    _matrix(axes[0, 0], data)
    _embedding(axes[0, 1], data)
    _distribution(axes[0, 2], data["R"], data["task"], "normalized kernel R", "R")
    _distribution(
        axes[1, 0],
        np.abs(data["K"]),
        data["task"],
        "magnitude of the loss kernel (nats²)",
        "|K|",
        log=True,
    )
    _auc(axes[1, 1], pd.read_csv(summary), reported("arithmetic.auc"))
    _spread(axes[1, 2], data)
    save_figure(figure, output, output_png)


def _matrix(axis, data: dict) -> None:
    r, task = data["R"], data["task"]
    limit = np.quantile(np.abs(r[~np.eye(len(r), dtype=bool)]), 0.99)
    image = axis.imshow(r, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="antialiased")
    border = int((task == ADDITION).sum())
    for line in (axis.axhline, axis.axvline):
        line(border - 0.5, color="black", linewidth=0.8)
    ticks = [border / 2, (border + len(r)) / 2]
    axis.set_xticks(ticks, ["addition", "division"])
    axis.set_yticks(ticks, ["addition", "division"], rotation=90, va="center")
    axis.set_title("Normalized kernel R, inputs by task")
    axis.figure.colorbar(image, ax=axis, label="R", shrink=0.8, extend="both")


def _embedding(axis, data: dict) -> None:
    for name, task in (("addition", ADDITION), ("division", DIVISION)):
        points = data["embedding"][data["task"] == task]
        axis.scatter(*points.T, s=4, alpha=0.6, color=COLORS[f"within {name}"], label=name)
    axis.set(xlabel="UMAP 1", ylabel="UMAP 2", title="Embedding of the inputs from |R|")
    axis.legend(markerscale=3, frameon=False)


def _distribution(
    axis, matrix: np.ndarray, task: np.ndarray, label: str, symbol: str, log: bool = False
) -> None:
    """Histograms by kind of pair; the bins are equally wide on the axis, logarithmic or not."""
    blocks = pair_blocks(matrix, task)
    low, high = np.quantile(np.concatenate(list(blocks.values())), [0.001, 0.999])
    edges = np.geomspace(low, high, 120) if log else np.linspace(low, high, 120)
    if log:
        axis.set_xscale("log")
    for name, kind in KINDS.items():
        counts, _ = np.histogram(blocks[kind], edges)
        share = counts / len(blocks[kind])
        axis.stairs(share, edges, color=COLORS[name], label=name, linewidth=1.4)
    axis.set(xlabel=label, ylabel="share of pairs in a bin", yscale="log")
    axis.set_title(f"Distribution of {symbol} over pairs")
    axis.legend(frameon=False, fontsize="small")


def _auc(axis, summary: pd.DataFrame, paper: float) -> None:
    by = {statistic: rows.set_index("group") for statistic, rows in summary.groupby("statistic")}
    groups, scores = list(by["mean"].index), ["K", "R", "|K|", "|R|"]
    width = 0.8 / len(scores)
    for i, (score, color) in enumerate(zip(scores, (GRAY, ORANGE, GREEN, BLUE), strict=True)):
        at = np.arange(len(groups)) + (i - 1.5) * width
        column = f"auc_{score}"
        axis.bar(
            at,
            by["mean"][column],
            width,
            yerr=by["sd"].loc[groups, column],
            color=color,
            label=score,
            error_kw={"linewidth": 0.8},
        )
        limit = by["mean"][f"limit_{column}"]
        axis.scatter(at, limit, marker="_", s=60, color="black", zorder=3, linewidth=1.2)
    axis.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    axis.axhline(paper, color="black", linewidth=0.8, linestyle="--")
    axis.text(len(groups) - 0.5, paper, f"paper {paper:g}", ha="right", va="bottom", fontsize=7)
    networks = int(summary["networks"].max())
    names = [group.replace("_", " ") for group in groups]
    axis.set_xticks(range(len(groups)), names, rotation=20, ha="right")
    axis.set(ylim=(0.3, 1.3), xlabel="weights perturbed", ylabel="pair ROC-AUC")
    axis.set_yticks([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])
    axis.set_title(f"Same task or not? ({networks} networks, ± sd)")
    axis.scatter([], [], marker="_", color="black", label="exact limit")
    axis.legend(title="score", ncols=3, frameon=False, loc="upper left", fontsize="small")


def _spread(axis, data: dict) -> None:
    blocks = pair_blocks(data["R"], data["task"])
    names = list(KINDS)
    deviations = [blocks[KINDS[name]].std() for name in names]
    means = [blocks[KINDS[name]].mean() for name in names]
    at = np.arange(len(names))
    colors = [COLORS[name] for name in names]
    axis.bar(at, deviations, 0.6, color=colors, label="sd")
    axis.scatter(at, means, marker="D", s=22, color="black", zorder=3, label="mean")
    floor = float(data["noise_floor"])
    axis.axhline(floor, color="black", linestyle="--", linewidth=0.8, label="noise floor")
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set_xticks(at, [name.replace(" ", "\n") for name in names])
    axis.set(ylabel="R", title="Mean and sd of R over pairs")
    axis.legend(frameon=False, fontsize="small")


def search(table: Path, output: Path, output_png: Path) -> None:
    """Heat maps of the regime search: AUC of |R| and of R, and the loss, by setup and probe."""
    apply_style()
    rows = pd.read_csv(table)
    rows["probe"] = [
        f"nβ {n:g}, γ {g:g}, ε {e:g}"
        for n, g, e in zip(rows.n_beta, rows.gamma, rows.step_size, strict=True)
    ]
    rows["loss_rise"] = rows["mean_loss"] - rows["initial_loss"]
    columns = list(dict.fromkeys(rows.sort_values(["n_beta", "gamma"])["probe"]))
    setups, groups = list(dict.fromkeys(rows["setup"])), list(dict.fromkeys(rows["group"]))
    panels = {
        "auc_|R|": "AUC of |R|",
        "auc_R": "AUC of R (signed)",
        "loss_rise": "rise of the mean loss (nats)",
    }
    size = (15, 1.8 + (0.5 + 0.34 * len(setups)) * len(groups))
    figure, axes = plt.subplots(
        len(groups), 3, figsize=size, sharex=True, sharey=True, squeeze=False
    )
    for line, group in zip(axes, groups, strict=True):
        of_group = rows[rows["group"] == group]
        for axis, (column, title) in zip(line, panels.items(), strict=True):
            grid = of_group.pivot_table(
                index="setup", columns="probe", values=column, dropna=False
            ).reindex(index=setups, columns=columns)
            auc = column.startswith("auc")
            grid.index = [name.replace("_", " ") for name in grid.index]
            sns.heatmap(
                grid,
                ax=axis,
                annot=True,
                fmt=".2f",
                annot_kws={"size": 7},
                cmap="RdBu_r" if auc else "cividis",
                vmin=0 if auc else rows[column].min(),
                vmax=1 if auc else rows[column].max(),
                center=0.5 if auc else None,
                xticklabels=1,
                yticklabels=1,
            )
            axis.set(title=f"{title}, weights: {group}", xlabel="", ylabel="")
            axis.tick_params(axis="y", rotation=0)
        line[0].set_ylabel("training setup")
    for axis in axes[-1]:
        axis.set_xticks(axis.get_xticks(), columns, rotation=40, ha="right", fontsize="small")
    figure.supxlabel("probe setting", fontsize="medium")
    save_figure(figure, output, output_png)
