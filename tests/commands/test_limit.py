import re

import numpy as np
import pytest
import torch
from torch import nn

from losskernel import Probe, covariance, sample_losses
from losskernel.cli import main
from losskernel.commands import limit
from losskernel.errors import TraceError
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.kernel.control_variate import normalize

PROBE = Probe(n_beta=5, gamma=1e4, step_size=1e-4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Gradients, a trace of two runs of a chain each, and the limit's files made from them."""
    folder = tmp_path_factory.mktemp("limit")
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    data = torch.randn(6, 4), torch.arange(6) % 3
    gradients = per_sample_gradients(model, data, folder / "gradients", progress=False)
    options = {"draws": 60, "burn_in": 20, "chains": 2, "progress": False}
    sample_losses(model, data, PROBE, journal=folder / "j", displacements=True, **options).save(
        folder / "trace.nc"
    )
    limit.gram(folder / "gradients", folder / "gram.npz")
    limit.couple(folder / "j", folder / "coupled")
    for name in ("j", "coupled"):
        limit.linear(folder / "gradients", [folder / name], folder / f"{name}.npz")
    with torch.no_grad():
        model[0].bias += 1
    sample_losses(model, data, PROBE, **options).save(folder / "other.nc")
    return folder, gradients


def load(path):
    with np.load(path) as stored:
        return dict(stored)


def test_gram_of_a_group_of_parameters(files, tmp_path):
    folder, gradients = files
    np.testing.assert_allclose(np.diag(load(folder / "gram.npz")["gram"]), gradients.norms**2, 1e-3)
    for group in ("0.*", "2.*"):
        limit.gram(folder / "gradients", tmp_path / group, group)
    parts = sum(load(tmp_path / group)["gram"] for group in ("0.*", "2.*"))
    np.testing.assert_allclose(parts, load(folder / "gram.npz")["gram"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("linear", ["j.npz", "coupled.npz"])
def test_the_kernel_with_linear_parts_is_near_the_limit_and_the_plain_one_is_not(
    files, tmp_path, linear
):
    folder, _ = files
    limit.kernel(folder / "trace.nc", folder / "gram.npz", tmp_path / "limit.npz")
    limit.kernel(folder / "trace.nc", folder / "gram.npz", tmp_path / "k.npz", folder / linear)
    expected, found = load(tmp_path / "limit.npz"), load(tmp_path / "k.npz")
    plain = covariance(limit.LossTrace.load(folder / "trace.nc").losses)
    error, noise = (np.linalg.norm(k - expected["K"]) for k in (found["K"], plain))
    assert error < noise / 3
    assert np.array_equal(found["R"], normalize(found["K"]))


def test_files_of_another_model_are_refused(files, tmp_path):
    folder, _ = files
    with pytest.raises(TraceError, match="gram.npz: made with other weights .*; make both from"):
        limit.kernel(folder / "other.nc", folder / "gram.npz", tmp_path / "k.npz")


@pytest.mark.parametrize("name", ["gram", "linear"])
def test_files_of_other_inputs_are_refused(files, tmp_path, name):
    folder, _ = files
    paths = {"gram": folder / "gram.npz", "linear": folder / "j.npz"}
    stored = load(paths[name]) | {"inputs_sha256": "another"}
    paths[name] = tmp_path / "changed.npz"
    np.savez(paths[name], **stored)
    with pytest.raises(TraceError, match=r"changed.npz: made with other inputs \(another\)"):
        limit.kernel(folder / "trace.nc", paths["gram"], tmp_path / "k.npz", paths["linear"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name,score", "not an .npz archive; give what `limit {}` wrote"),
        ("swapped", "holds .*, not {0}; give as --{0} what `losskernel limit {0}` wrote"),
        (None, "No such file"),
    ],
)
@pytest.mark.parametrize("name", ["gram", "linear"])
def test_a_wrong_file_is_named_in_one_line(files, tmp_path, capsys, name, content, message):
    folder, _ = files
    paths = {"gram": folder / "gram.npz", "linear": folder / "j.npz"}
    other = paths["linear" if name == "gram" else "gram"]
    paths[name] = other if content == "swapped" else tmp_path / "wrong.npz"
    if isinstance(content, bytes):
        paths[name].write_bytes(content)
    options = [word for key, path in paths.items() for word in (f"--{key}", str(path))]
    output = tmp_path / "k.npz"
    command = ["limit", "kernel", "--trace", str(folder / "trace.nc"), "--output", str(output)]
    assert main([*command, *options]) == 1 and not output.exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(message.format(name), said)
