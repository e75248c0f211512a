"""Figure of other architectures: lift by depth, correlation with WordNet, agreement of networks."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from losskernel.experiments.architecture.analyze import DIFFERENCE, IMAGES, KERNELS, OWN, kernel_of
from losskernel.experiments.imagenet.kernels import FEATURES
from losskernel.experiments.style import (
    BLUE,
    GREEN,
    NETWORKS,
    ORANGE,
    PURPLE,
    VERMILION,
    apply_style,
    save_figure,
)

COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)
LOOKS = {"kernel": {"ls": "-", "marker": "o"}, FEATURES: {"ls": ":", "marker": "s"}}
STEP = 2.6  # from one network to the next in the panel of correlations


def networks(
    statistics: list[Path],
    headlines: list[Path],
    agreements: list[Path],
    settings: dict,
    output: Path,
    output_png: Path,
) -> None:
    """Lift by depth and correlation with WordNet of each network's kernel and features, and CKA.

    A row of panels for each set of images.

    Args:
        statistics, headlines: as for :func:`losskernel.experiments.architecture.analyze.claims`, of
            the networks of each set in turn.
        agreements: of each set.
        settings: names of the networks by set, as ``compared``; claim_neighbors; and gammas as for
            :func:`losskernel.experiments.architecture.analyze.claims`.
        output, output_png: the figure.
    """
    apply_style()
    sets = settings["compared"]
    figure, axes = plt.subplots(
        len(sets), 3, figsize=(13, 4.4 * len(sets)), width_ratios=(1.2, 1, 0.9), squeeze=False
    )
    files = iter(zip(statistics, headlines, strict=True))
    for row, (images, names), agreement in zip(axes, sets.items(), agreements, strict=True):
        for number, (name, (table, headline)) in enumerate(zip(names, files, strict=False)):
            rows = pd.read_csv(table)
            facts = pd.read_csv(headline).set_index(["kernel", "statistic"])
            kernel = kernel_of(facts, settings["gammas"].get(name))
            _lifts(row[0], rows[rows.k == settings["claim_neighbors"]], name, kernel, number)
            _correlations(row[1], facts, kernel, number)
        row[0].axhline(1, color="black", linewidth=0.6)
        row[0].set_yscale("log", base=2)
        row[0].yaxis.set_major_formatter("{x:g}")
        row[0].set(
            xlabel="depth of the shared hypernym (steps from entity)",
            ylabel=f"lift of the {settings['claim_neighbors']} nearest (1 = chance)",
            title=f"{IMAGES[images]}: neighbors (gray: permuted classes)",
        )
        row[0].legend(frameon=False, fontsize="small", loc="upper left")
        row[1].axhline(0, color="black", linewidth=0.6)
        row[1].set_xticks(STEP * np.arange(len(names)) + 0.6, [NETWORKS.get(n, n) for n in names])
        row[1].set(
            ylabel="correlation with WordNet, without noise",
            title=f"{IMAGES[images]}: R against WordNet",
        )
        for what, look in LOOKS.items():
            for sign, face in (("", "black"), (", magnitude", "white")):
                style = {"ls": "", "marker": look["marker"], "color": "black", "mfc": face}
                row[1].plot([], [], label=f"{what}{sign}", **style)
        low, high = row[1].get_ylim()
        row[1].set_ylim(low, high + 0.3 * (high - low))  # room for the legend
        row[1].legend(frameon=False, fontsize="small", loc="upper right", ncols=2)
        _agreement(row[2], pd.read_csv(agreement))
    save_figure(figure, output, output_png)


def _lifts(axis: Axes, rows: pd.DataFrame, name: str, kernel: str, number: int) -> None:
    for what, source in (("kernel", kernel), (FEATURES, FEATURES)):
        own = rows[(rows.statistic == "lift") & (rows.kernel == source) & (rows.value > 0)]
        own = own.sort_values("depth")
        axis.errorbar(
            own.depth,
            own.value,
            own.standard_error.fillna(0),
            color=COLORS[number % len(COLORS)],
            ms=4,
            label=f"{NETWORKS.get(name, name)}, {what}",
            **LOOKS[what],
        )
        axis.fill_between(own.depth, own.null_low, own.null_high, color="black", alpha=0.06, lw=0)


def _correlations(axis: Axes, facts: pd.DataFrame, kernel: str, number: int) -> None:
    color = COLORS[number % len(COLORS)]
    for place, (what, source) in enumerate((("kernel", kernel), (FEATURES, FEATURES))):
        for statistic, fill in (("correlation", color), ("correlation of the magnitude", "white")):
            best = facts.loc[(source, statistic)]
            axis.errorbar(
                STEP * number + place + (0 if fill == color else 0.25),
                best.value,
                np.hypot(np.nan_to_num(best.error_draws), best.error_classes),
                color=color,
                mfc=fill,
                marker=LOOKS[what]["marker"],
                ls="",
            )
    bound = facts.loc[(kernel, "correlation")]
    span = STEP * number + np.array([-0.4, 1.6])
    axis.fill_between(span, bound.null_low, bound.null_high, color="black", alpha=0.2, lw=0)


def _agreement(axis: Axes, alike: pd.DataFrame) -> None:
    alike = alike[alike.of != DIFFERENCE].reset_index(drop=True)
    styles = {KERNELS: (BLUE, "o"), FEATURES: (ORANGE, "s"), OWN: ("black", "D")}
    pairs = list(dict.fromkeys(zip(alike["first"], alike["second"], strict=True)))
    for row in alike.itertuples():
        (color, marker), place = styles[row.of], pairs.index((row.first, row.second))
        error = np.hypot(np.nan_to_num(row.error_draws), row.error_classes)
        axis.errorbar(row.value, -place, xerr=error, color=color, marker=marker, ls="")
        axis.barh(-place, row.null_high - row.null_low, 0.6, row.null_low, color="0.8", zorder=0)
    names = [[NETWORKS.get(name, name) for name in pair] for pair in pairs]
    told = [one if one == other else f"{one},\n{other}" for one, other in names]
    axis.set_yticks(-np.arange(len(pairs)), told, fontsize="small")
    axis.axvline(0, color="black", linewidth=0.6)
    for of, (color, marker) in styles.items():
        axis.plot([], [], marker, color=color, label=of)
    axis.legend(frameon=False, fontsize="small", loc="upper right")
    axis.set(xlabel="CKA without noise", title="Agreement (gray: permuted images)")
