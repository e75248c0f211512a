"""Figures of experiment 1: the kernel by task, and the search over training recipes."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from losskernel.data.arithmetic import ADDITION, DIVISION
from losskernel.experiments.claims import reported
from losskernel.experiments.style import (
    BLUE,
    DIVERGING,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    apply_style,
    save_figure,
)
from losskernel.files import read_npz
from losskernel.semantics.separation import pair_blocks

COLORS = {"within addition": BLUE, "within division": ORANGE, "across tasks": GRAY}
KINDS = {
    "within addition": (ADDITION, ADDITION),
    "within division": (DIVISION, DIVISION),
    "across tasks": (ADDITION, DIVISION),
}
GROUPS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (VERMILION, "v"), (PURPLE, "D"), (SKY, "P"))
BASELINES = {
    "auc_R": "R, all weights",
    "gradients_all_auc_R": "gradients, signed",
    "gradients_all_auc_|R|": "gradients, magnitude",
    "gradients_QKV_auc_|R|": "gradients of QKV,\nmagnitude",
    "untrained_auc_R": "R, untrained",
    "activations_auc_R": "activations",
    "activations_centered_auc_R": "activations less\ntheir task's mean",
}


def separation(kernel: Path, networks: Path, curve: Path, output: Path, output_png: Path) -> None:
    """Figure 3: kernel matrix, embedding, R by relation; AUC along gamma and beside baselines."""
    apply_style()
    data = read_npz(kernel)
    table, along = pd.read_csv(networks), pd.read_csv(curve)
    figure, axes = plt.subplots(2, 3, figsize=(11.5, 6.8), width_ratios=(1.1, 1, 1))
    _matrix(axes[0, 0], data)
    _embedding(axes[0, 1], data)
    _distribution(axes[0, 2], data)
    gamma = float(table["gamma"].iloc[0])
    _along_gamma(axes[1, 0], along, gamma)
    _by_group(axes[1, 1], along)
    _beside(axes[1, 2], table, reported("arithmetic.auc"))
    for letter, axis in zip("abcdef", axes.flat, strict=True):
        axis.set_title(f"{letter}  {axis.get_title()}", loc="left", fontsize="medium")
        axis.set_title("")
    save_figure(figure, output, output_png)


def _matrix(axis, data: dict) -> None:
    r, task = data["R"], data["task"]
    limit = np.quantile(np.abs(r[~np.eye(len(r), dtype=bool)]), 0.98)
    image = axis.imshow(r, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="antialiased")
    border = int((task == ADDITION).sum())
    for line in (axis.axhline, axis.axvline):
        line(border - 0.5, color="black", linewidth=0.8)
    ticks = [border / 2, (border + len(r)) / 2]
    axis.set_xticks(ticks, ["addition", "division"])
    axis.set_yticks(ticks, ["addition", "division"], rotation=90, va="center")
    axis.set_title("Loss kernel R, inputs by task")
    axis.figure.colorbar(image, ax=axis, label="R", shrink=0.8, extend="both")


def _embedding(axis, data: dict) -> None:
    for name, task in (("addition", ADDITION), ("division", DIVISION)):
        points = data["embedding"][data["task"] == task]
        marker = "o" if task == ADDITION else "^"
        axis.scatter(
            *points.T,
            s=9,
            alpha=0.7,
            lw=0,
            marker=marker,
            color=COLORS[f"within {name}"],
            label=name,
        )
    axis.set(
        xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title="Embedding from signed R"
    )
    axis.legend(markerscale=2, frameon=False)


def _distribution(axis, data: dict) -> None:
    blocks = pair_blocks(data["R"], data["task"])
    everything = np.concatenate(list(blocks.values()))
    edges = np.linspace(*np.quantile(everything, [0.0005, 0.999]), 90)
    for name, kind in KINDS.items():
        values = blocks[kind]
        density, _ = np.histogram(values, edges, density=True)
        axis.stairs(
            density, edges, color=COLORS[name], label=f"{name}: {values.mean():.3f}", lw=1.4
        )
        axis.axvline(values.mean(), color=COLORS[name], lw=0.8, ls=":")
    axis.axvline(0, color="black", lw=0.6)
    axis.set(xlabel="R", ylabel="density of pairs", title="R by relation of the pair")
    axis.legend(title="mean", frameon=False, fontsize="small")


def _along_gamma(axis, along: pd.DataFrame, gamma: float) -> None:
    rows = along[(along["group"] == along["group"].iloc[0]) & np.isfinite(along["gamma"])]
    rows = rows.sort_values("gamma")
    limit = along[(along["group"] == along["group"].iloc[0]) & np.isinf(along["gamma"])].iloc[0]
    end = rows["gamma"].max() * 8
    axis.set_xscale("log")
    lines = (
        ("auc_corrected", "signed R, without noise", BLUE, "o", "-"),
        ("auc_R", "signed R, as drawn", BLUE, "o", ":"),
        ("auc_|R|", "|R|, as drawn", ORANGE, "s", "-"),
    )
    for column, label, color, marker, style in lines:
        face = "none" if style == ":" else color
        axis.plot(
            rows["gamma"],
            rows[column],
            style,
            color=color,
            marker=marker,
            ms=4,
            mfc=face,
            label=label,
        )
        if style == "-":
            axis.plot(end, limit[column], marker, color=color, ms=6, mfc="white")
    axis.axvline(gamma, 0.27, color="black", lw=0.8, ls="--")
    axis.axhline(0.5, color="black", lw=0.6, ls=":")
    ticks = [tick for tick in rows["gamma"] if np.isclose(np.log10(tick) % 1, 0)]
    axis.set_xticks([*ticks, end], [*(f"$10^{np.log10(t):.0f}$" for t in ticks), "limit"])
    axis.set_xticks([], minor=True)
    axis.set(xlabel="γ", ylabel="pair ROC-AUC", title="Along γ, all weights, one network")
    axis.set(ylim=(0.28, 1.02), yticks=np.arange(0.4, 1.01, 0.1))  # room for the legend
    rise = axis.twinx()
    rise.spines["right"].set_visible(True)
    risen = rows[rows["rise"] > 0]
    rise.plot(risen["gamma"], risen["rise"], color=GRAY, lw=1, marker=".")
    rise.set(yscale="log", ylabel="rise of the mean loss (nats), gray")
    if len(risen):
        low, high = risen["rise"].min(), risen["rise"].max()
        rise.set_ylim(low * (low / high) ** 0.5, 2 * high)  # above the legend
    rise.yaxis.label.set_color(GRAY)
    axis.legend(frameon=False, fontsize="x-small", loc="lower left")


def _by_group(axis, along: pd.DataFrame) -> None:
    for (color, marker), (group, rows) in zip(
        GROUPS, along.groupby("group", sort=False), strict=False
    ):
        # Without a rise that stands out of rounding, R is the limit.
        rows = rows[np.isfinite(rows["gamma"]) & (rows["rise"] > 1e-5)].sort_values("rise")
        if rows.empty:
            continue
        axis.errorbar(
            rows["rise"],
            rows["auc_corrected"],
            rows["auc_corrected_error"],
            color=color,
            marker=marker,
            ms=4,
            lw=1.2,
            elinewidth=0.8,
            label=group.replace("_", " "),
        )
    axis.axhline(0.5, color="black", lw=0.6, ls=":")
    axis.set(xscale="log", xlabel="rise of the mean loss (nats)", ylim=(0.4, 1.02))
    axis.set(ylabel="pair ROC-AUC, without noise", title="By perturbed weights, signed R")
    axis.legend(frameon=False, fontsize="x-small", loc="lower left", ncols=2)


def _beside(axis, table: pd.DataFrame, paper: float) -> None:
    places = np.arange(len(BASELINES))[::-1]
    for place, column in zip(places, BASELINES, strict=True):
        values = table[column]
        own = column == "auc_R"
        axis.barh(
            place, values.mean() - 0.5, 0.62, left=0.5, color=BLUE if own else GRAY, alpha=0.5
        )
        jitter = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else [0]
        axis.plot(values, place + np.asarray(jitter), ".", color="black", ms=4)
        axis.text(1.03, place, f"{values.mean():.3f}", va="center", fontsize="small")
    axis.axvline(paper, color=VERMILION, lw=1, ls="--")
    axis.text(paper - 0.01, 0, f"paper {paper:g}", color=VERMILION, ha="right", fontsize=8)
    axis.axvline(0.5, color="black", lw=0.6)
    axis.set_yticks(places, list(BASELINES.values()), fontsize="small")
    axis.set(xlim=(0.35, 1.01), xlabel="pair ROC-AUC")
    axis.set_title(f"{len(table)} networks, and other similarities")


def search(table: Path, output: Path, output_png: Path) -> None:
    """AUC of signed R without noise by training recipe, one mark a seed and rise; and accuracy."""
    apply_style()
    rows = pd.read_csv(table)
    setups = list(dict.fromkeys(rows["setup"]))
    places = {name: -number for number, name in enumerate(setups)}
    size = (8.5, 1.2 + 0.3 * len(setups))
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, width_ratios=(2.2, 1))
    for (color, marker), (rise, group) in zip(GROUPS, rows.groupby("target_rise"), strict=False):
        at = group["setup"].map(places)
        axes[0].plot(group["auc_R"], at, marker, color=color, ms=4, mfc="none", alpha=0.6)
        axes[0].plot(group["auc_corrected"], at, marker, color=color, ms=5, label=f"{rise:g} nats")
    once = rows.drop_duplicates(["setup", "training_seed"])
    at = once["setup"].map(places)
    axes[1].plot(once["train_accuracy"], at, "o", color=BLUE, ms=5, label="training pairs")
    axes[1].plot(once["test_accuracy"], at, "s", color=ORANGE, ms=4, mfc="none", label="held out")
    told = [re.sub("^(weight decay 2) ", r"\1, ", name.replace("_", " ")) for name in places]
    axes[0].set_yticks(
        list(places.values()), [name.replace("chosen", "chosen recipe") for name in told]
    )
    axes[0].axvline(0.5, color="black", lw=0.6, ls=":")
    axes[0].set(xlabel="pair ROC-AUC of signed R (filled: without noise; open: as drawn)")
    axes[0].set(xlim=(0.45, 1), title="Does the kernel tell the tasks apart?")
    axes[0].legend(title="rise of the mean loss", frameon=False, fontsize="small")
    axes[1].set(xlabel="accuracy", xlim=(0, 1.05), title="Is the network trained?")
    axes[1].legend(frameon=False, fontsize="small", loc="lower left")
    for axis in axes:
        axis.grid(axis="y", lw=0.4, alpha=0.5)
    save_figure(figure, output, output_png)
