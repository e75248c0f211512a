"""Reported against reproduced: one row for every number and testable claim known of the paper."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from losskernel.errors import DataError
from losskernel.experiments.claims import BY_ID, CLAIMS, measured, prose
from losskernel.files import atomic_path

COLUMNS = (
    "id",
    "section",
    "quantity",
    "reported",
    "reproduced",
    "spread",
    "null",
    "n",
    "setting",
    "beside",
    "verdict",
)
MARKERS = ("<!-- compare:begin -->", "<!-- compare:end -->")


def table(claims: list[Path], output: Path) -> None:
    """Write ``compare.csv``: what was measured of every claim, and the verdict on it."""
    found = pd.concat([pd.read_csv(path) for path in claims]).set_index("id").to_dict("index")
    nothing = measured(None, None, None, "", tested=False)
    rows = []
    for claim in CLAIMS:
        row = found.get(claim.id, nothing)
        named = {"id": claim.id, "section": claim.section, "quantity": claim.quantity}
        rows.append(named | {"reported": claim.reported} | row | {"verdict": prose(claim, row)})
    joined = pd.DataFrame(rows, columns=COLUMNS).astype({"n": "Int64"})
    with atomic_path(output) as temporary:
        joined.to_csv(temporary, index=False, float_format="%.6g")


def pages(table: Path, output: Path, output_results: Path) -> None:
    """Replace the tables between the markers of two pages by ``compare.csv``'s.

    Args:
        table: the comparison.
        output: the README, which shows the headline rows.
        output_results: the page of all rows, with their settings and what stands beside them.

    Raises:
        DataError: the markers are missing.
    """
    rows = pd.read_csv(table, dtype={"section": str})
    headline = rows[[BY_ID[name].headline for name in rows.id]]
    _replace(output, _table(headline))
    details = [""]
    for row in rows.itertuples():
        said = [f"*Setting*: {row.setting}."] if isinstance(row.setting, str) else []
        said += [f"*Beside it*: {row.beside}."] if isinstance(row.beside, str) else []
        details.append(f"- `{row.id}`: {' '.join(said)}".rstrip(": "))
    _replace(output_results, "\n".join([_table(rows), *details]))


def _replace(page: Path, text: str) -> None:
    found = page.read_text()
    if not all(marker in found for marker in MARKERS):
        raise DataError(f"{page}: lacks the markers {' and '.join(MARKERS)}; put them back")
    before, _, rest = found.partition(MARKERS[0])
    after = rest.partition(MARKERS[1])[2]
    with atomic_path(page) as temporary:
        temporary.write_text(f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{after}")


def _table(rows: pd.DataFrame) -> str:
    def cell(value, spread=None) -> str:
        if pd.isna(value):
            return ""
        number = f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
        return number if pd.isna(spread) else f"{number} ± {spread:.2g}"

    lines = ["| id | quantity | paper | here | verdict |", "| - | - | - | - | - |"]
    for row in rows.itertuples():
        cells = (row.quantity, cell(row.reported), cell(row.reproduced, row.spread), row.verdict)
        told = " | ".join(str(value).replace("|", r"\|") for value in cells)
        lines.append(f"| `{row.id}` | {told} |")
    return "\n".join(lines)
