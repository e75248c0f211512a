"""The workflow as a module of another one, in another folder."""

import pytest
import yaml
from repository import ROOT, Copy

pytestmark = pytest.mark.slow


def test_another_workflow_uses_the_rules_on_the_smoke_config(copy: Copy, tmp_path):
    """All is planned there, and a rule that trains a network is run."""
    smoke = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    places = {"results": "out", "figures": "out/figures", "compare": "out/compare.csv"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(smoke | places))
    (tmp_path / "Snakefile").write_text(
        f"""
configfile: "{copy.folder}/config/config.yaml"
configfile: "own.yaml"

module losskernel:
    snakefile: "{copy.folder}/workflow/Snakefile"
    config: config

use rule * from losskernel as losskernel_*

rule mine:
    default_target: True
    input: rules.losskernel_all.input
    output: touch("mine.txt")
"""
    )
    here = (
        "--directory",
        str(tmp_path),
        "--snakefile",
        str(tmp_path / "Snakefile"),
        "--cores",
        "1",
    )
    status, said = copy.snakemake(*here, "--dry-run")
    assert status == 0, said
    assert "losskernel_compare" in said and "losskernel_figure_gamma_sweep" in said
    network = "out/arithmetic/networks/0.safetensors"
    status, said = copy.snakemake(*here, network)
    assert status == 0, said
    assert "rule losskernel_arithmetic_train:" in said
    assert (tmp_path / network).exists()
    assert (tmp_path / "out/logs/losskernel_arithmetic_train/0.log").read_text().endswith(" s\n")
