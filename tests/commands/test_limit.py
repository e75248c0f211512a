import json
import re

import numpy as np
import pytest
import torch

from losskernel import LossTrace, Probe, covariance, sample_losses
from losskernel.cli import main
from losskernel.commands import limit
from losskernel.errors import TraceError
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.kernel.control_variate import normalize
from losskernel.sampling.sample import cross_entropy
from networks import mlp

PROBE = Probe(n_beta=5, gamma=1e4, step_size=1e-4)


DATA = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3


def network():
    return mlp(4, 6, 3, seed=1)


def sample(model=None, probe=PROBE, **changes):
    options = {"draws": 60, "burn_in": 20, "chains": 2, "progress": False}
    return sample_losses(model or network(), DATA, probe, **options | changes)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Gradients, a trace of two chains, and the limit's files made from them."""
    folder = tmp_path_factory.mktemp("limit")
    gradients = per_sample_gradients(network(), DATA, folder / "gradients", progress=False)
    sample(journal=folder / "j", displacements=True).save(folder / "trace.nc")
    limit.gram(folder / "gradients", folder / "gram.npz")
    limit.linear(folder / "gradients", [folder / "j"], folder / "j.npz")
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


def test_the_kernel_with_linear_parts_is_near_the_limit_and_the_plain_one_is_not(files, tmp_path):
    folder, _ = files
    limit.kernel(folder / "trace.nc", folder / "gram.npz", tmp_path / "limit.npz")
    limit.kernel(folder / "trace.nc", folder / "gram.npz", tmp_path / "k.npz", folder / "j.npz")
    expected, found = load(tmp_path / "limit.npz"), load(tmp_path / "k.npz")
    trace = LossTrace.load(folder / "trace.nc")
    plain = covariance(trace.losses)
    error, noise = (np.linalg.norm(k - expected["K"]) for k in (found["K"], plain))
    assert error < noise / 3
    assert np.array_equal(found["R"], normalize(found["K"]))
    said = json.loads(str(found["identity"]))
    assert said["seed"] == 0 and said["chains"] == [0, 1] and said["batch_size"] == 6
    assert all(said[key] == trace.attributes[key] for key in ("probe", "inputs_sha256"))


def doubled(output, target):
    return 2 * cross_entropy(output, target)


def test_gram_matrices_of_other_weights_parameters_or_losses_are_refused(files, tmp_path):
    folder, _ = files
    other = network()
    with torch.no_grad():
        other[0].bias += 1
    sample(other, draws=1).save(tmp_path / "other.nc")
    sample(parameters="2.*", draws=1).save(tmp_path / "part.nc")
    limit.gram(folder / "gradients", tmp_path / "part.npz", "2.*")
    per_sample_gradients(network(), DATA, tmp_path / "g", loss=doubled, progress=False)
    limit.gram(tmp_path / "g", tmp_path / "loss.npz")
    limit.kernel(tmp_path / "part.nc", tmp_path / "part.npz", tmp_path / "k.npz")
    for trace, gram, message in (
        (tmp_path / "other.nc", folder / "gram.npz", "made with other weights .*; make both from"),
        (folder / "trace.nc", tmp_path / "part.npz", "over other parameters than the trace"),
        (folder / "trace.nc", tmp_path / "loss.npz", "of another loss"),
    ):
        with pytest.raises(TraceError, match=f"{gram.name}: {message}"):
            limit.kernel(trace, gram, tmp_path / "k.npz")


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("seed", {"seed": 1}),
        ("burn_in", {"burn_in": 4}),
        ("chains", {"chain_ids": [2, 3]}),
        ("gamma", {"probe": Probe(5, 4e3, 1e-4)}),
    ],
)
def test_linear_parts_of_another_run_are_refused(files, tmp_path, key, changes):
    folder, _ = files
    sample(journal=tmp_path / "j", displacements=True, draws=1, **changes)
    limit.linear(folder / "gradients", [tmp_path / "j"], tmp_path / "l.npz")
    paths = folder / "trace.nc", folder / "gram.npz", tmp_path / "k.npz", tmp_path / "l.npz"
    with pytest.raises(TraceError, match=f"l.npz: of displacements with {key} = "):
        limit.kernel(*paths)


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
