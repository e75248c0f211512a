"""Claims, what was measured of them, and the pages that show it."""

import pandas as pd
import pytest

from losskernel.errors import DataError
from losskernel.experiments.claims import BY_ID, CLAIMS, measured, prose, verdict, write_claims
from losskernel.experiments.comparison import pages, table, verify


def test_ids_are_unique_and_the_readme_shows_six():
    assert len(BY_ID) == len(CLAIMS)
    assert sum(claim.headline for claim in CLAIMS) == 6


@pytest.mark.parametrize("name", BY_ID)
@pytest.mark.parametrize(
    "row", [(0.5, 0.1), (-0.5, 0.1), (0.5, None), (100.0, 0.1), (None, None)], ids=str
)
def test_a_verdict_is_short_and_first(name, row):
    claim = BY_ID[name]
    said = prose(claim, measured(*row, 3, "setting", null=0.7))
    assert len(said.split()) <= 25
    assert said.startswith(verdict(claim, measured(*row, 3, "", null=0.7)))
    assert said or claim.expected is None


def test_the_side_of_the_papers_number_is_said():
    row = measured(0.949, 0.007, 10, "")
    said = prose(BY_ID["mislabel.auc"], row)
    assert said == "holds: within its error of the paper's"
    said = prose(BY_ID["mislabel.auc"], measured(0.9, 0.007, 10, ""))
    assert said == "does not hold: below the paper's"


def test_a_claim_that_needs_a_null_does_not_hold_without_one():
    claim = BY_ID["development.coarse_to_fine"]
    row = measured(0.9, 0.1, 3, "")
    assert verdict(claim, row) == "not resolved"
    assert prose(claim, row) == "not resolved: there is no null to set it beside"
    row = measured(0.9, 0.1, 3, "", null=0.95)
    assert prose(claim, row) == "not resolved: not beyond its null's 0.95"
    assert prose(claim, measured(0.9, None, 3, "", null=0.5)).endswith("its error is not known")
    assert prose(claim, measured(0.9, 0.6, 3, "", null=0.5)).endswith("open whether it is above 0")
    across = BY_ID["localization.cross_task"]
    assert prose(across, measured(0.0, 0.001, 30, "")) == "holds: above -0.03 and below 0.03"
    assert verdict(claim, measured(0.9, 0.1, 3, "", null=0.5)) == "holds"
    assert verdict(claim, measured(-0.9, 0.1, 3, "")) == "does not hold"


def test_an_unknown_id_is_refused(tmp_path):
    with pytest.raises(KeyError, match=r"mislabel.acu"):
        write_claims({"mislabel.acu": measured(1, 1, 1, "")}, tmp_path / "claims.csv")


def test_what_nothing_measured_is_not_tested_and_both_pages_show_it(tmp_path):
    write_claims(
        {"mislabel.auc": measured(0.96, 0.01, 5, "a setting", beside={"loss": 0.99})},
        tmp_path / "claims.csv",
    )
    table([tmp_path / "claims.csv"], tmp_path / "compare.csv")
    rows = pd.read_csv(tmp_path / "compare.csv").set_index("id")
    assert list(rows.index) == [claim.id for claim in CLAIMS]
    assert rows.verdict["arithmetic.auc"] == "not tested"
    assert rows.verdict["mislabel.auc"].startswith("holds: within")
    for name in ("README.md", "results.md"):
        (tmp_path / name).write_text("before\n<!-- compare:begin -->\n<!-- compare:end -->\nafter")
    pages(tmp_path / "compare.csv", tmp_path / "README.md", tmp_path / "results.md")
    short, full = ((tmp_path / name).read_text() for name in ("README.md", "results.md"))
    assert "`mislabel.auc`" in short and "memorized" not in short
    assert "memorized_digits" in full and "- `mislabel.auc`: a setting [loss: 0.99]." in full
    assert short.startswith("before\n") and short.endswith("\nafter")


def compared(path, **rows):
    """A comparison with these estimates and spreads by id."""
    table = [{"id": name, "reproduced": a, "spread": b} for name, (a, b) in rows.items()]
    pd.DataFrame(table).to_csv(path, index=False)
    return path


def test_a_run_within_the_spreads_agrees_with_the_tracked_table(tmp_path, capsys):
    tracked = compared(tmp_path / "a.csv", auc=(0.9, 0.03), fact=(1000, None), none=(None, None))
    found = compared(tmp_path / "b.csv", auc=(0.8, 0.04), fact=(1000.05, None), none=(None, None))
    verify(tracked, found, tmp_path / "out.csv")
    out = pd.read_csv(tmp_path / "out.csv").set_index("id")
    assert out.agrees.all()
    assert out.allowed.auc == pytest.approx(0.1)  # twice the hypotenuse of 0.03 and 0.04
    assert "0.8" in capsys.readouterr().out


@pytest.mark.parametrize(
    "row",
    [{"auc": (0.79, 0.04)}, {"fact": (1001, None)}, {"auc": (None, None)}, {"more": (1, 1)}],
    ids=["beyond the spreads", "another fact", "not computed", "a row too many"],
)
def test_a_row_that_differs_is_named(tmp_path, row):
    rows = {"auc": (0.9, 0.03), "fact": (1000, None)}
    tracked = compared(tmp_path / "a.csv", **rows)
    found = compared(tmp_path / "b.csv", **rows | row)
    name = next(iter(row))
    with pytest.raises(DataError, match=rf"1 of \d rows differ .*\({name}\)"):
        verify(tracked, found, tmp_path / "out.csv")
    out = pd.read_csv(tmp_path / "out.csv").set_index("id")
    assert list(out.index[~out.agrees]) == [name]
