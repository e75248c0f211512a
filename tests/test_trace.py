import json

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from losskernel.errors import ConfigError, LossKernelError, TraceError
from losskernel.trace import LossTrace, concatenate

SETTINGS = {
    "probe": '{"gamma": 2}',
    "parameters": "{}",
    "weights_sha256": "ab",
    "inputs_sha256": "cd",
    "loss_bound": float("inf"),
}


def trace(chains=2, draws=5, inputs=4, ids=None, seed=0, **settings):
    rng = np.random.default_rng(seed)
    return LossTrace.build(
        rng.standard_normal((chains, draws, inputs)),
        rng.standard_normal(inputs),
        rng.standard_normal((chains, draws)),
        ids,
        {"label": np.arange(inputs) % 2, "name": np.array([f"n{i}/é" for i in range(inputs)])},
        SETTINGS | settings,
    )


def test_round_trip(tmp_path):
    original = trace(ids=[4, 7])
    original.save(tmp_path / "deep" / "trace.nc")
    loaded = LossTrace.load(tmp_path / "deep" / "trace.nc")
    xr.testing.assert_identical(loaded.dataset, original.dataset)
    assert loaded.losses.dtype == np.float32
    assert loaded.coordinate("name")[1] == "n1/é"
    assert loaded.attributes["loss_bound"] == float("inf")
    assert {"version_torch", "version_losskernel", "python"} <= loaded.attributes.keys()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["trace.nc"]


def test_diverged_chains_are_kept_apart(tmp_path):
    losses = np.zeros((3, 4, 2), np.float32)
    losses[1, 2:] = np.nan
    built = LossTrace.build(losses, np.zeros(2), np.zeros((3, 4)))
    built.save(tmp_path / "trace.nc")
    loaded = LossTrace.load(tmp_path / "trace.nc")
    assert loaded.diverged.tolist() == [False, True, False]
    assert loaded.losses.shape == (2, 4, 2)
    assert np.isnan(loaded.dataset["loss"].values[1, 2:]).all()
    with pytest.raises(TraceError, match="every chain"):
        _ = LossTrace.build(losses[1:2], np.zeros(2), np.zeros((1, 4))).losses


def test_missing_coordinate_is_named():
    with pytest.raises(TraceError, match="no 'task'; it has .*'label'"):
        trace().coordinate("task")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.drop_vars("initial_loss"), "no variable 'initial_loss'"),
        (lambda d: d.transpose("input", "chain", "draw"), "'loss' has dimensions"),
        (lambda d: d.isel(draw=slice(0)), "empty trace"),
    ],
)
def test_what_is_not_a_trace(tmp_path, change, message):
    dataset = change(trace().dataset)
    with pytest.raises(TraceError, match=message):
        LossTrace(dataset)
    path = tmp_path / "foreign.nc"
    dataset.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(TraceError, match=f"foreign.nc: .*{message}"):
        LossTrace.load(path)


@pytest.mark.parametrize("keep", [0, 100, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_one_line_naming_it(tmp_path, keep):
    path = tmp_path / "trace.nc"
    trace(draws=50, inputs=100).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if keep in (0, 100) else int(keep * len(whole))])
    with pytest.raises(TraceError) as caught:
        LossTrace.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_other_unreadable_paths(tmp_path):
    (tmp_path / "text.nc").write_text("not a trace\n" * 100)
    with pytest.raises(TraceError, match="text.nc: unreadable as a trace; sample it again"):
        LossTrace.load(tmp_path / "text.nc")
    with pytest.raises(TraceError, match="none.nc: no such trace"):
        LossTrace.load(tmp_path / "none.nc")
    with pytest.raises(TraceError, match="no such trace"):
        LossTrace.load(tmp_path)


@pytest.mark.parametrize("room", [0, 1000, 20_000])
def test_a_full_disk_leaves_nothing_behind(tmp_path, full_disk, room):
    large = trace(draws=50, inputs=300)
    path = tmp_path / "trace.nc"
    with pytest.raises(LossKernelError, match="trace.nc: cannot be written.*free disk") as caught:
        with full_disk(room):
            large.save(path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    large.save(path)
    with pytest.raises(LossKernelError), full_disk(room):
        trace(draws=60, inputs=300).save(path)
    xr.testing.assert_identical(LossTrace.load(path).dataset, large.dataset)


def test_joining_chains():
    parts = [trace(ids=[0, 1]), trace(ids=[5, 3], seed=1)]
    joined = concatenate(parts)
    assert joined.dataset["chain"].values.tolist() == [0, 1, 5, 3]
    expected = np.concatenate([part.losses for part in parts])
    assert np.array_equal(joined.losses, expected)
    assert joined.dataset["batch_loss"].shape == (4, 5)
    assert joined.initial_loss.shape == (4,)
    assert joined.coordinate("label").tolist() == [0, 1, 0, 1]
    assert joined.attributes["weights_sha256"] == "ab"


def test_chains_that_do_not_go_on_from_each_other_make_no_longer_chain():
    probe = json.dumps({"n_beta": 1, "gamma": 2, "step_size": 0.1})
    with pytest.raises(TraceError, match="make no longer chain"):
        concatenate([trace(probe=probe), trace(probe=probe, seed=1)], "draw")


def test_joining_draws():
    joined = concatenate([trace(), trace(draws=3, seed=1)], "draw")
    assert joined.losses.shape == (2, 8, 4)
    assert joined.dataset["draw"].values.tolist() == list(range(8))


@pytest.mark.parametrize(
    "key", [*list(SETTINGS)[:4], "data_sha256", "batch_size", "burn_in", "steps_per_draw"]
)
def test_traces_of_different_distributions_do_not_join(key):
    with pytest.raises(TraceError, match=f"differ in {key} .*other"):
        concatenate([trace(**{key: "one"}), trace(ids=[2, 3], **{key: "other"})])


@pytest.mark.parametrize(
    ("other", "dimension", "message"),
    [
        (trace(), "chain", "repeat a chain"),
        (trace(ids=[2, 3], draws=6), "chain", r"differ in their draws \(5 and 6"),
        (trace(ids=[2, 3], inputs=3), "chain", r"differ in their inputs \(4 and 3"),
        (trace(chains=1), "draw", r"differ in their chains \(2 and 1"),
        (trace(ids=[2, 3]), "draw", "differ in their chains"),
    ],
)
def test_traces_that_do_not_fit_together(other, dimension, message):
    with pytest.raises(TraceError, match=message):
        concatenate([trace(), other], dimension)


def test_nothing_to_join():
    with pytest.raises(TraceError, match="no traces"):
        concatenate([])


def test_draws_of_another_loss_or_of_the_same_seed_do_not_join():
    first, second = trace(loss="a.loss 1"), trace(ids=[2, 3], loss="a.loss 2")
    with pytest.raises(TraceError, match=r"differ in their loss function \(a.loss 1, a.loss 2\)"):
        concatenate([first, second])
    own = [trace(ids=[i], chains=1, loss=f"losskernel.sample.cross_entropy {i}") for i in (0, 1)]
    concatenate(own)  # the library's own, in another version
    del second.dataset.attrs["loss"]  # a trace from before it was kept
    concatenate([first, second])
    run = trace()
    run.dataset.attrs["seed"] = 4
    with pytest.raises(TraceError, match="repeat the seed 4"):
        concatenate([run, run], "draw")


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ({"chain": [0, 1, 2]}, "a trace has a 'chain' already; choose another name"),
        ({"linear": [0, 1, 2]}, "a trace has a 'linear' already"),
        ({"label": [0, 1]}, r"'label' has shape \(2,\) for 3 inputs; give one value an input"),
        ({"label": "cat"}, r"'label' has shape \(\) for 3 inputs"),
        ({"label": np.zeros((3, 2))}, r"'label' has shape \(3, 2\) for 3 inputs"),
        ({"name": ["a", "caf\udce9.png", "b"]}, r"'name' cannot be saved \(.*surrogates"),
        ({"name": [{}, {}, {}]}, "'name' cannot be saved"),
        ({"of mine": [0, 1, 2]}, "'of mine' cannot be saved"),
        ({5: [0, 1, 2]}, "5 cannot be saved"),
        ({"": [0, 1, 2]}, "'' cannot be saved"),
        ([0, 1, 2], "a list; give a dictionary"),
    ],
)
def test_coordinates_that_a_trace_cannot_keep_are_refused(coords, message):
    losses = np.zeros((2, 4, 3))
    with pytest.raises(ConfigError, match=f"^input_coords: .*{message}") as caught:
        LossTrace.build(losses, losses[0, 0], losses[..., 0], None, coords)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b", "é"],
        [True, False, True],
        np.array(["2020-01-01", "2021-01-01", "2022-01-01"], "datetime64[ns]"),
        pd.Series(["a", "b", "c"], index=[7, 8, 9]),
        torch.tensor([1, 2, 3]),
        np.array([1, 2, 3], np.uint8),
    ],
    ids=["list", "bool", "date", "series", "tensor", "bytes"],
)
def test_coordinates_come_back_as_they_were(tmp_path, values):
    losses = np.zeros((2, 4, 3))
    built = LossTrace.build(losses, losses[0, 0], losses[..., 0], None, {"own": values})
    built.save(tmp_path / "trace.nc")
    found = LossTrace.load(tmp_path / "trace.nc").coordinate("own")
    assert found.tolist() == np.asarray(values).tolist()
