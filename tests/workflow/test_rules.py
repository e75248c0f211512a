"""The rules name functions of the library, and options that those have."""

import shlex

import pytest
import source_modules
from repository import SMOKE
from source_modules import command_line, digest, parameters

from losskernel.cli import main

CLAIMS = "experiments.imagenet.reports.claims"


def test_every_command_of_the_rules_has_the_options_that_they_give(copy, monkeypatch):
    status, said = copy.snakemake("all", "--dry-run", "--printshellcmds", *SMOKE)
    assert status == 0, said
    commands = [line for line in said.splitlines() if line.startswith("Shell command: losskernel ")]
    assert len(commands) > 60
    called = []
    monkeypatch.setattr("losskernel.cli._run", lambda function, options: called.append(options))
    for command in commands:
        words = shlex.split(command.removeprefix("Shell command: losskernel "))
        assert words[-2] == "2>" and words[-1].endswith(".log")
        main(words[:-2])
    assert len(called) == len(commands)
    assert all("output" in options for options in called)


def test_a_command_is_the_function_and_its_options_each_word_quoted():
    options = {"statistics": "a b/c's.npz", "settings": '{"k": 1}', "headline": [], "regions": None}
    assert command_line(CLAIMS, options) == (
        "losskernel workflow imagenet.reports claims "
        """--statistics 'a b/c'"'"'s.npz' --settings '{"k": 1}'"""
    )
    assert command_line("commands.limit.gram", {"gradients": "g", "output": "o"}) == (
        "losskernel limit gram --gradients g --output o"
    )
    folder = "commands.mislabel.folder"
    assert command_line(folder, {"skip_unreadable": True}).endswith("folder --skip-unreadable")
    assert command_line(folder, {"skip_unreadable": False}).endswith("mislabel folder")


def test_an_option_that_the_function_does_not_have_is_named():
    with pytest.raises(ValueError, match="claims has no parameter 'table'; it has "):
        command_line(CLAIMS, {"table": "x.csv"})
    assert "settings" in parameters(CLAIMS)


def test_the_digest_follows_the_content_of_the_sources(tmp_path, monkeypatch):
    for name in ("experiment", "maths", "other"):
        path = tmp_path / "src/losskernel" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("from losskernel.maths import f\ndef run():\n    return f\n")
    monkeypatch.setattr(source_modules, "ROOT", tmp_path / "src")
    found = []
    for name in ("", "other", "maths"):
        if name:
            (tmp_path / "src/losskernel" / f"{name}.py").write_text("x = 1\n")
        source_modules._tree.cache_clear()
        found.append(digest("experiment.run"))
    assert found[0] == found[1] != found[2]
