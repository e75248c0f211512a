"""The report: one file with every figure and table, which opens in a browser by itself."""

import pytest
from repository import SMOKE

pytestmark = pytest.mark.slow


def test_the_report_is_one_page_that_holds_figures_table_and_map(finished, browser):
    status, said = finished.snakemake("all", *SMOKE, "--report", "report.html")
    assert status == 0, said
    browser.open(finished.folder / "report.html")
    browser.wait("document.body.innerText.includes('Reported against reproduced')")
    for category in ("1 Modular arithmetic", "2 ImageNet", "4 Wrong labels", "5 Development"):
        assert category in browser.text("body")
    assert browser.requests() == [] and browser.errors() == []
    held = browser.run("return JSON.stringify(results)")
    for name in ("arithmetic_separation.png", "compare.csv", "imagenet/map.html"):
        assert name in held
    assert "imagenet_map.png" in held
