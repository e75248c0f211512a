r"""The Laplace form of the tempered posterior against chains of SGLD that had the time to reach it.

``N(w*, (gamma I + n_beta F)^-1)`` is drawn in two ways, as losses and as gradient pairs, and its
kernel compared with that of chains. The chains obey the rules under which they may be believed:
``eps (gamma + n_beta lambda) <= 0.5`` with lambda the largest curvature where they have got to,
twenty relaxations or more after the burn-in, and a mean loss that has settled.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from losskernel.data.arithmetic import probe_subset
from losskernel.diagnostics.convergence import convergence
from losskernel.diagnostics.localization import RELAXATIONS, localization
from losskernel.experiments.arithmetic.setup import network_model, tables
from losskernel.experiments.comparison import replace_between
from losskernel.experiments.mislabel.setup import digits, fit
from losskernel.files import write_csv
from losskernel.gradients.covariance import GradientCovariance, gradient_covariance
from losskernel.gradients.laplace import Laplace, fisher_targets
from losskernel.gradients.per_sample import Gradients, per_sample_gradients
from losskernel.kernel.alignment import corrected_cka
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.covariance import covariance
from losskernel.kernel.jackknife import jackknife_error
from losskernel.progress import bar
from losskernel.sampling.engines import make_engine
from losskernel.sampling.inputs import Inputs
from losskernel.sampling.pilot import propose_probe
from losskernel.sampling.probe import Probe
from losskernel.sampling.sample import cross_entropy, sample_losses
from losskernel.sampling.stability import curvature
from losskernel.seeds import torch_seed
from losskernel.training.train import TrainingSettings, train

STEP = 0.5  # largest eps (gamma + n_beta lambda) that is believed
_AT_ONCE = 300  # draws

Problem = tuple[nn.Module, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def arithmetic_network(settings: dict, seed: int) -> Problem:
    """A small network of experiment 1, its training pairs, and the inputs looked at."""
    kept, _ = tables(settings["network"], 1.0, seed)
    model = network_model(settings["network"], seed)
    training = TrainingSettings(**settings["training"])
    train(model, kept.inputs, kept.targets, training, seed, progress=False)
    inputs = probe_subset(kept, settings["probe_inputs"], seed)
    return model.eval(), (kept.inputs, kept.targets), (inputs.inputs, inputs.targets)


def digits_network(settings: dict, seed: int) -> Problem:
    """A small network on scikit-learn's digits, its training images, and those looked at."""
    problem = digits(settings["inputs"], seed)
    labels = torch.as_tensor(problem.labels).long()
    model = fit(settings, problem, problem.inputs, labels, seed).model
    count = settings["probe_inputs"]
    return model.eval(), (problem.inputs, labels), (problem.inputs[:count], labels[:count])


NETWORKS: dict[str, Callable[[dict, int], Problem]] = {
    "arithmetic": arithmetic_network,
    "digits": digits_network,
}


def compare(settings: dict, network: str, rise: float, output: Path) -> None:
    """The kernel of long chains against that of the Laplace form, a row a probe.

    gamma is where the Gaussian ``N(w*, I / gamma)`` raises the mean loss by ``rise``, and n_beta
    such that the largest eigenvalue of ``n_beta F / gamma`` is each of ``settings["stiffness"]``.
    ``cka_*`` is of R with that of the chains, without noise and diagonal, ``slope_*`` the
    regression of the chains' K on the other, 1 where they agree; ``direct`` for losses drawn from
    the Laplace form, ``gradients`` for its gradient pairs, ``isotropic`` for losses drawn with
    ``n_beta = 0``, which tells what the data change. Errors are by the jackknife over chains, and
    at once over blocks of draws; those of the pairs are left out.
    """
    seed = settings["seed"]
    model, data, probed = NETWORKS[network](settings[network], seed)
    rows = []
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        targets = fisher_targets(model, data, settings["fisher_repeats"], seed)
        fisher = per_sample_gradients(
            model, targets, scratch, parameters="all", dtype="float32", progress=False
        )
        gamma = propose_probe(model, probed, rise=rise, parameters="all", seed=seed).probe.gamma
        isotropic = sample_losses(
            model,
            probed,
            Probe(gamma=gamma),
            chains=settings["chains"],
            draws=settings["draws"] // settings["chains"],
            parameters="all",
            seed=seed + 1,
            progress=False,
        ).losses
        top = float(Laplace(fisher, gamma, 0.0, progress=False).eigenvalues[0])
        for stiffness in bar(settings["stiffness"], f"{network}, rise {rise:g}", unit="n_beta"):
            row = {"network": network, "rise": rise, "stiffness": stiffness}
            n_beta = stiffness * gamma / top
            found = _row(settings, model, data, probed, fisher, gamma, n_beta, top, isotropic)
            rows.append(row | found)
    write_csv(pd.DataFrame(rows), output)


def _row(
    settings: dict,
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    probed: tuple[Tensor, Tensor],
    fisher: Gradients,
    gamma: float,
    n_beta: float,
    top: float,
    isotropic: np.ndarray,
) -> dict:
    seed = settings["seed"]
    laplace = Laplace(fisher, gamma, n_beta, progress=False)
    names = [name for name, _ in model.named_parameters()]
    engine = make_engine("batched", model, cross_entropy, names, (data[0][:2], data[1][:2]), "cpu")
    training = Inputs(data, "cpu")
    generator = torch.Generator().manual_seed(torch_seed(seed + 1, "noise"))

    def draws(count: int) -> Tensor:
        z = torch.randn(count, len(engine.center), generator=generator)
        return engine.center + laplace.displacement(z)

    # Where the Laplace form thinks that the chains get to; where they do is measured afterwards.
    steepest = max(
        curvature(engine, training, weights, gamma**-0.5, len(training), seed)
        for weights in draws(4)
    )
    step = 0.8 * STEP / (gamma + n_beta * max(top, steepest))
    relaxation = 2 / (step * gamma)
    every = max(1, round(relaxation / settings["draws_per_relaxation"]))
    trace = sample_losses(
        model,
        data,
        Probe(n_beta, gamma, step),
        probe_data=probed,
        chains=settings["chains"],
        draws=round(settings["relaxations"] * relaxation / every),
        burn_in=round(settings["burn_in"] * relaxation),
        steps_per_draw=every,
        batch_size=len(training),
        parameters="all",
        seed=seed,
        loss_bound=None,
        progress=False,
    )
    chains = trace.losses
    reached, settled = localization(trace), convergence(chains, 20)
    steepness = step * (gamma + n_beta * trace.attributes["curvature"])
    start = trace.initial_loss.mean(dtype=float)
    pairs = gradient_covariance(
        model,
        probed,
        gamma=gamma,
        n_beta=n_beta,
        fisher=fisher,
        pairs=settings["pairs"],
        parameters="all",
        seed=seed,
        progress=False,
    )
    inputs = Inputs(probed, "cpu")
    direct = [
        engine.losses(draws(_AT_ONCE), inputs, len(inputs)).numpy()
        for _ in range(settings["draws"] // _AT_ONCE)
    ]
    drawn = np.concatenate(direct).reshape(settings["chains"], -1, len(inputs))
    return {
        "gamma": gamma,
        "gamma_effective": reached.effective,
        "n_beta": n_beta,
        "step_size": step,
        "steps": len(chains[0]) * every,
        "relaxations": reached.length,
        "step_times_stiffness": steepness,
        "drift": settled.drift,
        "drift_error": settled.drift_error,
        "believed": bool(
            len(chains) == settings["chains"]
            and steepness <= STEP
            and reached.agrees
            and reached.length >= RELAXATIONS
            and abs(settled.drift) < 2 * settled.drift_error
        ),
        "rise_chains": chains.mean(dtype=float) - start,
        "rise_direct": drawn.mean(dtype=float) - start,
        "rise_isotropic": isotropic.mean(dtype=float) - start,
        "linear_share": pairs.linear_share,
        **_agreement(chains, drawn, "direct"),
        **_agreement(chains, pairs, "gradients"),
        **_agreement(chains, isotropic, "isotropic"),
    }


def _agreement(chains: np.ndarray, other: np.ndarray | GradientCovariance, name: str) -> dict:
    """CKA of R and slope of K, with errors; ``other`` are losses in as many groups as chains."""

    def halves(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return covariance(losses[::2]), covariance(losses[1::2])

    def both(left: list[int]) -> np.ndarray:
        first = halves(chains[left])
        second = (
            tuple(other.halves) if isinstance(other, GradientCovariance) else halves(other[left])
        )
        above = np.triu_indices(len(first[0]))
        (a, b), (x, y) = ([matrix[above] for matrix in pair] for pair in (first, second))
        cka = corrected_cka(*([normalize(matrix) for matrix in pair] for pair in (first, second)))
        return np.array([cka, (a + b) @ (x + y) / 4 / (x @ y)])

    everything = list(range(len(chains)))
    value = both(everything)
    error = jackknife_error([both([i for i in everything if i != j]) for j in everything])
    return {
        f"{of}_{name}{suffix}": float(number)
        for suffix, numbers in (("", value), ("_error", error))
        for of, number in zip(("cka", "slope"), numbers, strict=True)
    }


def page(table: Path, output: Path) -> None:
    """Replace the table between the markers of a page by the stacked one's main columns."""
    head = (
        "network",
        "rise at nβ = 0, nats",
        "stiffness",
        "nβ",
        "rise: chains, Laplace",
        "CKA of R",
        "CKA, nβ = 0",
        "slope of K",
        "slope by gradients",
        "slope, nβ = 0",
    )
    lines = [" | ".join(head), " | ".join("-" * len(head))]
    rows = pd.read_csv(table)
    for row in rows[rows["believed"]].itertuples():

        def told(name: str, row=row) -> str:
            return f"{getattr(row, name):.2f} ± {getattr(row, name + '_error'):.2f}"

        cells = (
            row.network,
            f"{row.rise:g}",
            f"{row.stiffness:g}",
            f"{row.n_beta:.0f}",
            f"{row.rise_chains:.2g}, {row.rise_direct:.2g}",
            told("cka_direct"),
            told("cka_isotropic"),
            told("slope_direct"),
            told("slope_gradients"),
            told("slope_isotropic"),
        )
        lines.append(" | ".join(cells))
    left_out = (
        f"\n{(~rows['believed']).sum()} of {len(rows)} settings broke a rule and are left out."
    )
    told = [f"| {line} |" for line in lines]
    replace_between(output, "laplace", "\n".join(["", *told, left_out]))
