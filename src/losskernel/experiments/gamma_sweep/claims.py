"""What the localization sweep says of the paper's claims in Appendix D.3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.experiments.claims import claim, write_claims

ALONE, CORRECTED, LIMIT = "draws alone", "control variate", "exact limit"


def claims(
    metrics: Path, trends: Path, regimes: Path, reported: Path, settings: dict, output: Path
) -> None:
    """What the sweep says of the paper's claims along gamma.

    A claim holds if its change from the lowest to the highest gamma has the claimed sign beyond two
    standard errors and the rank correlation over all gammas has it with p < 0.05; it does not hold
    if both have the opposite sign so clearly; anything else is not resolved.
    """
    base, everything = settings["base"], pd.read_csv(metrics).fillna({"estimator": ""})
    paper = {row.id: row.reported for row in pd.read_csv(reported).itertuples()}
    low, high = paper["gamma.minimum"], paper["gamma.maximum"]
    values = _on_line(everything, base)
    gammas = np.sort(values.gamma.unique())
    cells = values.set_index(["estimator", "statistic", "gamma"])
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

    def at(statistic: str, estimator: str = ALONE) -> str:
        """The values at both ends of the sweep and of the paper's."""
        chosen = sorted({gammas[0], low, high, gammas[-1]} & set(gammas))
        return ", ".join(
            f"{cells.loc[(estimator, statistic, gamma)].value:.3g} at {gamma:g}" for gamma in chosen
        )

    def corrected(statistic: str) -> str:
        """Values with the control variate: not judged, as their noise floor falls with gamma."""
        known = (CORRECTED, statistic) in trend.index
        return f"; with the control variate {at(statistic, CORRECTED)}" if known else ""

    found = {}
    for name, wanted, value in (("minimum", low, gammas[0]), ("maximum", high, gammas[-1])):
        reached = gammas[0] <= wanted <= gammas[-1]
        found[f"gamma.{name}"] = claim(
            value,
            None,
            len(gammas),
            scale,
            f"the sweep {'includes' if reached else 'does not include'} the paper's {wanted:g}; "
            f"regimes: {listed}",
        )
    limits = everything[everything.estimator == LIMIT].set_index("statistic").value
    for name, kind, sign in (("hierarchy_lift", "hierarchy", 1), ("colour_lift", "color", -1)):
        lift, row = f"{kind}_lift", trend.loc[(ALONE, f"{kind}_lift")]
        limit = f", exact limit {limits[lift]:.3g}" if lift in limits else ""
        found[f"gamma.{name}"] = claim(
            row.change,
            row.change_error,
            len(gammas),
            f"lift of {settings['neighbors']} neighbors by the draws alone; {scale}; spread: "
            "jackknife over draws or sd of renamed inputs, whichever is larger",
            f"{_judged(row, sign)} at this scale ({at(lift)}{limit}), Spearman "
            f"{row.spearman:+.2f}, p = {row.p:.2g}{corrected(lift)}; lift of squared R, "
            f"without noise: {_told(trend, f'{kind}_squared_lift', sign, ALONE, CORRECTED)}",
        )
    row = trend.loc[("", "autocorrelation_draws")]
    first, last = (
        cells.loc[("", "autocorrelation_draws", gamma)] for gamma in (gammas[0], gammas[-1])
    )
    ratio = first.value / last.value
    found["gamma.convergence"] = claim(
        ratio,
        ratio * np.hypot(first.error / first.value, last.error / last.value),
        len(gammas),
        "draws for one independent draw of the mean loss (integrated autocorrelation time, at most "
        f"of the order of the run); {scale}; spread: sd over groups of inputs",
        # Faster at high gamma: the draws fall along it.
        f"{_judged(row, -1)} at this scale: {first.value:.3g} draws at {gammas[0]:g}, "
        f"{last.value:.3g} at {gammas[-1]:g}, Spearman {row.spearman:+.2f}, p = {row.p:.2g}; draws "
        f"until the mean loss has settled (of {settings['draws']}): {at('settled_draws', '')}, "
        f"{_told(trend, 'settled_draws', -1, '')}; draws to CKA {settings['cka_level']:g} with the "
        f"final kernel: {_told(trend, 'cka_draws', -1, '')}; share of its stationary variance that "
        f"a free weight reaches: {at('variance_reached', '')}",
    )
    write_claims(found, output)


def small(metrics: Path, trends: Path, regimes: Path, settings: dict, output: Path) -> None:
    """What the sweep of the small network says of the first two; judged as those of :func:`claims`.

    Its step size falls with gamma, so that all chains mix alike.
    """
    values = pd.read_csv(metrics).fillna({"estimator": ""})
    limits = values[values.estimator == LIMIT].set_index("statistic").value
    values = values[np.isfinite(values.gamma)]
    gammas = np.sort(values.gamma.unique())
    cells = values.set_index(["estimator", "statistic", "gamma"])
    trend = pd.read_csv(trends).fillna({"estimator": ""})
    trend = trend[(trend.along == "gamma") & trend.step_size.isna()]
    trend = trend.set_index(["estimator", "statistic"])
    listed = ", ".join(
        f"{row.gamma:g} {row.regime}"
        for row in pd.read_csv(regimes).sort_values("gamma").itertuples()
    )
    found = {}
    for name, kind, sign in (("hierarchy", "hierarchy", 1), ("colour", "color", -1)):
        lift = f"{kind}_lift"
        row = trend.loc[(ALONE, lift)]
        along = ", ".join(
            f"{cells.loc[(ALONE, lift, gamma)].value:.3g} at {gamma:g}" for gamma in gammas
        )
        found[f"gamma.small_{name}"] = claim(
            row.change,
            row.change_error,
            len(gammas),
            f"lift of {settings['neighbors']} neighbors by the draws alone; last checkpoint of "
            f"network {settings['training_seed']} of development (Tiny ImageNet), n_beta="
            f"{settings['n_beta']:g}, eps gamma={settings['relaxation']:g}, {settings['chains']} "
            f"chains x {settings['draws'] - settings['discard']} draws at each of {len(gammas)} "
            "values of gamma; spread: jackknife over draws or sd of renamed inputs, whichever is "
            "larger",
            f"{_judged(row, sign)} at this scale ({along}, exact limit {limits[lift]:.3g}), "
            f"Spearman {row.spearman:+.2f}, p = {row.p:.2g}; lift of squared R, without noise: "
            f"{_told(trend, f'{kind}_squared_lift', sign, ALONE)}; regimes: {listed}",
        )
    write_claims(found, output)


def _on_line(table: pd.DataFrame, base: dict) -> pd.DataFrame:
    """Rows of the settings that differ from ``base`` in gamma alone."""
    return table[(table.n_beta == base["n_beta"]) & (table.step_size == base["step_size"])]


def _told(trend: pd.DataFrame, statistic: str, sign: int, *estimators: str) -> str:
    """In words: the trend of a statistic by each estimator that there is."""
    found = [
        (name, trend.loc[(name, statistic)])
        for name in estimators
        if (name, statistic) in trend.index
    ]
    return (
        ", ".join(
            f"{name} {_judged(row, sign)} ({row.change:+.3g} ± {row.change_error:.2g}, "
            f"Spearman {row.spearman:+.2f}, p = {row.p:.2g})".strip()
            for name, row in found
        )
        or "not resolved"
    )


def _judged(row: pd.Series, sign: int) -> str:
    beyond = abs(row.change) > 2 * row.change_error and row.p < 0.05
    if beyond and sign * row.change > 0 and sign * row.spearman > 0:
        return "holds"
    if beyond and sign * row.change < 0 and sign * row.spearman < 0:
        return "does not hold, the opposite is seen"
    return "not resolved"
