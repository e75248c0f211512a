"""Reported against reproduced: one row for every number and testable claim known of the paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.diagnostics.judge import ERRORS
from losskernel.errors import DataError
from losskernel.experiments.claims import BY_ID, CLAIMS, measured, prose
from losskernel.files import atomic_path, write_csv

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
    write_csv(joined, output, "%.6g")


def stack(rows: list[Path], output: Path) -> None:
    """Join tables of the same columns."""
    write_csv(pd.concat([pd.read_csv(path) for path in rows], ignore_index=True), output)


def pages(table: Path, output: Path, output_results: Path) -> None:
    """Replace the tables between the markers of two pages by ``compare.csv``'s.

    ``output``, the README, shows the headline rows, ``output_results`` all, with their settings and
    what stands beside them.

    Raises:
        DataError: the markers are missing.
    """
    texts = dict.fromkeys(("section", "setting", "beside", "verdict"), str)
    rows = pd.read_csv(table, dtype=texts).fillna(dict.fromkeys(texts, ""))
    headline = rows[[BY_ID[name].headline for name in rows.id]]
    replace_between(output, "compare", _table(headline, "docs/results.md"))
    replace_between(output_results, "compare", "\n".join([_table(rows), *_settings(rows)]))


def verify(tracked: Path, found: Path, output: Path) -> None:
    """Write and print, row by row, whether another run's numbers are those of the tracked table.

    Two estimates with standard errors s and t of the same quantity differ by less than ``2 sqrt(s^2
    + t^2)`` with a probability of 95 %. Numbers without an error must agree to a part in 10,000.

    Raises:
        DataError: a row differs or is missing; the table is written all the same.
    """
    pairs = pd.merge(
        *(pd.read_csv(path)[["id", "reproduced", "spread"]] for path in (tracked, found)),
        on="id",
        how="outer",
        suffixes=("_tracked", "_found"),
        indicator="listed",
    )
    first, second = pairs.reproduced_tracked, pairs.reproduced_found
    error = np.hypot(pairs.spread_tracked, pairs.spread_found)
    pairs["allowed"] = (ERRORS * error).fillna(1e-4 * first.abs())
    same = ((first - second).abs() <= pairs.allowed) | (first.isna() & second.isna())
    pairs["agrees"] = same & (pairs.pop("listed") == "both")
    write_csv(pairs, output)
    print(pairs.to_string(index=False, float_format="%.4g", na_rep=""))
    differ = pairs.id[~pairs.agrees]
    if len(differ):
        raise DataError(
            f"{found}: {len(differ)} of {len(pairs)} rows differ from {tracked} by more than "
            f"chance explains ({', '.join(differ)}); see docs/reproducibility.md"
        )


def replace_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers ``name`` of a page.

    Raises:
        DataError: the markers are missing.
    """
    found, begin, end = page.read_text(), f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if begin not in found or end not in found:
        raise DataError(f"{page}: lacks the markers {begin} and {end}; put them back")
    before, _, rest = found.partition(begin)
    after = rest.partition(end)[2]
    with atomic_path(page) as temporary:
        temporary.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def _settings(rows: pd.DataFrame) -> list[str]:
    """Settings, and what stands beside the rows; what all rows of a section share is said once."""
    lines = []
    for section, group in rows.groupby(rows.id.str.partition(".")[0], sort=False):
        settings = [setting.split("; ") for setting in group.setting]
        shared = [part for part in settings[0] if all(part in one for one in settings[1:])]
        lines += ["", f"**{section}**" + (f": {'; '.join(shared)}." if shared else ""), ""]
        before = ""
        for row, setting in zip(group.itertuples(), settings, strict=True):
            own = "; ".join(part for part in setting if part not in shared)
            said, before = "as above" if own and own == before else own, own
            beside = [part.rpartition(" ") for part in row.beside.split("; ") if part]
            told = "; ".join(f"{name}: {value}" for name, _, value in beside)
            said += f"{' ' if said else ''}[{told}]" if told else ""
            lines += [f"- `{row.id}`: {said}."] if said else []
    return lines


def _table(rows: pd.DataFrame, page: str = "") -> str:
    """The rows for a reader; each links to the section of its experiment, on that page."""

    def cell(value, spread=None) -> str:
        if pd.isna(value):
            return ""
        number = f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
        return number if pd.isna(spread) else f"{number} ± {spread:.2g}"

    lines = ["| id | quantity | paper | here | verdict |", "| - | - | - | - | - |"]
    for row in rows.itertuples():
        cells = (row.quantity, cell(row.reported), cell(row.reproduced, row.spread), row.verdict)
        told = " | ".join(str(value).replace("|", r"\|") for value in cells)
        section = row.id.partition(".")[0]
        lines.append(f"| [`{row.id}`]({page}#{section}) | {told} |")
    return "\n".join(lines)
