"""Experiment 2 with the data in the probe: the Laplace form of the tempered posterior.

What the isotropic probe of the headline shows, and what remains when n_beta F holds the weights
back along the directions that the data care for. Each function is one rule of
``workflow/rules/imagenet.smk``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq

from losskernel.experiments.imagenet.sample import load, probed_by
from losskernel.files import write_csv
from losskernel.gradients.covariance import gradient_covariance
from losskernel.gradients.laplace import Laplace, fisher_targets
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.kernel.alignment import corrected_cka
from losskernel.kernel.jackknife import jackknife_error
from losskernel.kernel.stored import StoredKernel
from losskernel.progress import bar
from losskernel.semantics.statistics import correlation, with_errors
from losskernel.semantics.wordnet import Hierarchy


def kernel(
    settings: dict,
    gamma: float,
    share: float,
    journal: Path,
    output: Path,
    manifest: Path | None = None,
) -> None:
    """The kernel of ``N(w*, (gamma I + n_beta F)^-1)`` from gradients at pairs of draws; resumable.

    F is the Fisher matrix of the same images, from labels of the model's own. n_beta is such that
    the rise of the mean loss that F predicts, ``tr(Sigma F) / 2``, is a ``share`` of that without
    it, ``tr(F) / (2 gamma)``.
    """
    classifier, images, data = load(settings, manifest)
    model = classifier.model.eval()
    journal.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=journal) as scratch:
        fisher = per_sample_gradients(
            model, fisher_targets(model, data, seed=settings["seed"]), Path(scratch) / "gradients"
        )
        found = gradient_covariance(
            model,
            data,
            gamma=gamma,
            n_beta=n_beta_of(share, Laplace(fisher, gamma, 0.0).eigenvalues, gamma),
            fisher=fisher,
            pairs=settings["pairs"],
            groups=settings["groups"],
            width=settings["width"],
            seed=settings["seed"],
            journal=journal / "pairs",
            device=settings["device"],
        )
    known = probed_by(settings, classifier, images, data) | {"n_beta": found.n_beta}
    coordinates = {"label": images.labels, "wnid": images.wnids, "name": images.names}
    StoredKernel.of(found, coordinates, known).save(output)


def n_beta_of(share: float, eigenvalues: NDArray, gamma: float) -> float:
    """n_beta at which ``sum s / (gamma + n_beta s)`` is a share of ``sum s / gamma``."""

    def excess(log_n_beta: float) -> float:
        kept = eigenvalues / (1 + np.exp(log_n_beta) * eigenvalues / gamma)
        return kept.sum() / eigenvalues.sum() - share

    top = np.log(gamma / eigenvalues.max())
    return float(np.exp(brentq(excess, top - 20, top + 60)))


def measure(
    kernels: list[Path], isotropic: Path, hierarchy: Path, settings: dict, output: Path
) -> None:
    """Rise, agreement with WordNet, and with the probe without the data, at each n_beta.

    ``output``: n_beta, statistic, value, error_draws (jackknife over groups of pairs) and
    error_classes (over parts of the classes). Correlations with WordNet's Wu-Palmer similarity and
    the CKA with the kernel at n_beta = 0, on the same images, are without noise.
    """
    stored = sorted((StoredKernel.load(path) for path in kernels), key=_n_beta)
    first = stored[0].coordinates
    labels, tree = first["label"], Hierarchy.from_file(hierarchy)
    free = StoredKernel.load(isotropic).among(first["name"])
    similarity = tree.wu_palmer[np.ix_(labels, labels)]
    chosen = [
        correlation("correlation", similarity, labels),
        correlation("correlation of the magnitude", similarity, labels, magnitude=True),
    ]
    tables = []
    for kernel in bar([free, *stored], "kernels", unit="kernel"):
        found = with_errors(chosen, kernel.r, kernel, labels, settings["seed"])
        facts = {"rise": kernel.rise[0], "reliability": kernel.reliability[1]}
        facts |= {key: kernel.attributes[key] for key in ("linear_share", "pairs")}
        facts["inputs"] = len(labels)
        rows = pd.DataFrame({"statistic": list(facts), "value": list(facts.values())})
        rows.loc[rows.statistic == "rise", "error_draws"] = kernel.rise[1]
        if kernel is not free:
            scale = np.sqrt(kernel.reliability[1] * free.reliability[1])
            parts = [corrected_cka([r] * 2, [free.r] * 2) / scale for r in kernel.left_out]
            row = {"statistic": "CKA", "value": corrected_cka(kernel.halves, free.halves)}
            row["error_draws"] = jackknife_error(parts)
            rows = pd.concat([rows, pd.DataFrame([row])])
        tables.append(pd.concat([found, rows]).assign(n_beta=_n_beta(kernel)))
    write_csv(pd.concat(tables).drop(columns="parts"), output)


def _n_beta(kernel: StoredKernel) -> float:
    return kernel.attributes.get("n_beta", 0.0)
