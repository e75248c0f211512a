"""Experiment 5, all networks: is structure taken up from coarse to fine?

Each function is one rule of ``workflow/rules/development.smk``. What is read are the curves of
:mod:`losskernel.experiments.development.measure`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.diagnostics.judge import ERRORS as ERRORS_BEYOND
from losskernel.diagnostics.trend import rank_trend
from losskernel.errors import TraceError
from losskernel.experiments.claims import measured, write_claims
from losskernel.experiments.development.kernels import SAMPLED
from losskernel.experiments.development.measure import PARTS, Curves, Measured
from losskernel.files import write_csv
from losskernel.kernel.jackknife import jackknife_error
from losskernel.semantics.trajectory import crossing_step

FEWEST_DEPTHS = 4  # of which an order is told
ALL = "all"  # the mean over networks
SHUFFLED = "shuffled"  # how the names of networks with permuted labels begin
ERRORS = ("draws", "classes", "networks")  # by what is left out
SHARES, OF = (0.25, 0.5, 0.75), ("final", "maximum")  # levels at which a depth crosses
HEADLINE = (0.5, "final")
CHANCE = 1.0  # what the lift of a kernel that knows of no class is
_CURVE = ["kernel", "share", "of"]  # what tells the crossings of a network apart


def analyze(
    curves: list[Path], settings: dict, output: Path, output_crossings: Path, output_order: Path
) -> None:
    """Agreement with the hierarchy at every checkpoint, when each depth appears, and in what order.

    Of every network, and of the mean curves of those with true labels. Tables: ``output`` one
    number a row (network, kernel, step, statistic, depth) with its errors and the middle 95 % of a
    null of permuted classes; ``output_crossings`` the step at which each depth crosses a share of
    its final or largest value, counted from chance, and the same of a kernel whose amplitude alone
    grows (:func:`losskernel.semantics.trajectory.growth`); ``output_order`` the rank correlation of
    depth and that step, of the depths whose final value is above 97.5 % of the null of permuted
    classes, and its null of growth alone. Errors are by jackknife: over groups of pairs of draws,
    groups of classes, and networks.

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
    write_csv(pd.DataFrame(rows), output)
    crossings, order = _orders(trained, first.depths)
    write_csv(crossings, output_crossings)
    write_csv(order, output_order)


def _rows(network: str, name: str, curve: Curves, depths: Sequence[int]) -> list[dict]:
    rows = []
    for at, step in enumerate(curve.steps):
        errors = {}
        for part in ERRORS:
            stored = getattr(curve, part)
            blocks = stored[at] if stored else []
            errors[part] = jackknife_error(np.reshape(blocks, (len(blocks), len(depths))))
        for i, depth in enumerate(depths):
            rows.append(
                {
                    "network": network,
                    "step": step,
                    "kernel": name,
                    "statistic": "lift",
                    "value": curve.values[at][i],
                    "depth": depth,
                    **{f"error_{part}": error[i] for part, error in errors.items()},
                    "null_low": curve.low[at][i],
                    "null_high": curve.high[at][i],
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
            mean = {part: list(np.mean([getattr(c, part) for c in own], axis=0)) for part in PARTS}
            trained[ALL, name] = Curves(own[0].steps, **mean, networks=_left_out(own))
    return trained


def _left_out(curves: list[Curves]) -> list:
    """(step, network, depth): means of all curves but one."""
    values = np.array([curve.values for curve in curves])
    return list(np.swapaxes((values.sum(axis=0) - values) / (len(values) - 1), 0, 1))


def _orders(
    curves: dict[tuple[str, str], Curves], depths: Sequence[int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of the crossing steps, a row a depth, and of their order, a row a curve."""
    crossings, orders = [], []
    for (network, name), curve in curves.items():
        for share, of in product(SHARES, OF):
            key = {"network": network, "kernel": name, "share": share, "of": of}
            found = _Crossings.of(curve, share, of)
            crossings += [key | row for row in found.rows(depths)]
            orders.append(key | found.order())
    return pd.DataFrame(crossings), pd.DataFrame(orders)


@dataclass(frozen=True)
class _Crossings:
    """The crossing step of each depth, ``(depth,)``, NaN where there is none.

    Attributes:
        steps: of all inputs and draws.
        resolved: whether a depth's final value is above 97.5 % of the null.
        replicates: of the jackknife, ``(block, depth)``, by what is left out.
        grown: of the null of growth alone, ``(draw, depth)``.
    """

    steps: np.ndarray
    resolved: np.ndarray
    replicates: dict[str, np.ndarray]
    grown: np.ndarray

    @classmethod
    def of(cls, curve: Curves, share: float, of: str) -> _Crossings:
        def crossings(values: np.ndarray) -> np.ndarray:
            return np.array(
                [crossing_step(curve.steps, line, CHANCE, share, of) for line in values.T]
            )

        values = np.array(curve.values)
        replicates = {part: np.array(getattr(curve, part)) for part in ERRORS}
        return cls(
            crossings(values),
            values[-1] > curve.high[-1],
            {
                # (step, block, depth); kernels without draws have no blocks of them.
                part: np.array([crossings(block) for block in np.swapaxes(stored, 0, 1)])
                for part, stored in replicates.items()
                if stored.size
            },
            np.array([crossings(draw) for draw in np.swapaxes(getattr(curve, of), 0, 1)]),
        )

    def rows(self, depths: Sequence[int]) -> list[dict]:
        """All errors are of ``log(1 + step)``.

        ``log_delay``: behind the mean of growth alone; its error is of the step, by all kinds of
        jackknife together, and of the null, by its spread over draws. ``later``: by two errors.
        """
        columns = {"depth": depths, "step": self.steps, "resolved": self.resolved}
        for part in ERRORS:
            missing = np.full((1, len(depths)), np.nan)
            errors = jackknife_error(np.log1p(self.replicates.get(part, missing)))
            columns[f"log_error_{part}"] = errors
        table, grown = pd.DataFrame(columns), np.log1p(self.grown)
        errors = table.filter(like="log_error_").fillna(0)
        table["grown_step"], table["log_grown_spread"] = np.expm1(grown.mean(0)), grown.std(0)
        table["log_delay"] = np.log1p(self.steps) - grown.mean(0)
        table["log_delay_error"] = np.sqrt((errors**2).sum(axis=1) + table["log_grown_spread"] ** 2)
        table["later"] = table["resolved"] & (
            table["log_delay"] > ERRORS_BEYOND * table["log_delay_error"]
        )
        return table.to_dict("records")

    def order(self) -> dict:
        """Rank correlation of depth and step over the resolved depths, with errors and null."""
        used = self.resolved & np.isfinite(self.steps)
        row = {"depths": int(used.sum()), "spearman": np.nan, "grown": np.nan, "grown_high": np.nan}
        row |= {f"error_{part}": np.nan for part in ERRORS}
        if used.sum() < FEWEST_DEPTHS:
            return row
        grown = [_trend(draw[used]) for draw in self.grown]
        row |= {"spearman": _trend(self.steps[used]), "grown": np.mean(grown)}
        # The draw that the curve itself, were it one of them, would exceed in 2.5 % of cases. Fewer
        # than 39 draws have none.
        place = math.ceil(0.975 * (len(grown) + 1))
        row["grown_high"] = np.sort(grown)[place - 1] if place <= len(grown) else np.nan
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


def _errors(row: pd.Series) -> pd.Series:
    """Those of its jackknife errors that are known, by what is left out."""
    return row[[f"error_{part}" for part in ERRORS]].astype(float).dropna()


def _together(errors: pd.Series) -> float:
    return float(np.linalg.norm(errors)) if len(errors) else np.nan


def claims(order: Path, crossings: Path, metrics: Path, settings: dict, output: Path) -> None:
    """What the trajectory says of the paper's claim, for the comparison."""
    table, numbers = pd.read_csv(order, dtype={"network": str}), pd.read_csv(metrics)
    name = SAMPLED[settings["headline"]]
    curve = (name, *HEADLINE)
    network = ALL if (table["network"] == ALL).any() else str(table["network"].iloc[0])
    by_curve = table.set_index(["network", *_CURVE])
    row = by_curve.loc[(network, *curve)]
    errors = _errors(row)
    names = [name, *(other for other in SAMPLED.values() if other != name)]
    others: dict[str, float] = {}
    for kernel, share, of in product(names, SHARES, OF):
        at = (network, kernel, share, of)
        if at in by_curve.index and at[1:] != curve:
            told, other = f"{kernel}, {share:g} of the {of}", by_curve.loc[at]
            others[told] = other["spearman"]
            others[f"error of {told}"] = _together(_errors(other))
            others[f"null's bound of {told}"] = other["grown_high"]
    alone = [one for one in table["network"].unique() if one != ALL]
    each = {f"network {one}": by_curve["spearman"].get((one, *curve), np.nan) for one in alone}
    top1 = numbers[(numbers["kernel"] == "network") & (numbers["statistic"] == "top1")]
    top1 = top1[~top1["network"].astype(str).str.startswith(SHUFFLED)]
    reached = top1[top1["step"] == top1["step"].max()]["value"].mean()
    steps = np.sort(top1["step"].unique())
    crossed = pd.read_csv(crossings, dtype={"network": str})
    crossed = crossed[crossed["resolved"] & (crossed["network"] == network)]
    crossed = crossed[(crossed[_CURVE] == list(curve)).all(axis=1)]
    appear = {f"step of depth {one.depth}": one.step for one in crossed.itertuples()}
    late = {
        f"depth {one.depth} later than growth alone by": one.log_delay
        for one in crossed[crossed["later"]].itertuples()
    }
    setting = (
        f"Tiny ImageNet, validation top-1 {reached:.1%}, networks trained: {len(each)}, "
        f"{len(steps)} checkpoints; {name}, lift, half of the final value, "
        f"{int(row['depths'])} depths above shuffled classes; null: the final kernel, its "
        "amplitude alone growing; spread: jackknife over "
        f"{' and '.join(part.removeprefix('error_') for part in errors.index)}; delays in log steps"
    )
    found = measured(
        row["spearman"] if np.isfinite(row["spearman"]) else None,
        _together(errors),
        len(each),
        setting,
        null=row["grown_high"] if np.isfinite(row["grown_high"]) else None,
        beside={
            "growth alone": row["grown"],
            "depths later than growth alone": len(late),
            **late,
            **appear,
            **each,
            **others,
            **_crowded(crossed["step"].dropna(), steps),
        },
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
