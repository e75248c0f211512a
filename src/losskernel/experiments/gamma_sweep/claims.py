"""What the localization sweeps say of the paper's claims in Appendix D.3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.experiments.claims import measured, reported, write_claims
from losskernel.experiments.gamma_sweep.analyze import (
    COLOR,
    COLOR_LIFT,
    HIERARCHY,
    LIFT,
    MAGNITUDE,
    TEXTURE,
    TEXTURE_LIFT,
    all_errors,
)


def claims(metrics: Path, settings: dict, output: Path) -> None:
    """Rows of the sweep of the classifier.

    A localization counts as tested only where the probe reached it: draws of the Gaussian probe are
    independent, so that the effective gamma is the named one.
    """
    table = pd.read_csv(metrics)
    gammas = _gammas(table)
    scale = f"{settings['model']}; {_scale(table)}"
    low, high = reported("gamma.minimum"), reported("gamma.maximum")
    found = {
        "gamma.minimum": measured(gammas[0], None, None, scale, tested=gammas[0] <= low),
        "gamma.maximum": measured(gammas[-1], None, None, scale, tested=gammas[-1] >= high),
        "gamma.effective_minimum": measured(gammas[0], None, None, scale),
        "gamma.effective_maximum": measured(gammas[-1], None, None, scale),
        "gamma.hierarchy_lift": _change(table, LIFT, (HIERARCHY, MAGNITUDE), scale),
        "gamma.colour_lift": _change(table, COLOR_LIFT, (COLOR,), scale),
        "gamma.texture_lift": _change(table, TEXTURE_LIFT, (TEXTURE,), scale),
        "gamma.convergence": measured(
            None,
            None,
            None,
            "independent draws have nothing to converge; in theory a chain forgets its start in "
            "2 / (eps gamma) steps",
            tested=False,
        ),
    }
    write_claims(found, output)


def small(metrics: Path, settings: dict, output: Path) -> None:
    """Rows of the sweep of the small networks, means over them."""
    table = pd.read_csv(metrics)
    seeds = settings["training_seeds"]
    several = len(seeds) if len(seeds) > 1 else None
    networks = f"network{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    scale = (
        f"last checkpoint of {networks} of development (Tiny ImageNet), Gaussian probe, "
        f"{settings['pairs']} pairs of gradients; {_scale(table)}"
    )
    found = {
        "gamma.small_hierarchy": _change(table, LIFT, (HIERARCHY, MAGNITUDE), scale, several),
        "gamma.small_colour": _change(table, COLOR_LIFT, (COLOR,), scale, several),
    }
    write_claims(found, output)


def _gammas(table: pd.DataFrame) -> np.ndarray:
    gammas = table.gamma[np.isfinite(table.gamma)].unique()
    return np.sort(gammas)


def _scale(table: pd.DataFrame) -> str:
    rise = table[table.statistic == "rise"].sort_values("gamma")
    return "rise of the mean loss " + ", ".join(
        f"{row.value:.2g} nats at gamma {row.gamma:,.0f}" for row in rise.itertuples()
    )


def _change(
    table: pd.DataFrame,
    lift: str,
    correlations: tuple[str, ...],
    scale: str,
    networks: int | None = None,
) -> dict:
    """From the lowest gamma to the highest; correlations without noise stand beside the lift."""
    change = table[table.statistic == f"change of {lift}"].iloc[0]
    known = not np.isnan(change.get("error_networks", np.nan))
    among, beside = ", error over networks" if known else "", {}
    for name in (lift, *correlations):
        for row in table[table.statistic == name].sort_values("gamma").itertuples():
            where = f"gamma {row.gamma:,.0f}" if np.isfinite(row.gamma) else "the exact limit"
            beside[f"{name} at {where}"] = row.value
    return measured(
        change.value,
        float(all_errors(change)),
        networks,
        f"{scale}; spread: jackknife over draws and over classes{among}",
        beside=beside,
    )
