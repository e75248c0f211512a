"""The example of the README runs as printed; commands and files that the pages name exist."""

import re
import shlex
from pathlib import Path

import pytest

from losskernel.cli import main

ROOT = Path(__file__).parents[1]


def test_python_example_of_the_readme_runs():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    namespace: dict = {}
    exec(compile(code, "README.md", "exec"), namespace)
    trace = namespace["trace"]
    inputs = trace.losses.shape[2]
    assert trace.losses.shape[:2] == (4, 200)
    assert namespace["r"].shape == (inputs, inputs)
    assert namespace["neighbors"].shape == (inputs, 5)
    # The loss of an input that is answered with certainty rounds to 0 at every draw.
    moves = trace.losses.reshape(-1, inputs).std(axis=0) > 0
    assert moves.mean() > 0.9
    assert ((namespace["variances"] > 0) == moves).all()


def test_tables_of_the_pages_are_those_of_the_file(tmp_path):
    from losskernel.experiments.comparison import pages

    copies = [tmp_path / name for name in ("README.md", "results.md")]
    originals = [ROOT / "README.md", ROOT / "docs" / "results.md"]
    for copy, original in zip(copies, originals, strict=True):
        copy.write_text(original.read_text())
    pages(ROOT / "results" / "compare.csv", *copies)
    for copy, original in zip(copies, originals, strict=True):
        assert copy.read_text() == original.read_text()


PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))


def shell_commands(program: str) -> list[list[str]]:
    """Commands of the pages' shell blocks that begin with a program, without comments."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.S):
            lines = block.replace("\\\n", " ").splitlines()
            own = [line for line in lines if line.split()[:1] == [program]]
            found += [shlex.split(line, comments=True) for line in own]
    return found


@pytest.mark.parametrize("command", shell_commands("losskernel"), ids=" ".join)
def test_commands_of_the_pages_have_the_options_that_they_name(monkeypatch, command):
    called = []
    monkeypatch.setattr("losskernel.cli._run", lambda function, options: called.append(function))
    main(command[1:])
    assert len(called) == 1


def test_files_named_in_the_pages_exist():
    folders = "config|docs|envs|workflow|src|benchmarks|paper_figures|results/reference"
    named = {
        path
        for page in PAGES
        for path in re.findall(rf"[`(]((?:{folders})/[\w./-]+)[`)]", (ROOT / page).read_text())
    }
    assert len(named) > 20
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
