"""Reported against reproduced: one row for every number and testable claim known of the paper."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.errors import DataError
from losskernel.files import atomic_path

COLUMNS = (
    "id",
    "section",
    "quantity",
    "reported",
    "reproduced",
    "spread",
    "n",
    "setting",
    "verdict",
)
NOT_YET = "not yet measured"
MARKERS = ("<!-- compare:begin -->", "<!-- compare:end -->")


def _imagenet(arrays: Path, lift: Path) -> dict[str, dict]:
    with np.load(arrays) as stored:
        summary = json.loads(str(stored["summary"]))
    run, kernel = summary["convergence"], summary["loss kernel"]
    table = pd.read_csv(lift)
    k = 10 if 10 in set(table.k) else int(table.k.max())
    depth = 9 if 9 in set(table.depth) else int(table.depth.median())
    cell = table[(table.k == k) & (table.depth == depth)].set_index(["kernel", "statistic"])["lift"]
    value, error = cell[("loss kernel", "value")], cell[("loss kernel", "standard_error")]
    high = cell[("label-shuffled null", "quantile_high")]
    scale = (
        f"{run['inputs']} inputs, {run['chains']} chains x {run['draws']} draws, "
        f"noise floor {run['noise_floor']:.3f}"
    )
    beside = {
        name: (cell[(name, "value")], summary[name]["spearman"])
        for name in ("loss kernel, draws alone", "exact limit", "penultimate features")
        if name in summary
    }
    lifts = ", ".join(f"{name} {value:.2f}" for name, (value, _) in beside.items())
    ranks = ", ".join(f"{name} {value:.3f}" for name, (_, value) in beside.items())
    return {
        "imagenet.inputs": _row(run["inputs"], None, 1, scale, "another scale than the paper's"),
        "imagenet.lift": _row(
            value,
            error,
            run["chains"] * run["draws"],
            f"k={k}, depth {depth}; {scale}; spread: jackknife over draws",
            f"{'holds' if value > high else 'not resolved'} at this scale: 97.5 % of shuffled "
            f"labels below {high:.2f}; beside it: {lifts}",
        ),
        "imagenet.spearman": _row(
            kernel["spearman"],
            kernel["spearman_error"],
            run["chains"] * run["draws"],
            f"Wu-Palmer similarity; {scale}; spread: jackknife over draws",
            f"{'holds' if kernel['spearman_p'] < 0.05 else 'not resolved'} at this scale: Mantel "
            f"p = {kernel['spearman_p']:.3g}; beside it: {ranks}",
        ),
        "imagenet.cost_gpu_hours": _row(
            None,
            None,
            None,
            f"no GPU used; {scale}",
            "not comparable: another scale and machine",
        ),
    }


def _mislabel(summary: Path, detection: Path) -> dict[str, dict]:
    """Labels wrong at probe time only, as in the paper; the memorized ones are in the verdict."""
    table, trained = pd.read_csv(summary), pd.read_csv(detection)
    share = 0.1 if 0.1 in set(table.share) else float(table.share.max())
    row = table[table.share == share].iloc[0]
    draws = int(row.draws)
    setting = (
        f"digits, not ImageNet; {share:.0%} of labels wrong at probe time; n_beta={row.n_beta:g}, "
        f"gamma={row.gamma:.3g}, eps={row.step_size:.3g}; spread: sd over {draws} corruption draws"
    )
    learned = trained[trained.share == share].set_index("method")["auc"]
    methods = ", ".join(f"{name} {auc:.3f}" for name, auc in learned.items())
    clean, wrong = row.self_covariance_clean, row.self_covariance_mislabeled
    scale = f"another data set and scale; {'' if wrong > clean else 'not '}higher for wrong labels"
    return {
        "mislabel.auc": _row(
            row.auc,
            row.auc_sd,
            draws,
            setting,
            f"another data set; plain loss reaches {row.auc_loss:.3f}; of labels wrong in training "
            f"and memorized: {methods}",
        ),
        "mislabel.self_covariance_clean": _row(
            clean, row.self_covariance_clean_sd, draws, f"nats squared; {setting}", scale
        ),
        "mislabel.self_covariance_mislabeled": _row(
            wrong,
            row.self_covariance_mislabeled_sd,
            draws,
            f"nats squared; {setting}",
            f"{scale} (ratio {row.ratio:.0f} against 1.92)",
        ),
    }


def _row(reproduced, spread, n, setting: str, verdict: str) -> dict:
    return {
        "reproduced": reproduced,
        "spread": spread,
        "n": n,
        "setting": setting,
        "verdict": verdict,
    }


def table(
    reported: Path,
    claims: list[Path],
    imagenet: Path,
    imagenet_lift: Path,
    mislabel: Path,
    mislabel_detection: Path,
    output: Path,
) -> None:
    """Write ``compare.csv``: numbers in ``reported``, ``reproduced``, ``spread``; words elsewhere.

    Rows of claims that nothing measures yet say so.

    Raises:
        DataError: a measured id is not in the table of reported values.
    """
    rows = pd.read_csv(reported)
    found = pd.concat([pd.read_csv(path) for path in claims]).set_index("id")
    measured = found.to_dict("index")
    measured |= _imagenet(imagenet, imagenet_lift)
    measured |= _mislabel(mislabel, mislabel_detection)
    unknown = sorted(set(measured) - set(rows["id"]))
    if unknown:
        raise DataError(f"{reported}: has no row '{unknown[0]}'; add it with its section")
    empty = _row(None, None, None, "", NOT_YET)
    values = pd.DataFrame([measured.get(name, empty) for name in rows["id"]])
    joined = pd.concat([rows, values], axis=1)[list(COLUMNS)]
    joined["n"] = joined["n"].astype("Int64")
    with atomic_path(output) as temporary:
        joined.to_csv(temporary, index=False, float_format="%.6g")


def readme(table: Path, output: Path) -> None:
    """Replace the table between the markers of the README by ``compare.csv``'s.

    Raises:
        DataError: the markers are missing.
    """
    rows = pd.read_csv(table)
    text = output.read_text()
    if not all(marker in text for marker in MARKERS):
        raise DataError(f"{output}: lacks the markers {' and '.join(MARKERS)}; put them back")
    before, _, rest = text.partition(MARKERS[0])
    after = rest.partition(MARKERS[1])[2]
    with atomic_path(output) as temporary:
        temporary.write_text(f"{before}{MARKERS[0]}\n{_markdown(rows)}\n{MARKERS[1]}{after}")


def _markdown(rows: pd.DataFrame) -> str:
    def cell(value, spread=None) -> str:
        if pd.isna(value):
            return ""
        number = f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
        return number if pd.isna(spread) else f"{number} ± {spread:.2g}"

    lines = ["| id | quantity | paper | here | verdict | setting |", "| - | - | - | - | - | - |"]
    for row in rows.itertuples():
        setting = "" if pd.isna(row.setting) else row.setting
        lines.append(
            f"| `{row.id}` | {row.quantity} | {cell(row.reported)} "
            f"| {cell(row.reproduced, row.spread)} | {row.verdict} | {setting} |"
        )
    return "\n".join(line.replace("|K|", r"\|K\|").replace("|R|", r"\|R\|") for line in lines)
