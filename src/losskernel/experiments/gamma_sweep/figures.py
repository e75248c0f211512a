"""Figure of the localization sweep: lifts, loss, convergence, agreement; gamma and n_beta."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from losskernel.experiments.style import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    apply_style,
    save_figure,
)

ALONE, CORRECTED, LIMIT = "draws alone", "control variate", "exact limit"
ESTIMATORS = {ALONE: SKY, CORRECTED: BLUE}
RELATIONS = {"hierarchy": BLUE, "color": ORANGE}
REGIMES = {"diffuse": VERMILION, "semantic": GREEN, "frozen": SKY, "unresolved": GRAY}
UNCERTAIN = 0.25  # standard error from which on a corrected CKA is not shown
MARKERS = (("o", "-"), ("s", "--"), ("^", ":"), ("v", "-."))  # a step size each


class _Sweep:
    """The numbers of the sweep by line: gamma at each step size, n_beta at the base's gamma."""

    def __init__(self, metrics: Path, regimes: Path, base: dict):
        self.values = pd.read_csv(metrics).fillna({"estimator": ""})
        self.regimes, self.base = pd.read_csv(regimes), base
        self.best = CORRECTED if CORRECTED in set(self.values.estimator) else ALONE
        self.limit = self.values[self.values.estimator == LIMIT].set_index("statistic")
        on = self.regimes[self.regimes.n_beta == base["n_beta"]]
        # The base's step size first.
        self.step_sizes = sorted(on.step_size.unique(), key=lambda e: (e != base["step_size"], e))
        self.step_sizes = [e for e in self.step_sizes if (on.step_size == e).sum() > 1]

    @property
    def at_base(self) -> pd.DataFrame:
        """Regimes along gamma at the base's step size and n_beta."""
        rows = self.regimes
        rows = rows[
            (rows.n_beta == self.base["n_beta"]) & (rows.step_size == self.base["step_size"])
        ]
        return rows.sort_values("gamma")

    def along_gamma(self, step_size: float, statistic: str, estimator: str = "") -> pd.DataFrame:
        chosen = self.values[
            (self.values.n_beta == self.base["n_beta"])
            & (self.values.step_size == step_size)
            & (self.values.statistic == statistic)
            & (self.values.estimator == estimator)
        ]
        return chosen.sort_values("gamma")

    def along_n_beta(self, statistic: str, estimator: str = "") -> pd.DataFrame:
        chosen = self.values[
            (self.values.gamma == self.base["gamma"])
            & (self.values.step_size == self.base["step_size"])
            & (self.values.statistic == statistic)
            & (self.values.estimator == estimator)
        ]
        return chosen.sort_values("n_beta")


def sweep(
    metrics: Path, regimes: Path, cka: Path, settings: dict, output: Path, output_png: Path
) -> None:
    """Nine panels along gamma and n_beta; the regimes of the first step size are shaded."""
    apply_style()
    data = _Sweep(metrics, regimes, settings["base"])
    figure, axes = plt.subplots(3, 3, figsize=(14.5, 11.5))
    k, depth = settings["neighbors"], settings["depths"][0]
    _lift(axes[0, 0], data, "hierarchy", f"hierarchy lift (k={k}, depth {depth})")
    _lift(axes[0, 1], data, "color", f"color lift (k={k})")
    _squared(axes[0, 2], data)
    _loss(axes[1, 0], data, settings["regimes"]["diffuse_rise"])
    _linearity(axes[1, 1], data, settings["regimes"]["frozen_linear_share"])
    _times(axes[1, 2], data, settings["draws"])
    for axis in axes[:2].flat:
        _shade(axis, data)
    _matrix(figure, axes[2, 0], pd.read_csv(cka), data)
    _n_beta_lifts(axes[2, 1], data)
    _n_beta_loss(axes[2, 2], data)
    found = set(data.at_base.regime)
    shown = [
        Patch(color=color, alpha=0.12, label=f"{name} (shaded)")
        for name, color in REGIMES.items()
        if name in found
    ]
    shown += [
        Line2D([], [], color="black", marker=marker, linestyle=line, label=f"ε = {step:g}")
        for step, (marker, line) in zip(data.step_sizes, MARKERS, strict=False)
    ]
    figure.legend(
        handles=shown,
        loc="outside upper center",
        ncols=len(shown),
        frameon=False,
        title=f"regime at ε = {settings['base']['step_size']:g}, and step size ε (lines); "
        f"nβ = {settings['base']['n_beta']:g}; bars: ± s.e., jackknife over draws",
    )
    save_figure(figure, output, output_png)


def small(metrics: Path, regimes: Path, settings: dict, output: Path, output_png: Path) -> None:
    """Three panels along gamma: lift by hierarchy at each depth, by color, and the mean loss."""
    apply_style()
    values, kinds = pd.read_csv(metrics).fillna({"estimator": ""}), pd.read_csv(regimes)
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 4))
    first, *others = settings["depths"]
    hierarchy = {first: "hierarchy_lift"} | {depth: f"hierarchy_lift_{depth}" for depth in others}
    lifts = [
        (axes[0], statistic, f"depth {depth}", color)
        for (depth, statistic), color in zip(
            sorted(hierarchy.items()), (SKY, BLUE, PURPLE, GREEN), strict=False
        )
    ]
    for axis, statistic, label, color in [*lifts, (axes[1], "color_lift", "draws alone", ORANGE)]:
        rows = values[values.statistic == statistic]
        along = rows[(rows.estimator == ALONE)].sort_values("gamma")
        _draw(axis, along, "gamma", color, label=label)
        axis.fill_between(
            along.gamma, along.null_low, along.null_high, color=color, alpha=0.2, lw=0
        )
        limit = rows[rows.estimator == LIMIT]
        # Beyond the largest gamma, at the end of the axis.
        axis.scatter([10 * along.gamma.max()], limit.value, marker="*", s=70, color=color)
    for axis, title in zip(axes, ("by hierarchy", "by color"), strict=False):
        axis.axhline(1, color="black", linewidth=0.6)
        axis.scatter([], [], marker="*", s=70, color="black", label="exact limit (γ → ∞)")
        axis.fill_between([], [], [], color="black", alpha=0.2, label="95 % of renamed inputs")
        axis.set(
            ylabel=f"lift of the {settings['neighbors']} nearest (1 = chance)",
            title=f"Lift of neighbors {title}",
        )
        axis.set_ylim(top=1.15 * axis.get_ylim()[1])  # room for the legend
        axis.legend(frameon=False, loc="upper center")
    rise = values[values.statistic == "mean_loss_rise"].sort_values("gamma")
    _draw(axes[2], rise, "gamma", VERMILION)
    named = rise.merge(kinds, on="gamma")
    for row in named[named.regime != named.regime.shift()].itertuples():  # where another begins
        axes[2].annotate(
            f"{row.regime} →", (row.gamma, row.value), xytext=(4, 6), textcoords="offset points"
        )
    axes[2].axhline(0, color="black", linewidth=0.6)
    axes[2].margins(x=0.15, y=0.15)
    axes[2].set(ylabel="rise of the mean loss (nats)", title="Loss under the probe, and regime")
    for axis in axes:
        _gamma_axis(axis)
    save_figure(figure, output, output_png)


def _draw(axis: Axes, rows: pd.DataFrame, x: str, color: str, step: int = 0, **options) -> None:
    marker, line = MARKERS[step]
    axis.errorbar(
        rows[x],
        rows["value"],
        rows["error"].fillna(0),
        color=color,
        marker=marker,
        linestyle=line,
        markersize=4,
        markerfacecolor=color if step == 0 else "white",
        linewidth=1.2,
        elinewidth=0.9,
        **options,
    )


def _lift(axis: Axes, data: _Sweep, kind: str, label: str) -> None:
    for step, step_size in enumerate(data.step_sizes):
        for estimator, color in ESTIMATORS.items():
            rows = data.along_gamma(step_size, f"{kind}_lift", estimator)
            if rows.empty:
                continue
            _draw(axis, rows, "gamma", color, step, label=None if step else estimator)
            if step == 0 and estimator == ALONE:
                axis.fill_between(
                    rows.gamma,
                    rows.null_low,
                    rows.null_high,
                    color="black",
                    alpha=0.15,
                    linewidth=0,
                    label="95 % of renamed inputs",
                )
    _limit(axis, data, f"{kind}_lift")
    axis.axhline(1, color="black", linewidth=0.6)
    axis.set(ylabel=f"{label} (1 = chance)", title=f"Lift of neighbors: {kind}")
    axis.legend(frameon=False, fontsize="small")
    _gamma_axis(axis)


def _limit(
    axis: Axes, data: _Sweep, statistic: str, color: str = GREEN, label: str = LIMIT
) -> None:
    if statistic in data.limit.index:
        value = data.limit.loc[statistic, "value"]
        axis.axhline(value, color=color, linestyle=(0, (1, 1)), label=label)


def _squared(axis: Axes, data: _Sweep) -> None:
    lines = [
        (data.along_gamma(step_size, f"{kind}_squared_lift", data.best), step, kind)
        for step, step_size in enumerate(data.step_sizes)
        for kind in RELATIONS
    ]
    # What is not resolved may lie anywhere; it shall not hide the rest.
    low, high = -1, max(3, 3 * np.nanmedian(np.concatenate([rows.value for rows, *_ in lines])))
    for rows, step, kind in lines:
        within = rows[rows.value.between(low, high)]
        _draw(axis, within, "gamma", RELATIONS[kind], step, label=None if step else kind)
        for marker, end, beyond in (("v", low, rows.value < low), ("^", high, rows.value > high)):
            gammas = rows[beyond].gamma
            axis.scatter(
                gammas,
                [end] * len(gammas),
                marker=marker,
                color=RELATIONS[kind],
                s=36,
                clip_on=False,
                zorder=3,
            )
    for kind, color in RELATIONS.items():
        _limit(axis, data, f"{kind}_squared_lift", color, f"{LIMIT}, {kind}")
    axis.axhline(1, color="black", linewidth=0.6)
    axis.set(
        ylabel="squared R of related pairs, over all (1 = chance)",
        title=f"Lift of squared R, without noise ({data.best})\n(triangles at the edge: beyond it)",
        ylim=(low, high),
    )
    axis.legend(frameon=False, fontsize="small")
    _gamma_axis(axis)


def _loss(axis: Axes, data: _Sweep, threshold: float) -> None:
    for step, step_size in enumerate(data.step_sizes):
        _draw(axis, data.along_gamma(step_size, "mean_loss_rise"), "gamma", VERMILION, step)
    axis.axhline(threshold, color="black", linestyle=":", linewidth=0.8)
    axis.annotate(
        "diffuse above",
        (1, threshold),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=7,
    )
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set(ylabel="rise of the mean loss (nats)", title="Loss under the probe")
    _gamma_axis(axis)


def _linearity(axis: Axes, data: _Sweep, threshold: float) -> None:
    curves = (
        ("linear_share", "", "linear share of the variance", PURPLE),
        ("corrected_cka_to_limit", data.best, "CKA to the exact limit, noise corrected", GREEN),
        ("cka_to_limit", ALONE, "CKA to the exact limit, draws alone", SKY),
        ("variance_reached", "", "share of the stationary variance reached", GRAY),
    )
    for step, step_size in enumerate(data.step_sizes):
        for statistic, estimator, label, color in curves:
            rows = data.along_gamma(step_size, statistic, estimator)
            if "corrected" in statistic:
                rows = rows[rows.error < UNCERTAIN]
            if not rows.empty:
                _draw(axis, rows, "gamma", color, step, label=None if step else label)
    axis.axhline(threshold, color="black", linestyle=":", linewidth=0.8)
    axis.annotate(
        "frozen: linear share above",
        (0.02, threshold),
        xycoords=("axes fraction", "data"),
        va="top",
        fontsize=7,
    )
    axis.set(ylabel="share; CKA", title="Towards the exact limit", ylim=(-0.25, 1.9))
    axis.legend(frameon=False, fontsize="small", loc="upper left")
    _gamma_axis(axis)


def _times(axis: Axes, data: _Sweep, draws: int) -> None:
    curves = (
        ("settled_draws", "mean loss settled", BLUE),
        ("autocorrelation_draws", "autocorrelation time of the mean loss", ORANGE),
        ("cka_draws", "CKA(t, final) reached", PURPLE),
    )
    for step, step_size in enumerate(data.step_sizes):
        for statistic, label, color in curves:
            rows = data.along_gamma(step_size, statistic)
            _draw(axis, rows, "gamma", color, step, label=None if step else label)
    axis.axhline(draws, color="black", linestyle=":", linewidth=0.8)
    axis.annotate(
        "whole run (at least)",
        (0.02, draws),
        xycoords=("axes fraction", "data"),
        va="bottom",
        fontsize=7,
    )
    axis.set(
        ylabel="draws (bars: sd over groups of inputs)",
        title="Convergence",
        ylim=(0, 1.7 * draws),
    )
    axis.legend(frameon=False, fontsize="small", loc="upper right")
    _gamma_axis(axis)


def _gamma_axis(axis: Axes) -> None:
    axis.set_xscale("log")
    axis.set_xlabel("localization γ (1 / weight²)")


def _shade(axis: Axes, data: _Sweep) -> None:
    """Background by the regime of the nearest setting of the first step size."""
    rows = data.at_base
    gammas = rows.gamma.to_numpy()
    middle = np.sqrt(gammas[:-1] * gammas[1:])
    edges = np.concatenate([[gammas[0] / 1.6], middle, [gammas[-1] * 1.6]])
    for low, high, regime in zip(edges[:-1], edges[1:], rows.regime, strict=True):
        axis.axvspan(low, high, color=REGIMES[regime], alpha=0.12, linewidth=0, zorder=0)


def _matrix(figure: plt.Figure, axis: Axes, table: pd.DataFrame, data: _Sweep) -> None:
    """CKA between the settings of the gamma sweeps and the limit.

    Below the diagonal plain, of the draws alone; above it corrected, by the best estimator, where
    its error is small enough.
    """
    keys = [
        (data.base["n_beta"], gamma, step_size)
        for step_size in data.step_sizes
        for gamma in data.along_gamma(step_size, "mean_loss").gamma
    ]
    names = [f"{gamma:g}" for _, gamma, _ in keys]
    if not data.limit.empty:
        keys.append(None)
        names.append("limit")
    position = {key: i for i, key in enumerate(keys)}
    values = np.full((len(keys), len(keys)), np.nan)
    for row in table.itertuples():
        ends = [
            position.get(None if np.isinf(gamma) else (n_beta, gamma, step_size))
            for n_beta, gamma, step_size in (
                (row.n_beta_1, row.gamma_1, row.step_size_1),
                (row.n_beta_2, row.gamma_2, row.step_size_2),
            )
        ]
        if None not in ends:
            low, high = sorted(ends)
            if row.estimator == ALONE:
                values[high, low] = row.cka
            if row.estimator == data.best and row.corrected_cka_error < UNCERTAIN:
                values[low, high] = row.corrected_cka
    image = axis.imshow(values, cmap="viridis", vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            shade = "white" if value < 0.6 else "black"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=5, color=shade)
    ticks = np.arange(len(keys))
    axis.set_xticks(ticks, names, rotation=90, fontsize=6)
    axis.set_yticks(ticks, names, fontsize=6)
    for boundary in np.cumsum([len(data.along_gamma(e, "mean_loss")) for e in data.step_sizes]):
        for line in (axis.axhline, axis.axvline):
            line(boundary - 0.5, color=YELLOW, linewidth=0.8)
    axis.set_title(
        "CKA of R: plain below; noise corrected above\n"
        f"({data.best}; can exceed 1; blank: s.e. > {UNCERTAIN:g})",
        fontsize="medium",
    )
    sizes = ", ".join(f"{step_size:g}" for step_size in data.step_sizes)
    axis.set(xlabel=f"γ, by ε = {sizes}", ylabel="γ")
    figure.colorbar(image, ax=axis, shrink=0.85, extend="both")


def _n_beta_lifts(axis: Axes, data: _Sweep) -> None:
    for kind, color in RELATIONS.items():
        rows = data.along_n_beta(f"{kind}_lift", data.best)
        _draw(axis, rows, "n_beta", color, label=f"{kind} lift")
        axis.fill_between(rows.n_beta, rows.null_low, rows.null_high, color=color, alpha=0.15, lw=0)
    axis.axhline(1, color="black", linewidth=0.6)
    axis.set(
        ylabel="lift (1 = chance)",
        title=f"Sweep of nβ at γ = {data.base['gamma']:g} ({data.best})",
    )
    axis.legend(frameon=False, fontsize="small", title="bands: 95 % of renamed inputs")
    _n_beta_axis(axis, data)


def _n_beta_loss(axis: Axes, data: _Sweep) -> None:
    _draw(axis, data.along_n_beta("mean_loss_rise"), "n_beta", VERMILION, label="rise of the loss")
    share = data.along_n_beta("linear_share")
    if not share.empty:
        _draw(axis, share, "n_beta", PURPLE, 1, label="linear share of the variance")
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set(ylabel="rise (nats); share (0 to 1)", title="Loss and linearity along nβ")
    axis.legend(frameon=False, fontsize="small")
    _n_beta_axis(axis, data)


def _n_beta_axis(axis: Axes, data: _Sweep) -> None:
    values = data.along_n_beta("mean_loss").n_beta
    lowest = values[values > 0].min()
    axis.set_xscale("symlog", linthresh=lowest)  # 0 is the Gaussian without the loss
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("nβ (inverse temperature times data)")
