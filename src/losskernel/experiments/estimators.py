"""How near each estimator of the kernel comes to it, against the seconds of one core.

Losses along a chain of SGLD, losses at independent draws, the same with the linear parts as a
control variate, and gradients at pairs of draws, each at the gamma of one rise of the mean loss.
The measure is the CKA of R, without its diagonal, with a reference of gradient pairs of another
seed, whose own noise is taken out: ``<R, A1 + A2> / 2 / (|R| sqrt(<A1, A2>))`` with A1 and A2 from
either half of it. All have one K as their expectation, but for the bias of Simpson's rule (gradient
pairs, the reference too) and for the loss that holds the chain back (``n_beta = 1``).

Where noise of variance ``nu / n`` over that of the signal is all that parts an estimate of size n
from the kernel, this is ``a = (1 + nu / n)^(-1/2)``, and n takes ``fixed + each n`` seconds: the
lines of the figure, and the seconds that a level asks for, follow by that from the point of the
largest size. It is an approximation: where losses have heavy tails nu grows with n, so that a level
far beyond the largest size takes longer than is said. No estimate is smaller than the smallest run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats
from torch import Tensor, nn

from losskernel.experiments.comparison import replace_between
from losskernel.experiments.imagenet.sample import load
from losskernel.experiments.laplace import arithmetic_network
from losskernel.experiments.style import (
    BLUE,
    GREEN,
    NETWORKS,
    ORANGE,
    PURPLE,
    apply_style,
    save_figure,
)
from losskernel.files import write_csv
from losskernel.gradients.covariance import GradientCovariance, gradient_covariance
from losskernel.gradients.linear_response import gram, linear_part
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.kernel.alignment import corrected_cka
from losskernel.kernel.control_variate import control_variate_kernel, limit_kernel, normalize
from losskernel.kernel.covariance import covariance
from losskernel.sampling.pilot import propose_probe
from losskernel.sampling.probe import Probe
from losskernel.sampling.sample import sample_losses

SGLD, LOSSES, CONTROLLED, PAIRS = (
    "losses, SGLD",
    "losses, independent draws",
    "the same, control variate",
    "gradient pairs",
)
LOOKS = {SGLD: (PURPLE, "^"), LOSSES: (ORANGE, "s"), CONTROLLED: (GREEN, "D"), PAIRS: (BLUE, "o")}
LEVEL = 0.9  # of the CKA, for the table of the page
RELAXATIONS = 3  # of a chain, before its first draw
STEP = 0.3  # eps gamma of a chain; 2 / STEP steps are a relaxation
FEWEST = 8  # draws of an estimate


def measure(settings: dict, network: str, rise: float, output: Path) -> None:
    """CKA with the reference at every size of every estimator, on one network at one rise.

    ``output``: network, target (the rise asked for, in nats), rise (reached, from the independent
    draws), gamma, inputs, estimator, size (draws or pairs of one estimate), seconds (of one core,
    for one estimate), cka, error (standard error of the mean over disjoint estimates of that size),
    estimates (how many).
    """
    own, seed = settings[network], settings["seed"]
    if network == "arithmetic":
        model, _, data = arithmetic_network(own, seed)
    else:
        loading = settings["loading"] | {"max_inputs": own["probe_inputs"]}
        classifier, _, data = load(loading)
        model, network = classifier.model.eval(), loading["model"]
    pilot = propose_probe(model, data, rise=rise, directions=8, parameters="all", seed=seed)
    gamma = pilot.probe.gamma

    def pairs(count: int, seed: int) -> tuple[GradientCovariance, float]:
        start = time.process_time()
        found = gradient_covariance(
            model,
            data,
            gamma=gamma,
            pairs=count,
            parameters="all",
            seed=seed,
            groups=4,
            progress=False,
        )
        return found, time.process_time() - start

    reference = [normalize(half) for half in pairs(own["reference"], seed + 1)[0].halves]
    rows = []

    def row(estimator: str, size: int, seconds: float, kernels: Iterator[np.ndarray]) -> None:
        found = [corrected_cka([r, r], reference) for r in map(normalize, kernels)]
        error = np.std(found, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.nan
        rows.append((estimator, size, seconds, np.mean(found), error, len(found)))

    for size in own["pairs"]:
        repeats = own["pairs"][-1] * 2 // size
        found = [pairs(size, seed + 2 + number) for number in range(repeats)]
        row(PAIRS, size, np.mean([spent for _, spent in found]), (one.kernel for one, _ in found))
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        draws, reached = _losses(model, data, gamma, own, seed, row, Path(scratch))
    facts = {"network": network, "target": rise, "rise": reached, "gamma": gamma}
    facts["inputs"] = draws.shape[1]
    columns = ["estimator", "size", "seconds", "cka", "error", "estimates"]
    table = pd.DataFrame(rows, columns=columns)
    write_csv(pd.concat([pd.DataFrame([facts] * len(table)), table], axis=1), output)


def _losses(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    gamma: float,
    own: dict,
    seed: int,
    row: Callable,
    scratch: Path,
) -> tuple[np.ndarray, float]:
    """Rows of the three estimators made of losses; the independent draws and their rise."""
    common = {"chains": 1, "parameters": "all", "seed": seed, "workers": 1, "progress": False}
    common["draws"] = own["draws"]
    sizes = [FEWEST]
    while 2 * sizes[-1] <= own["draws"] // 2:
        sizes.append(2 * sizes[-1])

    def blocks(size: int) -> list[slice]:
        return [slice(at, at + size) for at in range(0, own["draws"] - size + 1, size)]

    start = time.process_time()
    trace = sample_losses(model, data, Probe(gamma=gamma), **common)
    each, draws = (time.process_time() - start) / own["draws"], trace.losses[0]
    for size in sizes:
        row(LOSSES, size, size * each, (covariance(draws[block]) for block in blocks(size)))
    # The same draws again, this time with their displacements, which cost time to keep.
    start = time.process_time()
    folder = scratch / "gradients"
    gradients = per_sample_gradients(model, data, folder, parameters="all", progress=False)
    known = limit_kernel(gram(gradients, progress=False), Probe(gamma=gamma))
    once, start = time.process_time() - start, time.process_time()
    journal = scratch / "journal"
    kept = {"journal": journal, "displacements": True}
    again = sample_losses(model, data, Probe(gamma=gamma), **common, **kept)
    linear = linear_part(gradients, journal, progress=False)[0]
    each = (time.process_time() - start) / own["draws"]
    for size in sizes:
        kernels = (
            control_variate_kernel(again.losses[0, block], linear[block], known)
            for block in blocks(size)
        )
        row(CONTROLLED, size, once + size * each, kernels)
    burn_in = round(RELAXATIONS * 2 / STEP)
    start = time.process_time()
    chain = sample_losses(
        model,
        data,
        Probe(1.0, gamma, STEP / gamma),
        burn_in=burn_in,
        batch_size=own["batch_size"],
        loss_bound=None,
        **common,
    ).losses[0]
    each = (time.process_time() - start) / (own["draws"] + burn_in)
    for size in sizes:
        kernels = (covariance(chain[block]) for block in blocks(size))
        row(SGLD, size, (burn_in + size) * each, kernels)
    return draws, float(draws.mean(dtype=float) - trace.initial_loss.mean(dtype=float))


class _Law:
    """Seconds and CKA by size, from the rows of one estimator at one setting.

    The error of the CKA is the larger one of the two largest sizes, as two estimates alone tell
    their own spread badly; ``margin`` makes of it a 95 % interval, by Student's t.
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        rows = rows.sort_values("size")
        first, last, tail = rows.iloc[0], rows.iloc[-1], rows.tail(2)
        self.first, self.last, self.cka = first["size"], last["size"], last.cka
        self.error = tail.error.max()
        self.margin = stats.t.ppf(0.975, tail.estimates.max() - 1) * self.error
        self.each = (last.seconds - first.seconds) / max(self.last - self.first, 1)
        self.fixed = last.seconds - self.each * self.last

    def seconds_to(self, level: float, cka: float) -> float:
        """Seconds to a level, if the CKA at the largest size is as given; never below the least."""
        if cka <= 0:
            return np.inf
        size = self.last * max(cka**-2 - 1, 0.0) / (level**-2 - 1)
        return self.fixed + self.each * max(size, self.first)

    def interval(self, level: float) -> np.ndarray:
        """Seconds to a level: most likely, least and most."""
        return np.array([self.seconds_to(level, self.cka + m * self.margin) for m in (0, 1, -1)])


def figure(table: Path, output: Path, output_png: Path) -> None:
    """CKA with the reference against seconds, a panel a network and rise."""
    apply_style()
    rows = pd.read_csv(table)
    networks, rises = rows.network.unique(), np.sort(rows.target.unique())
    page, axes = plt.subplots(
        len(networks),
        len(rises),
        figsize=(3.6 * len(rises), 3.1 * len(networks)),
        sharey=True,
        sharex="row",
        squeeze=False,
    )
    for line, network in zip(axes, networks, strict=True):
        for axis, target in zip(line, rises, strict=True):
            here = rows[(rows.network == network) & (rows.target == target)]
            for name, (color, marker) in LOOKS.items():
                one = here[here.estimator == name]
                bars = {"fmt": marker, "color": color, "ms": 4, "elinewidth": 1}
                axis.errorbar(one.seconds, one.cka, one.error, label=name, **bars)
                law = _Law(one)
                if law.cka > 2 * law.error:  # else it does not stand above its noise
                    beyond = law.last * np.geomspace(1, 1e6, 200)
                    cka = (1 + (law.cka**-2 - 1) * law.last / beyond) ** -0.5
                    axis.plot(law.fixed + law.each * beyond, cka, "--", color=color, lw=0.8)
            axis.axhline(1, color="black", linewidth=0.6)
            axis.set(xscale="log", ylim=(-0.1, 1.08))
            axis.set_title(f"{NETWORKS.get(network, network)}: loss + about {target:g} nats")
        span = rows[rows.network == network].seconds
        line[0].set(xlim=(span.min() / 2, span.max() * 30), ylabel="CKA of R with the reference")
    page.supxlabel(
        "seconds of one core (dashed: extrapolated, where the estimate is above its noise)",
        fontsize="medium",
    )
    handles, names = axes[0, 0].get_legend_handles_labels()
    page.legend(handles, names, ncols=4, frameon=False, loc="outside upper center")
    save_figure(page, output, output_png)


def page(table: Path, output: Path) -> None:
    """Replace the table between the markers of a page by the seconds to a CKA of :data:`LEVEL`."""
    rows = pd.read_csv(table)
    heads = ["network, inputs", "rise asked for (reached), nats", *LOOKS, "draws over pairs"]
    lines = [" | ".join(heads), " | ".join("-" * len(heads))]

    def said(values: Iterable[float]) -> str:
        best, low, high = (f"{float(f'{value:.2g}'):,g}".replace("inf", "∞") for value in values)
        return f"{best} ({low} to {high})"

    for (network, target), here in rows.groupby(["network", "target"]):
        found = {n: _Law(here[here.estimator == n]).interval(LEVEL) for n in LOOKS}
        cells = [f"{network}, {here.inputs.iloc[0]}", f"{target:g} ({here.rise.iloc[0]:.2g})"]
        ratio = found[LOSSES] / found[PAIRS][[0, 2, 1]]
        cells += [said(seconds) for seconds in (*found.values(), ratio)]
        lines.append(" | ".join(cells))
    replace_between(output, "estimators", "\n".join(["", *(f"| {line} |" for line in lines), ""]))
