import json

import numpy as np
import pandas as pd
import pytest

from losskernel.errors import TraceError
from losskernel.experiments.gain.analyze import join, measure
from losskernel.trace import LossTrace

INPUTS, CHAINS = 20, 2
PROBE = {"n_beta": 5, "gamma": 100.0, "step_size": 0.01}
SETTINGS = {
    "counts": [5, 10, 999],
    "sets": 3,
    "blocks": 4,
    "simulations": 2,
    "helps_from": 1.5,
    "seed": 0,
}


@pytest.fixture(scope="module")
def gradients():
    return np.random.default_rng(0).normal(size=(INPUTS, 40))


def trace(path, gradients, draws, seed, rest=0.1, with_linear=True):
    """Losses that are linear in a displacement of the chain's law, and a quadratic rest."""
    rng = np.random.default_rng(seed)
    variance = 1 / (100 * (1 - 0.01 * 100 / 4))
    linear = rng.normal(0, variance**0.5, (CHAINS, draws, 40)) @ gradients.T
    losses = linear + rest * (linear**2 + rng.normal(0, 0.3, linear.shape))
    built = LossTrace.build(
        losses,
        np.zeros(INPUTS),
        np.zeros((CHAINS, draws)),
        attributes={"probe": json.dumps(PROBE)},
    )
    if with_linear:
        dims = built.dataset["loss"].dims
        built = LossTrace(built.dataset.assign(linear=(dims, linear.astype(np.float32))))
    built.save(path)
    return path


def measured(tmp_path, gradients, rest, reference=True):
    limit = tmp_path / "limit.npz"
    np.savez(limit, gram=gradients @ gradients.T)
    given = {}
    if reference:
        given["reference"] = trace(tmp_path / "run.nc", gradients, 400, 2, rest, False)
    measure(
        "model",
        trace(tmp_path / "trace.nc", gradients, 60, 1, rest),
        limit,
        SETTINGS,
        tmp_path / "curve.csv",
        tmp_path / "summary.csv",
        **given,
    )
    summary = pd.read_csv(tmp_path / "summary.csv").set_index("reference")
    return pd.read_csv(tmp_path / "curve.csv"), summary


def test_near_the_limit_it_helps_and_the_slope_is_one(tmp_path, gradients):
    curve, summary = measured(tmp_path, gradients, rest=0.05)
    assert list(summary.index) == ["exact limit", "long run"]
    assert sorted(curve["draws"].unique()) == [5, 10, 120]
    assert set(curve["gamma"]) == {100} and len(curve) == 2 * 2 * 3
    for _, row in summary.iterrows():
        assert row["helps"] and row["draws_saved"] > 2 and row["linear_share"] > 0.9
        assert abs(row["slope"] - 1) < 4 * row["slope_error"]
        assert row["cka_control_variate"] > row["cka_alone"]
        assert abs(row["cka_alone"] / row["cka_allowed"] - 1) < 0.1
    assert summary.loc["exact limit", "ceiling"] == 1
    assert summary.loc["long run", "ceiling"] < 1
    # The long run sees the limit as well as its own noise lets it.
    assert abs(summary.loc["long run", "cka_limit"] - summary.loc["long run", "ceiling"]) < 0.02


def test_far_from_it_it_does_not_and_the_limit_is_another_kernel(tmp_path, gradients):
    _, summary = measured(tmp_path, gradients, rest=20)
    run = summary.loc["long run"]
    assert not run["helps"] and run["draws_saved"] < 1.2 and run["linear_share"] < 0.3
    assert run["cka_limit"] < run["ceiling"] - 0.1


def test_without_another_run_the_second_half_is_the_reference(tmp_path, gradients):
    curve, summary = measured(tmp_path, gradients, rest=0.05, reference=False)
    assert list(summary.index) == ["exact limit", "second half"]
    assert summary["draws"].tolist() == [60, 60] and curve["draws"].max() == 60


def test_a_trace_without_linear_part_is_refused(tmp_path, gradients):
    plain = trace(tmp_path / "plain.nc", gradients, 10, 1, with_linear=False)
    with pytest.raises(TraceError, match="plain.nc: has no linear part; sample it with"):
        measure("m", plain, tmp_path / "none", SETTINGS, tmp_path / "a", tmp_path / "b")


def test_tables_are_joined(tmp_path):
    for name in "ab":
        pd.DataFrame({"x": [name]}).to_csv(tmp_path / f"{name}.csv", index=False)
    parts = [tmp_path / "a.csv", tmp_path / "b.csv"]
    join(parts, parts[::-1], tmp_path / "curves.csv", tmp_path / "summary.csv")
    assert pd.read_csv(tmp_path / "curves.csv")["x"].tolist() == ["a", "b"]
    assert pd.read_csv(tmp_path / "summary.csv")["x"].tolist() == ["b", "a"]
