"""What the paper and its readers leave open, where draws are cheap: claims and figure.

Localization, reparametrization, triples, and weights against activations.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from losskernel.experiments.arithmetic.localization import equivalent_to_zero
from losskernel.experiments.claims import measured, write_claims
from losskernel.experiments.style import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    VERMILION,
    apply_style,
    save_figure,
)

MARGIN = 0.03  # of zero, within which R across tasks counts as none
LAYERS = {
    "embedding": (GRAY, "s"),
    "attention": (ORANGE, "^"),
    "MLP": (GREEN, "v"),
    "normalized": (BLUE, "o"),
    "logits": (VERMILION, "D"),
}


def claims(localization: list[Path], reparametrization: list[Path], output: Path) -> None:
    """R across tasks where nothing is shared, and how far R moves under a rescaling."""
    split = pd.concat([pd.read_csv(path) for path in localization])
    masks = split[split["kind"] == "mask"]
    alone = masks[masks["value"] == 0].set_index("training_seed")
    across = alone["R_mean_across"]
    shared = {
        f"R across at {share:.0%} shared": rows["R_mean_across"].mean()
        for share, rows in masks.groupby("shared")
        if share > 0
    }
    pushed = {
        f"R across at penalty {value:g}, {rows['shared'].mean():.0%} shared": rows[
            "R_mean_across"
        ].mean()
        for value, rows in split[split["kind"] == "penalty"].groupby("value")
    }
    moved = pd.concat([pd.read_csv(path) for path in reparametrization])
    largest = moved["alpha"].max()
    moved["move"] = 1 - moved["cka"]
    by_alpha = moved.pivot_table(index="training_seed", columns=["probe", "alpha"], values="move")
    isotropic = by_alpha[("isotropic", largest)]
    less = by_alpha[("fisher", largest)] - isotropic

    def row(values: pd.Series, setting: str, beside: dict) -> dict:
        error = values.std(ddof=1) / np.sqrt(len(values))
        where = f"{setting}; {len(values)} networks; spread: standard error over networks"
        return measured(values.mean(), error, len(values), where, beside=beside)

    means = by_alpha.mean()
    told = {
        probe: {f"alpha {alpha:g}": means[(probe, alpha)] for alpha in sorted(set(moved["alpha"]))}
        for probe in ("isotropic", "fisher")
    }
    write_claims(
        {
            "localization.cross_task": row(
                across,
                "networks whose tasks have every parameter of their own, all weights perturbed",
                {
                    f"p of {MARGIN:g} or more": equivalent_to_zero(across.to_numpy(), MARGIN),
                    "R within a task": alone["R_mean_within"].mean(),
                    **shared,
                    **pushed,
                },
            ),
            "reparametrization.isotropic": row(
                isotropic,
                f"MLP weights rescaled by {largest:g}, MLP weights perturbed, CKA without noise",
                told["isotropic"],
            ),
            "reparametrization.fisher": row(
                less,
                f"MLP weights rescaled by {largest:g}, MLP weights perturbed, CKA without noise; "
                "variances from the diagonal of the Fisher matrix",
                told["fisher"],
            ),
        },
        output,
    )


def figure(
    localization: list[Path],
    reparametrization: list[Path],
    networks: Path,
    curve: Path,
    development: Path,
    output: Path,
    output_png: Path,
) -> None:
    """Five panels: localization, rescaling, triples, and R against activations twice."""
    apply_style()
    drawn, axes = plt.subplots(2, 3, figsize=(11.5, 6.4))
    _localization(axes[0, 0], pd.concat([pd.read_csv(path) for path in localization]))
    _rescaling(axes[0, 1], pd.concat([pd.read_csv(path) for path in reparametrization]))
    _triples(axes[0, 2], pd.read_csv(networks))
    along = pd.read_csv(curve)
    along = along[(along["group"] == along["group"].iloc[0]) & np.isfinite(along["gamma"])]
    _activations(axes[1, 0], along, "gamma", "γ", "Which activations is R like?")
    axes[1, 0].set_xscale("log")
    grown = pd.read_csv(development)
    _activations(axes[1, 1], grown, "step", "training step", "The same along training")
    axes[1, 1].set_xscale("symlog", linthresh=50)
    axes[1, 2].axis("off")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    axes[1, 2].legend(handles, labels, title="activations of", loc="center left", frameon=False)
    for letter, axis in zip("abcde", axes.flat, strict=False):
        axis.set_title(f"{letter}  {axis.get_title()}", loc="left", fontsize="medium")
        axis.set_title("")
    save_figure(drawn, output, output_png)


def _localization(axis, rows: pd.DataFrame) -> None:
    for kind, face in (("mask", None), ("penalty", "none")):
        of_kind = rows[rows["kind"] == kind]
        for column, color, marker in (("R_mean_within", BLUE, "o"), ("R_mean_across", GRAY, "^")):
            name = f"{'within a task' if marker == 'o' else 'across tasks'}, {kind}"
            axis.plot(
                100 * of_kind["shared"], of_kind[column], marker, color=color, mfc=face, label=name
            )
    axis.axhspan(-MARGIN, MARGIN, color=GRAY, alpha=0.15, lw=0, label="taken for zero")
    axis.set(xlabel="parameters that both tasks use (%)", ylabel="mean R")
    axis.set_title("Is R zero where tasks share nothing?")
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.4 * (high - low))  # room for the legend
    axis.legend(frameon=False, fontsize="x-small", ncols=2, loc="upper right")


def _rescaling(axis, rows: pd.DataFrame) -> None:
    for probe, told, color, marker in (
        ("isotropic", "isotropic probe", GRAY, "o"),
        ("fisher", "variances from the Fisher matrix", BLUE, "s"),
    ):
        of_probe = rows[rows["probe"] == probe]
        axis.plot(of_probe["alpha"], of_probe["cka"], marker, color=color, alpha=0.5, mec="none")
        mean = of_probe.groupby("alpha")["cka"].mean()
        axis.plot(mean.index, mean, color=color, marker=marker, label=told)
    ticks = sorted(set(rows["alpha"]))
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set(xlabel="the same function, MLP rescaled by α", ylabel="CKA of R with α = 1")
    axis.set_title("Does R stay under a rescaling?")
    axis.legend(frameon=False, fontsize="x-small", loc="lower left")


def _triples(axis, rows: pd.DataFrame) -> None:
    at = np.arange(len(rows))
    axis.plot(at, rows["triples_before"], "^", color=GRAY, label="third cumulants")
    axis.plot(at, rows["triples_value"], "o", color=BLUE, label="beyond what pairs explain")
    bound = rows[["triples_sampling_null", "triples_permutation_null"]].max(axis=1)
    axis.plot(at, bound, "_", ms=12, color="black", label="97.5 % of both nulls")
    axis.axhline(0, color="black", lw=0.6)
    axis.set_xticks(at, rows["training_seed"].astype(str))
    axis.set(xlabel="network (training seed)", ylabel="third cumulant, one task less mixed")
    axis.set_title("Do triples of losses move together?")
    axis.legend(frameon=False, fontsize="x-small", loc="upper left")


def _activations(axis, rows: pd.DataFrame, column: str, label: str, title: str) -> None:
    mean = rows.groupby(column).mean(numeric_only=True)
    for layer, (color, marker) in LAYERS.items():
        axis.plot(mean.index, mean[f"cka_{layer}"], color=color, marker=marker, ms=4, label=layer)
    axis.axhline(0, color="black", lw=0.6)
    axis.set(xlabel=label, ylabel="CKA, without noise", title=title)
