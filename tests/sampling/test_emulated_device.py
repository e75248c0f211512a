"""The computations of a GPU where there is none: on a device that PyTorch takes for another."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent / "emulated_device"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, np.ndarray]:
    """What ``everything.py`` found on the CPU and on the emulated device."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ to compile the emulated device, and finds none")
    folder = tmp_path_factory.mktemp("emulated")
    torch_folder = Path(torch.__file__).parent
    library, output = folder / "device.so", folder / "results.npz"
    options = ["-std=c++20", "-shared", "-fPIC", f"-I{torch_folder / 'include'}"]
    linked = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    for command in (
        [compiler, *options, "-o", library, HERE / "device.cpp", *linked],
        [sys.executable, HERE / "everything.py", library, output],
    ):
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
    with np.load(output) as stored:
        return dict(stored)


NAMES = [
    *(
        f"{what}, {engine}"
        for what in ("losses", "gradient norms", "gradient noise", "pilot")
        for engine in ("batched", "sequential")
    ),
    "losses, convolutions",
    "losses, a data set",
    "losses, one by one",
    "losses, all labels",
    "losses, continued",
    "Gram matrix",
    "linear part",
    "training",
    "features",
    "training with checkpoints",
    "noise",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_device_beside_the_cpu_computes_the_same(results, name):
    expected, found = results[f"cpu/{name}"], results[f"emulated/{name}"]
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.bits
def test_continued_chains_are_those_of_one_run(results):
    for name, of_whole in (
        ("losses, continued", "losses, convolutions"),
        ("losses, a data set", "losses, convolutions"),
    ):
        whole = results[f"emulated/{of_whole}"]
        np.testing.assert_array_equal(results[f"emulated/{name}"], whole, err_msg=name)
