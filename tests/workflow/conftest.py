"""Copies of the repository to run Snakemake in, and the path of the rules' own helpers."""

import sys

import pytest
from repository import ROOT, SMOKE, Copy

sys.path.insert(0, str(ROOT / "workflow" / "lib"))


@pytest.fixture(scope="session")
def copy(tmp_path_factory) -> Copy:
    """A copy in which nothing has run; tests that write use folders of their own in it."""
    return Copy(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Copy:
    """A copy in which config/smoke.yaml has run from end to end."""
    repository = Copy(tmp_path_factory.mktemp("finished"))
    status, said = repository.snakemake("all", *SMOKE, "--cores", "2")
    assert status == 0, said
    return repository
