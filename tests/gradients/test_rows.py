"""The kernel on disk against the one that is held in memory."""

import numpy as np
import pytest
import torch

from losskernel import gradient_covariance
from losskernel.errors import DataError, TraceError
from losskernel.gradients import rows as module
from losskernel.gradients.rows import HALVES, kernel_rows
from losskernel.kernel.alignment import cka
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.neighbors import kernel_distances, neighbors_by_distance
from networks import mlp

OPTIONS = {"gamma": 8.0, "pairs": 5, "width": 64, "seed": 2, "progress": False}


@pytest.fixture(autouse=True)
def small_squares(monkeypatch):
    """Squares and blocks that do not divide the inputs."""
    monkeypatch.setattr(module, "_TILE", 16)
    monkeypatch.setattr(module, "_ROWS", 11)


def problem(seed=0):
    return mlp(6, 20, 4, seed), (torch.randn(45, 6), torch.arange(45) % 4)


@pytest.fixture
def both(tmp_path):
    model, data = problem()
    return (
        kernel_rows(model, data, journal=tmp_path / "rows", **OPTIONS),
        gradient_covariance(model, data, groups=6, **OPTIONS),
    )


def test_the_same_estimate(both):
    """The sum of products is that of ``gradient_covariance``, up to float32."""
    found, expected = both
    size = np.abs(expected.kernel).max()
    everything = slice(None)
    np.testing.assert_allclose(found.rows(everything), expected.kernel, atol=2e-6 * size)
    for half, matrix in zip(HALVES, expected.halves, strict=True):
        np.testing.assert_allclose(found.rows(everything, half), matrix, atol=5e-6 * size)
    np.testing.assert_array_equal(found.rows(everything), found.rows(everything).T)
    np.testing.assert_array_equal(found.losses, expected.losses)
    assert found.rise == expected.rise


def test_statistics_by_blocks(both):
    found, expected = both
    r = normalize(found.rows(slice(None)))
    np.testing.assert_allclose(np.concatenate([rows for _, rows in found.blocks()]), r, atol=1e-6)
    np.testing.assert_allclose(found.variances(), np.diag(expected.kernel), rtol=1e-4)
    assert found.reliability() == pytest.approx(expected.reliability, abs=1e-4)
    labels = np.arange(45) % 4
    chosen = np.triu(labels[:, None] != labels, 1)
    halves = [normalize(half)[chosen] for half in expected.halves]
    assert found.reliability(labels)[0] == pytest.approx(np.corrcoef(halves)[0, 1], abs=1e-4)
    for exclude in (None, labels):
        ours = found.neighbors(5, exclude)
        theirs = neighbors_by_distance(kernel_distances(r), 5, exclude)
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)
    features = np.random.default_rng(0).standard_normal((45, 3)) + 1
    assert found.cka(features) == pytest.approx(cka(r, features @ features.T), abs=1e-5)
    with pytest.raises(DataError, match="k = 40 must be from 1 to 33"):
        found.neighbors(40, labels)


def test_a_cut_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    model, data = problem()
    whole = kernel_rows(model, data, journal=tmp_path / "whole", **OPTIONS)
    calls = 0
    finish = module._Draws.finish_pair

    def cut(self, run, seconds):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        finish(self, run, seconds)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module._Draws, "finish_pair", cut)
        kernel_rows(model, data, journal=tmp_path / "cut", **OPTIONS)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            module._Draws, "_squares", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        kernel_rows(model, data, journal=tmp_path / "cut", **OPTIONS)
    assert not list((tmp_path / "cut").glob("kernel-*"))
    found = kernel_rows(model, data, journal=tmp_path / "cut", **OPTIONS)
    for name in ("whole", *HALVES):
        np.testing.assert_array_equal(found.rows(slice(None), name), whole.rows(slice(None), name))


def test_a_journal_of_products_is_refused(tmp_path):
    model, data = problem()
    kernel_rows(model, data, journal=tmp_path, **OPTIONS)
    with pytest.raises(TraceError, match="other groups = 2, not 4"):
        gradient_covariance(model, data, groups=4, journal=tmp_path, **OPTIONS)
    with pytest.raises(TraceError, match="other gamma"):
        kernel_rows(model, data, journal=tmp_path, **{**OPTIONS, "gamma": 9.0})
