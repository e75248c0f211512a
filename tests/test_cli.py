"""The command line: tools for a saved trace, and one clear line when something is wrong."""

import csv
import importlib
import json
import shlex
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from PIL import Image

from commandline import run
from losskernel import LossTrace, correlation, covariance, self_covariance
from losskernel.cli import EXAMPLES, HERE, _command_parser, main
from losskernel.kernel.stored import StoredKernel
from losskernel.sampling.journal import Journal
from networks import CLASSIFIER

PROBE_TOLD = '{"gamma": 7, "n_beta": 1, "step_size": 0.01}'
TENCH, GOLDFISH = "n01440764", "n01443537"
SETTINGS = CLASSIFIER | {"image_size": 64, "width": 4096}


@pytest.fixture
def trace(tmp_path):
    """Six inputs: 0 and 1 move together, so do 2 and 3; 4 is alone; 5 never moves."""
    rng = np.random.default_rng(0)
    moves = rng.standard_normal((2, 50, 3))
    losses = np.concatenate([moves[..., [0, 0, 1, 1, 2]], np.ones((2, 50, 1))], axis=2)
    losses[..., :5] += 0.1 * rng.standard_normal((2, 50, 5))
    losses[..., 0] *= 3
    names = {"name": np.array(list("abcdef")), "label": np.array([0, 0, 1, 2, 3, 4])}
    attributes = {"probe": PROBE_TOLD, "seed": 3}
    built = LossTrace.build(losses, np.arange(6.0), losses.mean(2), None, names, attributes)
    built.save(tmp_path / "trace.nc")
    return tmp_path / "trace.nc"


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for wnid in (TENCH, GOLDFISH):
        (tmp_path / "images" / wnid).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 256, (80, 72, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / wnid / f"{number}.JPEG")
    return tmp_path / "images"


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refusal(capsys, folder, *arguments) -> str:
    """The one line that a command says before it ends with status 1, having written nothing."""
    before = files(folder)
    assert run(*arguments) == 1
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said.err.strip().endswith(errors[0])
    assert "Traceback" not in said.err and said.out == ""
    assert files(folder) == before
    return errors[0]


def kernel(folder, journal="journal", output="kernel.npz", **changes):
    settings = json.dumps(SETTINGS | {"image_folder": str(folder)} | changes)
    options = {"gamma": 1e4, "pairs": 4, "groups": 4, "settings": settings}
    options |= {"journal": folder.parent / journal, "output": folder.parent / output}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return ("workflow", "imagenet.sample", "kernel", *words)


def test_summary_tells_shape_settings_and_convergence(trace, capsys):
    assert run("trace", "summary", "--trace", trace) == 0
    said = capsys.readouterr().out
    assert "chains 2 (and 0 diverged)" in said and "draws 50 a chain; inputs 6" in said
    assert f"probe {PROBE_TOLD}" in said and "seed 3" in said
    assert "effective sample size" in said and "noise floor of R 0." in said
    assert "verdict: warning" in said  # 100 draws are few
    assert "  warning: effective sample size" in said and ": sample " in said
    assert "  unknown: minibatch noise is not in the trace" in said


def test_peek_reads_a_journal_that_is_being_written(tmp_path, capsys):
    folder, output = tmp_path / "journal", tmp_path / "kernel.npz"
    losses = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
    losses[2:, 1] = np.nan
    settings = {"chain_ids": '{"ids": [0, 1, 2]}'}
    settings["probe"] = '{"n_beta": 1, "gamma": 9, "step_size": 0.01}'
    journal = Journal(folder, settings, chains=3, inputs=4)
    assert "no complete draw yet" in refusal(capsys, tmp_path, "trace", "peek", "--journal", folder)
    for draw in losses:
        journal.append(draw, np.zeros(3), torch.zeros(3, 2), np.array([-1, 2, -1]))
    assert run("trace", "peek", "--journal", folder, "--output", output) == 0
    journal.close()
    said = capsys.readouterr().out
    assert "draws so far 5 a chain; inputs 4" in said and "chains 2 (and 1 diverged)" in said
    healthy = losses[:, [0, 2]].swapaxes(0, 1)
    assert f"mean loss {healthy.mean():.4g}" in said and "noise floor of R 0." in said
    with np.load(output) as stored:
        np.testing.assert_array_equal(stored["R"], correlation(healthy))


def test_kernel_writes_k_and_r(trace, tmp_path):
    assert run("trace", "kernel", "--trace", trace, "--output", tmp_path / "kernel.npz") == 0
    losses = LossTrace.load(trace).losses
    with np.load(tmp_path / "kernel.npz") as stored:
        np.testing.assert_array_equal(stored["K"], covariance(losses))
        np.testing.assert_array_equal(stored["R"], correlation(losses))


def neighbors(trace, *options):
    output = trace.with_name("near.csv")
    assert run("trace", "neighbors", "--trace", trace, "--output", output, *options) == 0
    with open(output, newline="") as file:
        return {(row["input"], row["rank"]): row["neighbor"] for row in csv.DictReader(file)}


def test_neighbors_by_name_and_without_those_of_the_same_label(trace):
    nearest = neighbors(trace, "--k", 1)
    assert [nearest[name, "1"] for name in "abcd"] == ["b", "a", "d", "c"]
    others = neighbors(trace, "--k", 3, "--label", "label")
    of_a = {others["a", rank] for rank in "123"}
    assert len(of_a) == 3 and not of_a & {"a", "b"}
    assert others["c", "1"] == "d"  # another label


def test_variances_come_largest_first(trace, tmp_path):
    assert run("trace", "variances", "--trace", trace, "--output", tmp_path / "v.csv") == 0
    with open(tmp_path / "v.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["input"] == "a" and rows[-1]["input"] == "f"
    expected = np.sort(self_covariance(LossTrace.load(trace).losses))[::-1]
    np.testing.assert_allclose([float(row["self_covariance"]) for row in rows], expected)
    assert [float(row["initial_loss"]) for row in rows][-1] == 5


@pytest.mark.parametrize("command", ["summary", "kernel", "neighbors", "variances"])
def test_an_unreadable_trace_is_named(trace, tmp_path, capsys, command):
    trace.write_bytes(trace.read_bytes()[:1000])
    output = () if command == "summary" else ("--output", tmp_path / "out")
    said = refusal(capsys, tmp_path, "trace", command, "--trace", trace, *output)
    assert str(trace) in said and "unreadable" in said


def test_too_many_neighbors_and_an_unknown_label_are_named(trace, tmp_path, capsys):
    command = ("trace", "neighbors", "--trace", trace, "--output", tmp_path / "near.csv")
    assert "k = 6 must be from 1 to 5" in refusal(capsys, tmp_path, *command, "--k", 6)
    assert "has no 'task'" in refusal(capsys, tmp_path, *command, "--label", "task")


def test_a_truncated_jpeg_is_named_and_skipped_only_when_asked_to(images, capsys):
    broken = images / GOLDFISH / "1.JPEG"
    broken.write_bytes(broken.read_bytes()[:500])
    said = refusal(capsys, images.parent, *kernel(images))
    assert str(broken) in said and "skip_unreadable" in said
    assert run(*kernel(images, skip_unreadable=True)) == 0
    found = StoredKernel.load(images.with_name("kernel.npz"))
    assert found.coordinates["name"].tolist() == [
        f"{TENCH}/0.JPEG",
        f"{TENCH}/1.JPEG",
        f"{GOLDFISH}/0.JPEG",
    ]


def test_a_network_that_does_not_learn_its_training_pairs_is_an_error(tmp_path, capsys):
    network = {"prime": 5, "width": 8, "heads": 2, "mlp_width": 8, "depth": 1}
    network |= {"shared_operands": False, "shared_outputs": False}
    settings = {"network": network, "train_share": 1.0, "training": {"steps": 2, "warmup": 1}}
    command = (
        *("workflow", "arithmetic.sample", "train", "--seed", 0, "--settings"),
        json.dumps(settings),
        *("--output", tmp_path / "network.safetensors", "--output-log", tmp_path / "log.json"),
    )
    assert "raise arithmetic.training.steps" in refusal(capsys, tmp_path, *command)
    wrong = json.dumps(settings | {"network": network | {"heads": 3}})
    said = refusal(capsys, tmp_path, *command[:6], wrong, *command[7:])
    assert "heads = 3 does not divide width = 8" in said


def test_the_installed_command_ends_with_status_1_and_one_line(tmp_path):
    command = [sys.executable, "-m", "losskernel.cli", "trace", "summary", "--trace", "none.nc"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr == ("error: none.nc: no such trace; sample it first or correct the path\n")
    assert list(tmp_path.iterdir()) == []


def test_numbers_do_not_depend_on_the_state_of_the_global_generator(images):
    """A control of the sampling through the command line: same seed, same kernel."""
    assert run(*kernel(images)) == 0
    torch.manual_seed(123)
    assert run(*kernel(images, "journal-2", "again.npz")) == 0
    first, again = (
        StoredKernel.load(images.with_name(name)) for name in ("kernel.npz", "again.npz")
    )
    np.testing.assert_array_equal(again.r, first.r)
    np.testing.assert_array_equal(again.losses, first.losses)


def shown(capsys, *arguments) -> str:
    """What a command that only tells something prints."""
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_shows_what_a_user_calls_with_examples_and_keeps_the_steps_of_the_workflow_apart(
    capsys,
):
    said = shown(capsys, "--help")
    assert "trace Sampling a model of one's own" in said and "imagenet.figures" not in said
    assert all(" ".join(example.split()) in said for example in EXAMPLES.values())
    steps = shown(capsys, "workflow", "--help")
    assert "imagenet.figures Figures of experiment 2" in steps
    assert "arithmetic.setup" not in steps  # writes nothing, so it is no step


@pytest.mark.parametrize("example", EXAMPLES.values())
def test_an_example_has_the_options_that_it_names(monkeypatch, example):
    called = []
    monkeypatch.setattr("losskernel.cli._run", lambda function, options: called.append(function))
    main(shlex.split(example)[1:])
    assert len(called) == 1


def test_the_version_is_that_of_the_package(capsys):
    assert shown(capsys, "--version") == f"losskernel {version('losskernel')}"


def test_every_module_of_users_commands_is_a_group_with_an_example():
    names = {path.stem for path in (HERE / "commands").glob("[!_]*.py")}
    assert names == set(EXAMPLES)


@pytest.mark.parametrize("group", EXAMPLES)
def test_help_explains_every_option_of_a_users_command(group):
    module = importlib.import_module(f"losskernel.commands.{group}")
    parser = _command_parser(module, group)
    commands = parser._subparsers._group_actions[0].choices if parser._subparsers else {"": parser}
    unexplained = [
        f"{command} {option.option_strings[0]}"
        for command, one in commands.items()
        for option in one._actions
        if not (option.help or "").replace("(default: %(default)s)", "").strip()
    ]
    assert commands and not unexplained
    told = parser.format_help() + "".join(one.format_help() for one in commands.values())
    assert "``" not in told and ":mod:" not in told  # what Sphinx reads


def test_help_leaves_the_arguments_out_of_the_description(capsys):
    said = shown(capsys, "trace", "neighbors", "--help")
    assert "--k K neighbors of each input. (default: 10)" in said
    assert "Args:" not in said


def test_a_choice_is_checked_before_anything_is_read(capsys):
    with pytest.raises(SystemExit):
        run("mislabel", "rank", "--trace", "x.nc", "--output", "y.csv", "--score", "guess")
    assert "choose from" in capsys.readouterr().err


def test_outputs_are_checked_before_anything_is_computed(trace, tmp_path, capsys):
    command = ("trace", "kernel", "--trace", trace, "--output")
    said = refusal(capsys, tmp_path, *command, trace)
    assert f"{trace}: an output that is an input too; give it a name of its own" in said
    said = refusal(capsys, tmp_path, *command, trace / "kernel.npz")
    assert f"kernel.npz: cannot be written ({trace} is no folder)" in said
    settings = ("--settings", "{}", "--output", tmp_path / "x", "--output-log", tmp_path / "x")
    said = refusal(
        capsys, tmp_path, "workflow", "arithmetic.sample", "train", "--seed", 0, *settings
    )
    assert "x: an output that is another output too" in said
    same = ("--output", tmp_path / "x", "--page", tmp_path / "x")
    said = refusal(capsys, tmp_path, "mislabel", "rank", "--trace", trace, *same)
    assert "x: an output that is another output too" in said
