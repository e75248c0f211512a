"""What an experiment measured of the paper's numbers and claims: rows of the comparison."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from losskernel.files import atomic_path

COLUMNS = ("id", "reproduced", "spread", "n", "setting", "verdict")


def claim(reproduced, spread, n, setting: str, verdict: str) -> dict:
    """One row without its id.

    Args:
        reproduced: the measured number, or None.
        spread: its standard error or deviation, as ``setting`` says, or None.
        n: how many networks, draws or inputs it is measured over, or None.
        setting: in which setting and at which scale.
        verdict: what it says about the claim.
    """
    return {
        "reproduced": reproduced,
        "spread": spread,
        "n": n,
        "setting": setting,
        "verdict": verdict,
    }


def write_claims(claims: dict[str, dict], output: Path) -> None:
    """Write rows of :func:`claim`, by their ids in ``config/reported.csv``."""
    rows = pd.DataFrame([{"id": name} | row for name, row in claims.items()], columns=COLUMNS)
    with atomic_path(output) as temporary:
        rows.to_csv(temporary, index=False)
