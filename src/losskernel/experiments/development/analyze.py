"""Experiment 5, all networks: is structure taken up from coarse to fine?

Each function is one rule of ``workflow/rules/development.smk``. What is read are the curves of
:mod:`losskernel.experiments.development.measure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.diagnostics.trend import rank_trend, rank_trend_p
from losskernel.errors import TraceError
from losskernel.experiments.claims import measured, write_claims
from losskernel.experiments.development.kernels import SAMPLED
from losskernel.experiments.development.measure import PARTS, Curves, Measured
from losskernel.files import atomic_path
from losskernel.kernel.jackknife import jackknife_error
from losskernel.semantics.trajectory import CHANCE, STATISTICS, crossing_step

FEWEST_DEPTHS = 4  # of which an order is told
ALL = "all"  # the mean over networks
SHUFFLED = "shuffled"  # how the names of networks with permuted labels begin
ERRORS = ("draws", "classes", "networks")  # by what is left out
_CURVE = ["kernel", "statistic", "from"]  # what tells the curves of a network apart


def analyze(
    curves: list[Path],
    settings: dict,
    output: Path,
    output_crossings: Path,
    output_order: Path,
) -> None:
    """Agreement with the hierarchy at every checkpoint, when each depth appears, and in what order.

    Of every network, and of the mean curves of those with true labels. Tables: ``output`` one
    number a row (network, kernel, step, statistic, depth) with its errors and the middle 95 % of a
    null of permuted classes; ``output_crossings`` the step at which each depth crosses half of its
    final value; ``output_order`` the rank correlation of depth and that step, of the depths whose
    final value is above 97.5 % of the null. Half of the final value is counted from ``chance``, or
    from the value at ``initialization``. Errors are by jackknife: over blocks of draws, groups of
    classes, and networks.

    Raises:
        TraceError: the networks were measured with other settings or on other inputs.
    """
    networks = sorted(
        (Measured.load(path) for path in curves),
        key=lambda found: (found.network.startswith(SHUFFLED), found.network),
    )
    first = networks[0]
    for other in networks:
        differing = [
            f"{key} = {other.settings.get(key)}, not {first.settings.get(key)}"
            for key in sorted(other.settings.keys() | first.settings.keys())
            if other.settings.get(key) != first.settings.get(key)
        ]
        if differing:
            raise TraceError(
                f"network {other.network}: measured with {differing[0]} as {first.network}; "
                "measure both alike (with tracked curves alone, leave it out of training_seeds)"
            )
        if other.depths != first.depths or not np.array_equal(other.inputs, first.inputs):
            raise TraceError(
                f"network {other.network}: other probe inputs or depths than those of "
                f"{first.network}; sample and measure all with the same settings"
            )
    by_key = {(one.network, name): curve for one in networks for name, curve in one.curves.items()}
    rows = [fact for one in networks for fact in one.facts]
    trained = _with_mean(by_key)
    rows += [
        row for key, curve in (by_key | trained).items() for row in _rows(*key, curve, first.depths)
    ]
    _write(pd.DataFrame(rows), output)
    crossings, order = _orders(trained, first.depths, settings["seed"])
    _write(crossings, output_crossings)
    _write(order, output_order)


def _rows(network: str, name: str, curve: Curves, depths: Sequence[int]) -> list[dict]:
    rows = []
    for statistic in STATISTICS:
        for at, step in enumerate(curve.steps):
            errors = {}
            for part in ERRORS:
                stored = getattr(curve, part)[statistic]
                blocks = stored[at] if stored else []
                errors[part] = jackknife_error(np.reshape(blocks, (len(blocks), len(depths))))
            for i, depth in enumerate(depths):
                rows.append(
                    {
                        "network": network,
                        "step": step,
                        "kernel": name,
                        "statistic": statistic,
                        "value": curve.values[statistic][at][i],
                        "depth": depth,
                        **{f"error_{part}": error[i] for part, error in errors.items()},
                        "null_low": curve.low[statistic][at][i],
                        "null_high": curve.high[statistic][at][i],
                    }
                )
    return rows


def _with_mean(curves: dict[tuple[str, str], Curves]) -> dict[tuple[str, str], Curves]:
    """The curves of networks with true labels, and their mean where there are several networks.

    The mean's null is the mean of theirs, which is wider than its own would be.
    """
    trained = {key: c for key, c in curves.items() if not key[0].startswith(SHUFFLED)}
    kernels = list(dict.fromkeys(name for _, name in trained))
    for name in kernels:
        own = [curve for (_, kernel), curve in trained.items() if kernel == name]
        if len(own) > 1 and all(curve.steps == own[0].steps for curve in own):
            mean = {
                part: {
                    statistic: list(np.mean([getattr(c, part)[statistic] for c in own], axis=0))
                    for statistic in STATISTICS
                }
                for part in PARTS
            }
            trained[ALL, name] = Curves(own[0].steps, **mean, networks=_left_out(own))
    return trained


def _left_out(curves: list[Curves]) -> dict[str, list]:
    """By statistic, (step, network, depth): means of all curves but one."""
    found = {}
    for statistic in STATISTICS:
        values = np.array([curve.values[statistic] for curve in curves])
        means = (values.sum(axis=0) - values) / (len(values) - 1)
        found[statistic] = list(np.swapaxes(means, 0, 1))
    return found


def _orders(
    curves: dict[tuple[str, str], Curves], depths: Sequence[int], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of the crossing steps, a row a depth, and of their order, a row a curve."""
    crossings, orders = [], []
    for (network, name), curve in curves.items():
        for statistic in STATISTICS:
            for start in ("chance", "initialization"):
                key = {"network": network, "kernel": name, "statistic": statistic, "from": start}
                found = _Crossings.of(curve, statistic, start)
                crossings += [key | row for row in found.rows(depths)]
                orders.append(key | found.order(seed))
    return pd.DataFrame(crossings), pd.DataFrame(orders)


@dataclass(frozen=True)
class _Crossings:
    """The crossing step of each depth, ``(depth,)``, NaN where there is none.

    Attributes:
        steps: of all inputs and draws.
        resolved: whether a depth's final value is above 97.5 % of the null.
        replicates: of the jackknife, ``(block, depth)``, by what is left out.
    """

    steps: np.ndarray
    resolved: np.ndarray
    replicates: dict[str, np.ndarray]

    @classmethod
    def of(cls, curve: Curves, statistic: str, start: str) -> _Crossings:
        def crossings(values: np.ndarray) -> np.ndarray:
            chance = CHANCE[statistic] if start == "chance" else None
            return np.array(
                [
                    crossing_step(curve.steps, line, line[0] if chance is None else chance)
                    for line in values.T
                ]
            )

        values = np.array(curve.values[statistic])
        replicates = {part: np.array(getattr(curve, part)[statistic]) for part in ERRORS}
        return cls(
            crossings(values),
            values[-1] > np.array(curve.high[statistic])[-1],
            {
                # (step, block, depth); kernels without draws have no blocks of them.
                part: np.array([crossings(block) for block in np.swapaxes(stored, 0, 1)])
                for part, stored in replicates.items()
                if stored.size
            },
        )

    def rows(self, depths: Sequence[int]) -> list[dict]:
        """The errors are of ``log(1 + step)``."""
        columns = {"depth": depths, "step": self.steps, "resolved": self.resolved}
        for part in ERRORS:
            missing = np.full((1, len(depths)), np.nan)
            errors = jackknife_error(np.log1p(self.replicates.get(part, missing)))
            columns[f"log_error_{part}"] = errors
        return pd.DataFrame(columns).to_dict("records")

    def order(self, seed: int) -> dict:
        """Rank correlation of depth and step over the resolved depths, with p and errors."""
        used = self.resolved & np.isfinite(self.steps)
        row = {"depths": int(used.sum()), "spearman": np.nan, "p": np.nan}
        row |= {f"error_{part}": np.nan for part in ERRORS}
        if used.sum() < FEWEST_DEPTHS:
            return row
        row |= {"spearman": _trend(self.steps[used]), "p": rank_trend_p(self.steps[used], seed)}
        for part, replicates in self.replicates.items():
            trends = np.array([_trend(replicate[used]) for replicate in replicates])
            row[f"error_{part}"] = float(jackknife_error(trends))
        return row


def _trend(crossings: np.ndarray) -> float:
    """Rank correlation of depth and crossing step of the depths that cross; 0 for less than two.

    A replicate that loses a depth keeps the others in their order.
    """
    found = crossings[np.isfinite(crossings)]
    return rank_trend(found) if len(found) > 1 else 0.0


def _write(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def claims(order: Path, crossings: Path, metrics: Path, settings: dict, output: Path) -> None:
    """What the trajectory says of the paper's claim, for the comparison."""
    table, numbers = pd.read_csv(order, dtype={"network": str}), pd.read_csv(metrics)
    headline = settings["headline"]
    network = ALL if (table["network"] == ALL).any() else str(table["network"].iloc[0])
    of_network = table[table["network"] == network].set_index(_CURVE)
    name = SAMPLED[headline["rule"]]
    row = of_network.loc[(name, headline["statistic"], headline["from"])]
    errors = row[[f"error_{part}" for part in ERRORS]].astype(float).dropna()
    alone = table[table["network"] != ALL].set_index(["network", *_CURVE])["spearman"]
    each = {
        f"network {one}": alone.get((one, *row.name), np.nan)
        for one in alone.index.unique("network")
    }
    top1 = numbers[(numbers["kernel"] == "network") & (numbers["statistic"] == "top1")]
    top1 = top1[~top1["network"].astype(str).str.startswith(SHUFFLED)]
    reached = top1[top1["step"] == top1["step"].max()]["value"].mean()
    steps = np.sort(top1["step"].unique())
    orders = of_network.xs(headline["from"], level="from")["spearman"].dropna()
    others = {
        f"{kernel} by {statistic.replace('_', ' ')}": value
        for (kernel, statistic), value in orders.items()
        if statistic in ("lift", "conditional_auc")
        and (kernel, statistic) != (name, headline["statistic"])
    }
    crossed = pd.read_csv(crossings, dtype={"network": str})
    crossed = crossed[crossed["resolved"] & (crossed["network"] == network)].set_index(_CURVE)
    crowded = {}
    if row.name in crossed.index:
        crowded = _crowded(crossed.loc[[row.name], "step"].dropna(), steps)
    setting = (
        f"Tiny ImageNet, validation top-1 {reached:.1%}, {len(each)} network(s), {len(steps)} "
        f"checkpoints; {name}, {headline['statistic']} from {headline['from']}, "
        f"{int(row['depths'])} depths above shuffled classes; spread: jackknife over "
        f"{' and '.join(part.removeprefix('error_') for part in errors.index)}"
    )
    # An order that permuted depths show as often leaves the claim unresolved.
    error = float(np.linalg.norm(errors)) if row["p"] < 0.05 else None
    found = measured(
        row["spearman"] if np.isfinite(row["spearman"]) else None,
        error,
        len(each),
        setting,
        beside={"permutation p": row["p"], **each, **others, **crowded},
    )
    write_claims({"development.coarse_to_fine": found}, output)


def _crowded(crossings: pd.Series, steps: np.ndarray) -> dict[str, int]:
    """How many depths cross between the same two checkpoints, where interpolation orders them."""
    if crossings.empty:
        return {}
    places, counts = np.unique(np.searchsorted(steps, crossings), return_counts=True)
    most = places[counts.argmax()]
    if not 0 < most < len(steps) or counts.max() < 2:
        return {}
    between = f"between the checkpoints at steps {steps[most - 1]} and {steps[most]}"
    return {f"depths of {len(crossings)} that cross {between}": counts.max()}
