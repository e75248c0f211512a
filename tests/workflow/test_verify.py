"""`make verify` runs the default workflow beside the tracked files."""

import re
import shutil

from repository import ROOT, Copy


def test_no_job_of_make_verify_writes_a_tracked_file(tmp_path):
    words = re.search(r"--config (results=.*)", (ROOT / "Makefile").read_text())[1]
    settings = words.replace("$(VERIFY)", "results/verify").split()
    assert len(settings) == 3
    repository = Copy(tmp_path)
    shutil.rmtree(tmp_path / "results")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reference").symlink_to(ROOT / "results" / "reference")
    status, said = repository.snakemake("all", "--dry-run", "--config", *settings)
    assert status == 0, said
    written = re.findall(r"^ +output: (.*)$", said, re.MULTILINE)
    files = [file for line in written for file in line.split(", ")]
    assert "results/verify/compare.csv" in files
    assert [file for file in files if not file.startswith("results/verify/")] == []
