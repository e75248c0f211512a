import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("devinterp", reason="devinterp, the peer, is not installed")
ROOT = Path(__file__).resolve().parents[1]
RATES = ("draws_per_second", "milliseconds_an_image", "measured", "seconds")


@pytest.mark.slow
def test_every_benchmark_runs_and_writes_its_result(tmp_path):
    """Structure only: what is fast is for an idle machine to say."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--output", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert set(found) == {
        "devinterp_sampler",
        "inception_evaluation",
        "kernel_neighbors",
        "linear_limit",
    }
    for name, result in found.items():
        assert result["benchmark"] == name and result["quick"] is True
        assert f"\n{name}\n" in done.stdout
        machine = result["machine"]
        assert machine["cpu"] and machine["cores"] >= 1 and machine["torch"]
        assert len(machine["load_1_5_15_minutes"]) == 3
        assert result["settings"]["repeats"] == 2
        assert result["floor"]["product_gflops"] > 0
        assert len(result["rows"]) >= 2 and result["notes"]
        (timed,) = [result[key] for key in RATES if key in result]
        runs = timed.values() if isinstance(timed, dict) else [row["seconds"] for row in timed]
        for values in runs:
            assert len(values["values"]) == 2
            assert 0 < values["lowest"] <= values["median"] <= values["highest"]
    # The peers compute the same thing as we do.
    losses = [row["mean loss"] for row in found["devinterp_sampler"]["rows"]]
    assert abs(losses[0] - losses[1]) < 0.1 * losses[0]
    assert all(
        row["largest difference of a loss"] < 1e-4 for row in found["inception_evaluation"]["rows"]
    )
    assert all(row["same neighbors"] == 1 for row in found["kernel_neighbors"]["rows"])


def test_a_benchmark_that_fails_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "kernel_neighbors", "--quick"]
        + ["--k", "0", "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert done.stderr.endswith("failed: kernel_neighbors\n")
    assert not list(tmp_path.iterdir())
