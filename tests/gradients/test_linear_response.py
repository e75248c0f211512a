import json
import shutil

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from torch import nn

from losskernel import Probe, correlation, covariance, sample_losses
from losskernel.errors import ConfigError, TraceError
from losskernel.gradients.linear_response import gram, linear_part
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.kernel.alignment import cka
from losskernel.kernel.control_variate import control_variate_kernel, limit_kernel, normalize
from losskernel.sampling.journal import JournalHead
from losskernel.sampling.probe import FreeChain
from networks import mlp
from series import over_chains

FALSE_ALARM = 1e-3  # probability that a test fails correct code, for seeds drawn at random
SIZE = 12  # weights of the linear problem


class Linear(nn.Module):
    """Output ``g . w`` with g the input, as a loss linear in the weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Parameter(torch.randn(SIZE - 4))
        self.second = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return x @ torch.cat([self.first, self.second])


def itself(output, target):
    return output


def linear_problem(inputs=7):
    rng = torch.Generator().manual_seed(5)
    # Gradients of unequal size that point in similar directions: a Gram matrix far from diagonal.
    x = torch.randn(inputs, SIZE, generator=rng) + torch.randn(SIZE, generator=rng)
    return Linear(), (x * torch.logspace(-1, 1, inputs)[:, None], torch.zeros(inputs))


def smooth_problem(inputs=6):
    return mlp(4, 6, 3, seed=1), (torch.randn(inputs, 4), torch.arange(inputs) % 3)


def independent(gamma, n_beta=0.0):
    """Independent draws, or a step after which a chain has forgotten where it was."""
    return Probe(n_beta, gamma, 2 / gamma) if n_beta else Probe(gamma=gamma)


def sample(model, data, probe, journal=None, **options):
    keep = {"journal": journal, "displacements": journal is not None}
    options = {"engine": "batched", "progress": False, **keep, **options}
    return sample_losses(model, data, probe, **options)


def gradients_of(model, data, folder, **options):
    return per_sample_gradients(model, data, folder, progress=False, **options)


def gram_of(gradients, **options):
    return gram(gradients, progress=False, **options)


def linear_of(gradients, displacements, **options):
    return linear_part(gradients, displacements, progress=False, **options)


def rounding_bound(gradients, displacements, gamma, chains, draws):
    """Largest error of a linear part, ``(chain, draw, input)``: two factors, each within 2^-11.

    And 1e-6 for sums and losses in float32: 8 roundings of 2^-23 of terms of the same size.
    """
    moved = np.fromfile(displacements / "displacements.f16", np.float16).astype(float)
    moved = np.abs(moved.reshape(draws, chains, -1).swapaxes(0, 1)) / np.sqrt(gamma)
    size = np.abs(gradients.rows.astype(float)) * gradients.scale[:, None]
    return 2**-10 * 1.001 * moved @ size.T


# The Gram matrix


@pytest.mark.parametrize("block", [None, 1, 5, 12, 100])
def test_gram_is_that_of_the_gradients(tmp_path, block):
    model, data = linear_problem()
    gradients = gradients_of(model, data, tmp_path, dtype="float32", loss=itself)
    g = data[0].double().numpy()
    # each factor within 2^-24, and sums of 12 terms in float32: below 16 roundings of 2^-24
    np.testing.assert_allclose(
        gram_of(gradients, block=block),
        g @ g.T,
        atol=2**-20 * np.linalg.norm(g, axis=1).max() ** 2,
        rtol=0,
    )


# The limit


def test_without_the_loss_the_limit_is_the_gram_matrix_times_the_variance_of_a_weight():
    matrix = np.array([[2.0, 1.0], [1.0, 3.0]])
    np.testing.assert_allclose(limit_kernel(matrix, Probe(gamma=10)), matrix * 0.1, rtol=1e-14)
    chain = FreeChain(gamma=10, step_size=0.1)
    np.testing.assert_allclose(limit_kernel(matrix, chain), matrix * 0.1 / 0.75, rtol=1e-14)


def test_with_the_loss_the_limit_is_the_covariance_in_weight_space():
    rng = np.random.default_rng(0)
    g = rng.standard_normal((5, 8))
    precision = 3 * np.eye(8) + 4 * g.T @ g / 5
    for step in (1e-9, 0.1):
        s = np.linalg.inv(precision @ (np.eye(8) - step * precision / 4))
        probe = Probe(n_beta=4, gamma=3, step_size=step)
        np.testing.assert_allclose(limit_kernel(g @ g.T, probe), g @ s @ g.T, rtol=1e-10)
    continuous = g @ g.T @ np.linalg.inv(3 * np.eye(5) + 4 / 5 * g @ g.T)
    small = limit_kernel(g @ g.T, Probe(n_beta=4, gamma=3, step_size=1e-9))
    np.testing.assert_allclose(small, continuous, rtol=1e-7)


def test_no_limit_where_the_linear_chain_has_no_stationary_law():
    with pytest.raises(ConfigError, match="gamma = 0 has no linear limit"):
        limit_kernel(np.eye(2), FreeChain(gamma=0, step_size=1))
    with pytest.raises(ConfigError, match=r"step_size \* precision = 5.1 .*; .*: lower step_size"):
        limit_kernel(100 * np.eye(2), Probe(n_beta=1, gamma=1, step_size=0.1))


def test_the_sampled_kernel_nears_the_limit_as_gamma_rises(tmp_path):
    model, data = smooth_problem()
    matrix = gram_of(gradients_of(model, data, tmp_path, dtype="float32"))
    similarity, size = [], []
    for gamma in (0.3, 10, 1e4):
        probe = independent(gamma)
        kernel = covariance(sample(model, data, probe, chains=20, draws=100).losses)
        limit = limit_kernel(matrix, probe)
        similarity.append(cka(kernel, limit))
        size.append(np.trace(kernel) / np.trace(limit))
    assert similarity[0] < similarity[1] - 0.02 and similarity[1] < similarity[2]
    # 2000 independent draws: the relative error of a variance is sqrt(2 / 2000) = 0.03, and the
    # part of the CKA that noise takes is of order (inputs / draws) = 0.003
    assert similarity[2] > 0.99 and abs(size[2] - 1) < 0.13


# Linear parts


@pytest.mark.parametrize("block", [None, 1, 5])
def test_linear_parts_are_the_changes_of_linear_losses(tmp_path, block):
    model, data = linear_problem()
    gradients = gradients_of(model, data, tmp_path / "g", loss=itself)
    probe = Probe(n_beta=1.5, gamma=2.0, step_size=0.2)
    trace = sample(model, data, probe, tmp_path / "j", loss=itself, chains=3, draws=11, burn_in=2)
    found = linear_of(gradients, tmp_path / "j", block=block)
    change = trace.losses.astype(float) - trace.initial_loss
    bound = rounding_bound(gradients, tmp_path / "j", probe.gamma, chains=3, draws=11)
    # losses are float32 numbers of some size, made in 12 additions
    bound += 12 * 2**-23 * np.abs(data[0].numpy()).sum(1) * 3
    assert found.shape == (3, 11, 7)
    assert (np.abs(found - change) <= bound).all()
    assert (np.abs(change).max((0, 1)) > 20 * bound.max((0, 1))).all()


def test_linear_parts_are_in_the_memory_order_of_the_model(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 4))
    model = model.to(memory_format=torch.channels_last)
    data = torch.randn(5, 3, 6, 6), torch.arange(5) % 4
    gradients = gradients_of(model, data, tmp_path / "g")
    gamma = 1e6
    trace = sample(
        model, data, independent(gamma), tmp_path / "j", chains=2, draws=40, engine="sequential"
    )
    linear = linear_of(gradients, tmp_path / "j")
    change = trace.losses - trace.losses.mean((0, 1))
    remainder = change - (linear - linear.mean((0, 1)))
    # Second order in a displacement of 1e-3 and float32 rounding of the losses: a few thousandths.
    assert (remainder.std((0, 1)) < 0.02 * change.std((0, 1))).all()
    contiguous = gradients_of(model.to(memory_format=torch.contiguous_format), data, tmp_path / "c")
    with pytest.raises(TraceError, match="displacements of other memory format"):
        linear_of(contiguous, tmp_path / "j")


def test_runs_of_one_chain_each_are_as_one_run_of_all(tmp_path):
    model, data = smooth_problem()
    gradients = gradients_of(model, data, tmp_path / "g")
    probe = Probe(n_beta=3, gamma=50, step_size=0.005)
    sample(model, data, probe, tmp_path / "all", chains=3, draws=6)
    for chain in range(3):
        sample(model, data, probe, tmp_path / f"{chain}", chain_ids=[chain], draws=6 + chain)
    whole = linear_of(gradients, tmp_path / "all")
    joined = linear_of(gradients, [tmp_path / f"{chain}" for chain in range(3)])
    # The engine sums in another order for one chain than for three: float16 may round differently.
    np.testing.assert_allclose(joined, whole, atol=2**-9 * whole.std() * 3)
    np.testing.assert_array_equal(linear_of(gradients, tmp_path / "all", draws=4), whole[:, :4])


def test_chains_that_diverged_are_left_out_as_in_the_trace(tmp_path):
    model, data = smooth_problem()
    gradients = gradients_of(model, data, tmp_path / "g")
    probe = independent(0.01, n_beta=1e-9)
    free = sample(model, data, probe, chains=4, draws=10, loss_bound=np.inf)
    worst = np.sort(free.losses.mean(2).max(1))
    bound = worst[1:3].mean()  # two of the four go beyond
    trace = sample(model, data, probe, tmp_path / "j", chains=4, draws=10, loss_bound=bound)
    assert trace.diverged.sum() == 2
    found = linear_of(gradients, tmp_path / "j")
    assert found.shape == trace.losses.shape == (2, 10, 6)
    sample(model, data, probe, tmp_path / "free", chains=4, draws=10, loss_bound=np.inf)
    everything = linear_of(gradients, tmp_path / "free")
    np.testing.assert_array_equal(found, everything[~trace.diverged])
    # Of the draws before any chain went beyond none is left out: as in a trace of so many.
    gone = np.isnan(trace.dataset["loss"].values).any(2)
    first = gone.any(0).argmax()
    assert first > 0
    early = linear_of(gradients, tmp_path / "j", draws=int(first))
    np.testing.assert_array_equal(early, everything[:, :first])


# The control variate


@pytest.mark.parametrize(("gamma", "gain"), [(3000, 50), (300, 5)])
def test_the_control_variate_is_unbiased_and_takes_noise_out(tmp_path, gamma, gain):
    """Its mean over 64 runs is the kernel of five times as many draws without it."""
    model, data = smooth_problem()
    gradients = gradients_of(model, data, tmp_path / "g")
    probe, upper = Probe(gamma=gamma), np.triu_indices(6)
    trace = sample(model, data, probe, tmp_path / "j", chains=64, draws=50)
    long = sample(model, data, probe, chains=64, draws=250, seed=1).losses
    reference, reference_error = over_chains(lambda losses: covariance(losses)[upper], long)
    known, linear = limit_kernel(gram_of(gradients), probe), linear_of(gradients, tmp_path / "j")
    pairs = zip(trace.losses, linear, strict=True)
    values = np.array([control_variate_kernel(*pair, known)[upper] for pair in pairs])
    error = values.std(0, ddof=1) / np.sqrt(len(values))
    distance = np.abs(values.mean(0) - reference) / np.hypot(error, reference_error)
    assert distance.max() < student.ppf(1 - FALSE_ALARM / len(distance) / 2, df=63)
    plain = np.array([covariance(losses)[upper] for losses in trace.losses])
    # The gain grows like gamma; measured 110 and 13. The reference's own error counts in both.
    assert ((values - reference) ** 2).mean() < ((plain - reference) ** 2).mean() / gain


def test_displacements_of_chains_without_the_loss_of_an_earlier_version_are_read(tmp_path):
    """Their probe has a step size with n_beta = 0, and their law its bias."""
    model, data = smooth_problem()
    sample(model, data, Probe(20, 40, 0.01), tmp_path / "j", draws=4)
    path = tmp_path / "j/settings.json"
    old = json.dumps({"n_beta": 0, "gamma": 40, "step_size": 0.01})
    path.write_text(json.dumps(json.loads(path.read_text()) | {"probe": old}))
    assert linear_of(gradients_of(model, data, tmp_path / "g"), tmp_path / "j").shape == (4, 4, 6)
    assert JournalHead.read(tmp_path / "j").probe == FreeChain(40, 0.01)


# The normalized kernel


def test_normalized_kernel_is_the_correlation_of_the_losses():
    losses = np.random.default_rng(0).standard_normal((2, 30, 4)) * [1, 0.01, 0, 100]
    found = normalize(covariance(losses))
    np.testing.assert_allclose(found, correlation(losses), atol=1e-12)
    assert np.diag(found).tolist() == [1, 1, 0, 1]


def test_normalized_estimates_stay_within_bounds():
    kernel = np.array([[1.0, 3.0, -4.0, 1.0], [3.0, 4, 0, 1], [-4, 0, 1, 1], [1, 1, 1, -2]])
    expected = [[1, 1, -1, 0], [1, 1, 0, 0], [-1, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(normalize(kernel), expected)


# Bad input


def test_displacements_that_do_not_fit_are_refused(tmp_path):
    model, data = smooth_problem()
    gradients = gradients_of(model, data, tmp_path / "g")
    probe = independent(100.0)
    journal = tmp_path / "j"
    sample(model, data, probe, journal, draws=4)
    with pytest.raises(TraceError, match="holds 4 draws, not the 5 asked for"):
        linear_of(gradients, journal, draws=5)
    with pytest.raises(TraceError, match="no displacements; give at least one"):
        linear_of(gradients, [])
    with pytest.raises(TraceError, match="nowhere: not the journal of a sampling run"):
        linear_of(gradients, tmp_path / "nowhere")
    sample(model, data, probe, tmp_path / "none", draws=4, displacements=False)
    with pytest.raises(TraceError, match="displacements.f16: missing; sample with"):
        linear_of(gradients, tmp_path / "none")
    sample(model, data, probe, tmp_path / "part", draws=4, parameters="0.*")
    with pytest.raises(TraceError, match="displacements of other parameters .2 from '0.weight'"):
        linear_of(gradients, tmp_path / "part")
    other, _ = smooth_problem()
    with torch.no_grad():
        other[0].bias += 1
    sample(other, data, probe, tmp_path / "other", draws=4)
    with pytest.raises(TraceError, match="displacements of other weights .*; use the same model"):
        linear_of(gradients, tmp_path / "other")
    sample(model, data, independent(50.0), tmp_path / "wider", draws=4)
    with pytest.raises(TraceError, match="wider: displacements with .*; join only"):
        linear_of(gradients, [journal, tmp_path / "wider"])
    shutil.copytree(journal, tmp_path / "cut")
    file = tmp_path / "cut/displacements.f16"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(TraceError, match="displacements.f16: .* too short for 4 draws x 4 chains"):
        linear_of(gradients, tmp_path / "cut")
    for name in ("settings.json", "state.safetensors"):
        (tmp_path / "cut" / name).write_text("{}")
        with pytest.raises(TraceError, match="cut: (not the|unreadable as a) journal"):
            linear_of(gradients, tmp_path / "cut")
        shutil.copy(journal / "settings.json", tmp_path / "cut")


def test_arrays_that_do_not_fit_are_refused():
    losses = np.random.default_rng(0).standard_normal((2, 10, 3))
    with pytest.raises(TraceError, match=r"linear part: shape \(2, 9, 3\) .* \(2, 10, 3\); take"):
        control_variate_kernel(losses, losses[:, 1:], np.eye(3))
    with pytest.raises(TraceError, match=r"known covariance: shape \(4, 4\) is not \(3, 3\)"):
        control_variate_kernel(losses, losses, np.eye(4))
