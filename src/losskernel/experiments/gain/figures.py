"""Figure of the control variate: CKA against draws from high to low localization, and in sum."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from losskernel.experiments.style import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    VERMILION,
    apply_style,
    log_axis,
    save_figure,
)

ESTIMATORS = {"draws alone": BLUE, "control variate": ORANGE}
LIMIT = "exact limit"


def curves(table: Path, summary: Path, output: Path, output_png: Path) -> None:
    """A panel a model and localization, then slope, CKA and saving against the localization."""
    apply_style()
    rows, sums = pd.read_csv(table), pd.read_csv(summary)
    # A long run is right at any localization; where there are few draws the limit stands beside it.
    long_runs = sums.loc[sums["reference"] == "long run", ["model", "gamma"]].apply(tuple, axis=1)
    covered = sums[["model", "gamma"]].apply(tuple, axis=1).isin(long_runs)
    shown = sums[~(covered & (sums["reference"] == LIMIT))]
    columns = 4
    lines = -(-(len(shown) + 2) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(9.6, 2.35 * lines), squeeze=False)
    panels = list(axes.flat)
    for axis, (_, of) in zip(panels, shown.iterrows(), strict=False):
        _curve(axis, rows, of)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=7.5,
    )
    _against_limit(panels[len(shown)], sums[sums["reference"] == LIMIT])
    _saving(panels[len(shown) + 1], sums)
    for axis in panels[len(shown) + 2 :]:
        axis.set_axis_off()
    save_figure(figure, output, output_png)


def _power(gamma: float) -> str:
    exponent = int(np.floor(np.log10(gamma)))
    leading = gamma / 10**exponent
    digits = "" if np.isclose(leading, 1) else rf"{leading:.2g}\cdot "
    return f"${digits}10^{{{exponent}}}$"


def _curve(axis, rows: pd.DataFrame, of: pd.Series) -> None:
    key = ["model", "gamma", "reference"]
    chosen = rows[(rows[key] == of[key]).all(axis=1)]
    for estimator, color in ESTIMATORS.items():
        line = chosen[chosen["estimator"] == estimator]
        axis.plot(line["draws"], line["cka"], "o-", ms=3, lw=1.2, color=color, label=estimator)
        sd = line["sd"].fillna(0)
        axis.fill_between(
            line["draws"], line["cka"] - sd, line["cka"] + sd, color=color, alpha=0.25, lw=0
        )
    axis.axhline(
        of["ceiling"],
        color=GRAY,
        lw=1,
        ls="--",
        label="ceiling: noise of the long run (or half)",
    )
    axis.axhline(of["cka_limit"], color=GREEN, lw=1, ls=":", label="the exact limit itself")
    log_axis(axis.xaxis, 0.9 * chosen["draws"].min(), 1.1 * chosen["draws"].max())
    axis.set(
        ylim=(0, 1.02),
        xlabel="draws",
        ylabel=f"CKA to {of['reference']}",
        title=rf"{of['model']}, $\gamma$ = {_power(of['gamma'])}",
    )
    axis.title.set_fontsize(8)


def _against_limit(axis, sums: pd.DataFrame) -> None:
    """Slope of the sampled K on the limit, and CKA of its R, as the localization rises."""
    for model, marker in zip(sums["model"].unique(), "os^", strict=False):
        line = sums[sums["model"] == model].sort_values("gamma")
        style = {"marker": marker, "ms": 4, "lw": 1}
        axis.errorbar(
            line["gamma"],
            line["slope"],
            line["slope_error"],
            **style,
            color=VERMILION,
            label=f"slope of K, {model}",
        )
        axis.plot(
            line["gamma"],
            line["cka_alone"] / line["cka_allowed"],
            **style | {"ms": 7, "markerfacecolor": "none"},  # around the other, where they meet
            color=BLUE,
            label=f"CKA of R, {model}",
        )
    axis.axhline(1, color=GRAY, lw=0.8, ls="--")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel=r"localization $\gamma$ (1 / weight²)",
        ylabel="draws alone / limit",
        title="draws alone against the limit (± s.e.)",
    )
    axis.title.set_fontsize(8)
    axis.legend(frameon=False, fontsize=6, loc="upper right")
    _plain_ticks(axis)


def _saving(axis, sums: pd.DataFrame) -> None:
    """Draws that the control variate saves, by the linear share of the variance."""
    chosen = sums[sums["reference"] != LIMIT]
    for model, marker in zip(chosen["model"].unique(), "os^", strict=False):
        line = chosen[chosen["model"] == model].sort_values("linear_share")
        axis.plot(
            line["linear_share"],
            line["draws_saved"],
            marker=marker,
            ms=4,
            lw=1,
            color=ORANGE if marker == "o" else VERMILION,
            label=model,
        )
        bounds = line[line["draws_saved_is_lower_bound"]]
        for _, row in bounds.iterrows():
            axis.annotate(
                "at least",
                (row["linear_share"], row["draws_saved"]),
                xytext=(-4, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=6.5,
            )
    axis.axhline(1, color=GRAY, lw=0.8, ls="--")
    axis.set(
        yscale="log",
        xlabel="linear share of the variance",
        ylabel="draws saved (factor)",
        title="what the control variate saves",
    )
    axis.title.set_fontsize(8)
    axis.legend(frameon=False, fontsize=6.5, loc="upper left")
    _plain_ticks(axis)


def _plain_ticks(axis) -> None:
    low, high = axis.get_ylim()
    log_axis(axis.yaxis, low, high)
