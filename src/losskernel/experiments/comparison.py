"""Reported against reproduced: one row for every number and testable claim known of the paper."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from losskernel.errors import DataError
from losskernel.experiments.claims import claim
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

# A verdict up to its first explanation.
_BEFORE_DETAILS = re.compile(r"[^;:(]*[^;:( ]")


def table(
    reported: Path,
    claims: list[Path],
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
    unknown = sorted(set(measured) - set(rows["id"]))
    if unknown:
        raise DataError(f"{reported}: has no row '{unknown[0]}'; add it with its section")
    empty = claim(None, None, None, "", NOT_YET)
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

    table = ["| id | quantity | paper | here | verdict |", "| - | - | - | - | - |"]
    details = ["<details><summary>Every verdict in full, and at which setting</summary>", ""]
    for row in rows.itertuples():
        short = _BEFORE_DETAILS.match(row.verdict)[0]
        table.append(
            f"| `{row.id}` | {row.quantity} | {cell(row.reported)} "
            f"| {cell(row.reproduced, row.spread)} | {short} |".replace("|K|", r"\|K\|").replace(
                "|R|", r"\|R\|"
            )
        )
        setting = "" if pd.isna(row.setting) else f" *Setting*: {row.setting}."
        details.append(f"- `{row.id}`: {row.verdict}.{setting}")
    return "\n".join([*table, "", *details, "", "</details>"])
