"""What the localization sweep says of the paper's claims in Appendix D.3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.experiments.claims import measured, reported, write_claims

ALONE, LIMIT = "draws alone", "exact limit"


def claims(metrics: Path, trends: Path, regimes: Path, settings: dict, output: Path) -> None:
    """What the sweep says of the paper's claims along gamma.

    A change along gamma counts as measured where the rank correlation over all gammas has its sign
    with p < 0.05.
    """
    base, everything = settings["base"], pd.read_csv(metrics).fillna({"estimator": ""})
    values = _on_line(everything, base)
    gammas = np.sort(values.gamma.unique())
    cells = values.set_index(["estimator", "statistic", "gamma"]).sort_index()
    trend = pd.read_csv(trends).fillna({"estimator": ""})
    trend = trend[(trend.along == "gamma") & (trend.step_size == base["step_size"])]
    trend = trend.set_index(["estimator", "statistic"])
    kinds = _on_line(pd.read_csv(regimes), base).sort_values("gamma")
    listed = ", ".join(f"{row.gamma:g} {row.regime}" for row in kinds.itertuples())
    scale = (
        f"{len(gammas)} values of gamma from {gammas[0]:g} to {gammas[-1]:g}, "
        f"n_beta={base['n_beta']:g}, eps={base['step_size']:g}; "
        f"{settings['chains']} chains x {settings['draws'] - settings['discard']} draws each"
    )
    low, high = reported("gamma.minimum"), reported("gamma.maximum")
    found = {}
    for name, wanted, value in (
        ("gamma.minimum", low, gammas[0]),
        ("gamma.maximum", high, gammas[-1]),
    ):
        reached = gammas[0] <= wanted <= gammas[-1]
        found[name] = measured(
            value, None, len(gammas), f"{scale}; regimes: {listed}", tested=reached
        )
    limits = everything[everything.estimator == LIMIT].set_index("statistic").value
    for name, kind in (("gamma.hierarchy_lift", "hierarchy"), ("gamma.colour_lift", "color")):
        lift = f"{kind}_lift"
        chosen = sorted({gammas[0], low, high, gammas[-1]} & set(gammas))
        beside = {f"at {gamma:g}": cells.loc[(ALONE, lift, gamma)].value for gamma in chosen}
        found[name] = _change(
            trend, kind, len(gammas), _lift_setting(settings, scale), beside, limits
        )
    row = trend.loc[("", "autocorrelation_draws")]
    first, last = (
        cells.loc[("", "autocorrelation_draws", gamma)] for gamma in (gammas[0], gammas[-1])
    )
    ratio = first.value / last.value
    reached = {
        f"share of its variance that a free weight reaches at {gamma:g}": cells.loc[
            ("", "variance_reached", gamma)
        ].value
        for gamma in (gammas[0], gammas[-1])
    }
    found["gamma.convergence"] = measured(
        ratio,
        ratio * np.hypot(first.error / first.value, last.error / last.value)
        if row.p < 0.05
        else None,
        len(gammas),
        "draws for one independent draw of the mean loss (integrated autocorrelation time, at most "
        f"of the order of the run); {scale}; spread: sd over groups of inputs",
        beside={"Spearman": row.spearman, "p": row.p, **reached},
    )
    write_claims(found, output)


def small(metrics: Path, trends: Path, regimes: Path, settings: dict, output: Path) -> None:
    """What the sweep of the small network says of the first two, as in :func:`claims`.

    Its step size falls with gamma, so that all chains mix alike.
    """
    values = pd.read_csv(metrics).fillna({"estimator": ""})
    limits = values[values.estimator == LIMIT].set_index("statistic").value
    values = values[np.isfinite(values.gamma)]
    gammas = np.sort(values.gamma.unique())
    cells = values.set_index(["estimator", "statistic", "gamma"]).sort_index()
    trend = pd.read_csv(trends).fillna({"estimator": ""})
    trend = trend[(trend.along == "gamma") & trend.step_size.isna()]
    trend = trend.set_index(["estimator", "statistic"])
    listed = ", ".join(
        f"{row.gamma:g} {row.regime}"
        for row in pd.read_csv(regimes).sort_values("gamma").itertuples()
    )
    scale = (
        f"last checkpoint of network {settings['training_seed']} of development (Tiny ImageNet), "
        f"n_beta={settings['n_beta']:g}, eps gamma={settings['relaxation']:g}, "
        f"{settings['chains']} chains x {settings['draws'] - settings['discard']} draws at each of "
        f"{len(gammas)} values of gamma; regimes: {listed}"
    )
    found = {}
    for name, kind in (("gamma.small_hierarchy", "hierarchy"), ("gamma.small_colour", "color")):
        along = cells.value.loc[(ALONE, f"{kind}_lift")]
        beside = {f"at {gamma:g}": along[gamma] for gamma in gammas}
        found[name] = _change(
            trend, kind, len(gammas), _lift_setting(settings, scale), beside, limits
        )
    write_claims(found, output)


def _on_line(table: pd.DataFrame, base: dict) -> pd.DataFrame:
    """Rows of the settings that differ from ``base`` in gamma alone."""
    return table[(table.n_beta == base["n_beta"]) & (table.step_size == base["step_size"])]


def _lift_setting(settings: dict, scale: str) -> str:
    return (
        f"lift of {settings['neighbors']} neighbors by the draws alone; {scale}; spread: jackknife "
        "over draws or sd of renamed inputs, whichever is larger"
    )


def _change(
    trend: pd.DataFrame, kind: str, gammas: int, setting: str, beside: dict, limits: pd.Series
) -> dict:
    """The change of a lift along gamma; not counted as tested unless the ranks say the same."""
    row = trend.loc[(ALONE, f"{kind}_lift")]
    beside = {**beside, "Spearman": row.spearman, "p": row.p}
    if f"{kind}_lift" in limits:
        beside["exact limit"] = limits[f"{kind}_lift"]
    # A trend that the ranks do not show leaves the claim unresolved: no error, no judgement.
    resolved = row.p < 0.05 and row.spearman * row.change > 0
    error = row.change_error if resolved else None
    return measured(row.change, error, gammas, setting, beside=beside)
