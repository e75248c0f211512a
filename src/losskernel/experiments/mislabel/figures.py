"""Figures of experiment 4: who finds wrong labels, at what cost, what self-covariance shows."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from losskernel.experiments.claims import reported
from losskernel.experiments.mislabel.claims import PAPER_RATIO, SHARE
from losskernel.experiments.style import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    apply_style,
    log_axis,
    save_figure,
)

METHODS = {
    "self-covariance": (BLUE, "o"),
    "mean loss under the probe": (SKY, "s"),
    "gradient norm (exact limit)": (PURPLE, "D"),
    "loss": (GRAY, "v"),
    "area under the margin": (ORANGE, "^"),
    "confident learning": (GREEN, "P"),
}
CLEAN, WRONG = BLUE, VERMILION
RISE = "rise of the mean loss under the probe (nats)"


def detection(
    summary: Path, scores: Path, along_rise: Path, copies: Path, output: Path, output_png: Path
) -> None:
    """AUC, precision and cost by method; self-covariances; AUC along the rise; copies."""
    apply_style()
    table = pd.read_csv(summary)
    figure, axes = plt.subplots(2, 3, figsize=(12, 7))
    _memorized(figure, axes.ravel()[:4], table, scores)
    _memorized_along(axes[1, 1], pd.read_csv(along_rise))
    _copies(axes[1, 2], pd.read_csv(copies))
    save_figure(figure, output, output_png)


def tiny_imagenet(
    summary: Path, scores: Path, along_rise: Path, output: Path, output_png: Path
) -> None:
    """Heads on features of photographs, trained on flipped labels: what :func:`detection` shows."""
    apply_style()
    figure, axes = plt.subplots(2, 3, figsize=(12, 7))
    _memorized(figure, axes.ravel()[:4], pd.read_csv(summary), scores)
    rows = pd.read_csv(along_rise)
    _memorized_along(axes[1, 1], rows)
    _ratio(axes[1, 2], rows)
    axes[1, 2].set_title("How much higher (mean ± sd over networks)")
    save_figure(figure, output, output_png)


def imagenet(summary: Path, scores: Path, headline: float, output: Path, output_png: Path) -> None:
    """Photographs with labels wrong at probe time, along the rise: AUC, at equal loss, ratio."""
    apply_style()
    table = pd.read_csv(summary)
    shares = table["share"].unique()
    share = SHARE if SHARE in shares else shares.max()
    table = table[table["share"] == share].sort_values("rise")
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 7.4))
    corruptions = table["draws"].iloc[0]
    _detectors(axes[0, 0], table, "auc")
    paper = reported("mislabel.auc")
    axes[0, 0].axhline(paper, color="black", linestyle=":", linewidth=0.8)
    between = np.sqrt(table["rise"].iloc[:2].prod())
    axes[0, 0].text(between, paper, "paper", ha="center", va="bottom", fontsize="small")
    axes[0, 0].set_title(f"Wrong labels against all right ones\n(± sd, {corruptions} corruptions)")
    _detectors(axes[0, 1], table, "matched")
    axes[0, 1].axhline(0.5, color="0.8", linewidth=0.8, zorder=0)
    clean = table["hard_clean"].mean()
    axes[0, 1].set_title(f"Wrong labels against the {clean:.0f} hard right ones\n(loss above ln 2)")
    _ratio(axes[1, 0], table)
    axes[1, 0].axhline(PAPER_RATIO, color="black", linestyle=":", linewidth=0.8, label="paper")
    axes[1, 0].set_title("Self-covariance of wrong over right labels\n(± s.e., images and draws)")
    axes[1, 0].legend(frameon=False)
    at = table[table["gamma"] == headline].iloc[0]
    title = f"{share:.0%} wrong, loss + {at['rise']:.2f} nats"
    _distribution(axes[1, 1], scores, share, title, at["auc_self_covariance"])
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, ncols=5, frameon=False, loc="outside upper center")
    save_figure(figure, output, output_png)


def _detectors(axis, table: pd.DataFrame, kind: str) -> None:
    """AUCs against the rise; what needs no draws of the weights is a line across."""
    for name, column in (
        ("self-covariance", "self_covariance"),
        ("mean loss under the probe", "mean_loss"),
        ("gradient norm (exact limit)", "gradient_norm"),
        ("loss", "loss"),
        ("margin", "margin"),
    ):
        color, marker = METHODS.get(name, (ORANGE, "^"))
        values, spread = (table.get(f"{kind}_{column}{end}") for end in ("", "_sd"))
        if values is None:
            continue
        axis.errorbar(
            table["rise"], values, spread, fmt=marker + "-", color=color, label=name, ms=5, lw=1
        )
    axis.set(ylabel="ROC-AUC")
    _along(axis, table["rise"])


def _along(axis, rises: pd.Series) -> None:
    """An axis of rises: logarithmic, unless the loss of one has fallen."""
    axis.set_xlabel(RISE)
    if rises.min() > 0:
        log_axis(axis.xaxis, rises.min() * 0.9, rises.max() * 1.1)


def _ratio(axis, table: pd.DataFrame) -> None:
    error = table.get("ratio_error", table["ratio_sd"])
    axis.errorbar(
        table["rise"], table["ratio"], error, fmt="o-", color=BLUE, ms=5, lw=1, label="here"
    )
    axis.axhline(1, color="0.8", linewidth=0.8, zorder=0)
    axis.set(ylabel="mean self-covariance, wrong / right labels", ylim=(0, None))
    _along(axis, table["rise"])


def _memorized_along(axis, table: pd.DataFrame) -> None:
    _detectors(axis, table, "auc")
    title = f"{table['share'].iloc[0]:.0%} of labels flipped before training,"
    axis.set_title(f"{title}\nindependent draws ever further out")


def _memorized(figure, axes, table: pd.DataFrame, scores: Path) -> None:
    """AUC, precision, cost and self-covariances on four axes."""
    _by_share(axes[0], table, "auc", "ROC-AUC")
    _by_share(axes[1], table, "precision", "precision at the true share")
    handles, names = axes[0].get_legend_handles_labels()
    columns = len(names) if figure.get_figwidth() > 10 else 3
    figure.legend(handles, names, ncols=columns, frameon=False, loc="outside upper center")
    share = table["share"].unique()[-2:][0]
    _cost(axes[2], table[table["share"] == share])
    memorized = table[(table["share"] == share) & (table["method"] == "self-covariance")].iloc[0]
    title = f"{share:.0%} of labels flipped before training"
    _distribution(axes[3], scores, share, title, memorized["auc"])


def _by_share(axis, table: pd.DataFrame, column: str, label: str) -> None:
    shares = list(table["share"].unique())
    for i, (method, (color, marker)) in enumerate(METHODS.items()):
        rows = table[table["method"] == method].set_index("share").loc[shares]
        at = np.arange(len(shares)) + 0.11 * (i - (len(METHODS) - 1) / 2)
        spread = rows[f"{column}_sd"]
        axis.errorbar(
            at, rows[column], spread, fmt=marker, color=color, label=method, ms=5, elinewidth=1
        )
    for border in range(1, len(shares)):
        axis.axvline(border - 0.5, color="0.9", linewidth=0.8, zorder=0)
    axis.set_xticks(range(len(shares)), [f"{share:.0%}" for share in shares])
    axis.set(xlabel="labels flipped before training", xlim=(-0.5, len(shares) - 0.5))
    axis.set(ylabel=label, ylim=(None, 1.01))
    draws = int(table["draws"].max())
    axis.set_title(f"Memorized wrong labels: {label}\n(mean ± sd, {draws} networks a share)")


def _cost(axis, table: pd.DataFrame) -> None:
    rows = table.set_index("method")
    for method, (color, marker) in METHODS.items():
        axis.plot(*rows.loc[method, ["training_runs", "auc"]], marker, color=color, ms=8)
    low, high = rows["training_runs"].min(), rows["training_runs"].max()
    axis.set(xscale="log", xlim=(low / 2, high * 2))
    axis.axvline(1, color="black", linestyle=":", linewidth=0.8)
    axis.set(xlabel="cost beyond training (1 = training once more)", ylabel="ROC-AUC")
    axis.set_title(
        f"What each method costs\n({table['share'].iloc[0]:.0%} flipped before training)"
    )


def _distribution(axis, scores: Path, share: float, title: str, auc: float) -> None:
    with np.load(scores) as stored:
        at = int(np.flatnonzero(stored["shares"] == share)[0])
        k, wrong = stored["self_covariance"][at].ravel(), stored["flipped"][at].ravel()
    positive = k[k > 0]
    edges = np.geomspace(*np.quantile(positive, [0.01, 1]), 60)
    for name, chosen, color in (("right label", ~wrong, CLEAN), ("wrong label", wrong, WRONG)):
        # What lies below the first edge is counted in the first bin, so that shares add up to 1.
        counts, _ = np.histogram(np.maximum(k[chosen], edges[0]), edges)
        axis.stairs(counts / chosen.sum(), edges, color=color, label=name, fill=True, alpha=0.4)
        axis.stairs(counts / chosen.sum(), edges, color=color, linewidth=1)
    axis.set(xscale="log", xlabel="self-covariance (nats²)", ylabel="share of inputs in a bin")
    axis.set_title(f"{title}\n(self-covariance: AUC {auc:.3f})")
    axis.legend(frameon=False)


def _copies(axis, table: pd.DataFrame) -> None:
    gammas = sorted(table["gamma"].unique())
    colors = plt.get_cmap("viridis")(np.linspace(0.05, 0.85, len(gammas)))
    lines = [("flipped", gamma, color, "o-") for gamma, color in zip(gammas, colors, strict=True)]
    # The exact limit lies on the highest gamma: dashed, so that both are seen.
    lines[-1] = ("flipped", gammas[-1], "black", "--")
    # Right labels at one gamma only: their spread over networks is wide at every gamma.
    for kind, gamma, color, style in [*lines, ("true label", gammas[-1], GRAY, "x:")]:
        rows = table[(table["gamma"] == gamma) & (table["kind"] == kind)]
        name = "exact limit" if np.isinf(gamma) else f"γ = {gamma:g}"
        kind = "wrong label" if kind == "flipped" else kind
        axis.errorbar(
            rows["copies"],
            rows["log10_ratio"],
            rows["log10_ratio_sd"] / np.sqrt(rows["draws"]),
            fmt=style,
            color=color,
            ms=4,
            elinewidth=0.8,
            label=f"{kind}, {name}",
        )
    log_axis(axis.xaxis, table["copies"].min() * 0.9, table["copies"].max() * 1.1)
    axis.set_xticks(sorted(table["copies"].unique()), sorted(table["copies"].unique()))
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set(xlabel="copies in the training set", ylabel="log₁₀ of K(z, z) over that of one copy")
    axis.set_title("Self-covariance of copied inputs\n(mean ± standard error over networks)")
    axis.legend(frameon=False, fontsize="small")
