import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("devinterp", reason="devinterp, the peer, is not installed")
ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "benchmarks/results").glob("*.json"))
RATES = (
    "draws_per_second",
    "milliseconds_an_image",
    "measured",
    "seconds",
    "milliseconds_a_gradient",
)


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def quick(benchmarks, tmp_path, capsys):
    """Run one benchmark at tiny sizes; its JSON file and what it printed."""

    def run(name, *options):
        benchmarks(name).main(["--quick", "--output", str(tmp_path), *options])
        (path,) = tmp_path.iterdir()
        assert path.name == f"{name}.json"
        return json.loads(path.read_text()), capsys.readouterr().out

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_and_writes_its_result(quick, name):
    """Structure, and that peers compute the same; what is fast is for an idle machine to say."""
    result, printed = quick(name)
    assert result["benchmark"] == name and result["quick"] is True
    assert f"\n{name}\n" in printed
    machine = result["machine"]
    assert machine["cpu"] and machine["cores"] >= 1 and machine["torch"]
    assert len(machine["load_1_5_15_minutes"]) == 3
    assert result["settings"]["repeats"] == 2
    assert result["floor"]["product_gflops"] > 0
    rows = result["rows"]
    assert len(rows) >= 2 and result["notes"]
    (timed,) = [result[key] for key in RATES if key in result]
    runs = timed.values() if isinstance(timed, dict) else [row["seconds"] for row in timed]
    for values in runs:
        assert len(values["values"]) == 2
        assert 0 < values["lowest"] <= values["median"] <= values["highest"]
    if name == "devinterp_sampler":
        losses = [row["mean loss"] for row in rows]
        assert max(losses) - min(losses) < 0.1 * min(losses)
    if name == "inception_evaluation":
        assert all(row["largest difference of a loss"] < 1e-4 for row in rows)
    if name == "per_sample_gradients":
        key = "largest difference from float64"
        assert max(row[key] for row in rows if key in row) < 1e-5
        assert (len(rows) < 4) == ("left out" in printed)
    if name == "kernel_neighbors":
        assert all(row["same neighbors"] == 1 for row in rows)


def test_an_option_overrides_the_quick_sizes(quick):
    result, _ = quick("linear_limit", "--width", "4", "--repeats", "1")
    assert result["settings"]["width"] == 4 and result["settings"]["repeats"] == 1
    assert result["settings"]["inputs"] == 40


def test_the_peers_network_is_ours(benchmarks):
    import torch

    sampler = benchmarks("devinterp_sampler")
    torch.manual_seed(0)
    model = sampler.ArithmeticTransformer(5, 8, 2, 8, depth=2).double().eval()
    tokens = sampler.modular_table(5).inputs
    torch.testing.assert_close(sampler.EveryPosition(model)(tokens), model(tokens))


def test_all_are_run_each_in_a_process_and_one_that_fails_is_named(monkeypatch):
    commands = []

    def run(command):
        commands.append(command[1:])
        return SimpleNamespace(returncode=int("benchmarks.kernel_neighbors" in command))

    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick"])
    with pytest.raises(SystemExit, match="^failed: kernel_neighbors$"):
        runpy.run_module("benchmarks", run_name="__main__")
    assert commands == [["-m", f"benchmarks.{name}", "--quick"] for name in NAMES]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "linear_limit", "--draws", "3"])
    commands.clear()
    runpy.run_module("benchmarks", run_name="__main__")
    assert commands == [["-m", "benchmarks.linear_limit", "--draws", "3"]]


def test_the_page_of_results_is_that_of_the_files(benchmarks):
    folder = ROOT / "benchmarks" / "results"
    page = benchmarks("harness").page(folder)
    assert (folder / "README.md").read_text() == page
    for name in NAMES:
        assert f"\n## {name}\n" in page
