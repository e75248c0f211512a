"""The loss kernel of all validation images of Tiny ImageNet, 10,000 of them, 50 a class.

A network of the development experiment at its last checkpoint; each rise of the mean loss is one
rule of ``workflow/rules/scale.smk``. The kernel itself is inputs squared and stays in its journal;
what is written has neither it nor a pixel.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from losskernel.data.tiny_imagenet import load_tiny_imagenet
from losskernel.experiments.development.sample import BLOCK, probed
from losskernel.files import write_npz
from losskernel.gradients.rows import HALVES, WHOLE, KernelRows, kernel_rows
from losskernel.models.features import penultimate_features
from losskernel.sampling.pilot import propose_probe
from losskernel.semantics.color import mean_color


def kernel(
    settings: dict, archive: Path, folder: Path, rise: str, journal: Path, output: Path
) -> None:
    """Neighbors, diagonal, reliability, CKA and within-class pairs of the kernel at one rise.

    ``output`` (npz) has, besides facts of the run: ``label`` (place of the class in the hierarchy),
    ``features`` and ``colors`` of the inputs; ``neighbors_removed`` and ``neighbors_kept`` (without
    and with pairs of equal label) with their distances, ``halves_neighbors`` (without) of either
    half of the pairs; and ``within``, R of the pairs of each class by all pairs of draws and by
    either half, ``(3, class, pair)``; and ``sums``, ``products`` and ``products_of_means``, see
    :func:`_between`. Resumable through ``journal``, which may be deleted after.
    """
    started = time.process_time()
    validation = load_tiny_imagenet(archive, "val", image_size=settings["image_size"])
    problem = probed(settings, archive, folder, settings["step"], validation)
    pilot = propose_probe(
        problem.model,
        problem.data,
        rise=float(rise),
        most_inputs=settings["pilot"]["inputs"],
        directions=settings["pilot"]["directions"],
        seed=settings["seed"],
    )
    found = kernel_rows(
        problem.model,
        problem.data,
        gamma=pilot.probe.gamma,
        pairs=settings["pairs"],
        width=settings["width"],
        seed=settings["seed"],
        journal=journal,
        device=settings["device"],
    )
    labels = problem.coordinates["label"]
    pixels = problem.data[0]
    with torch.inference_mode():
        features = penultimate_features(problem.model, pixels.split(BLOCK)).double().numpy()
    features -= features.mean(axis=0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    k = settings["neighbors"]
    removed, kept = found.neighbors(k, labels), found.neighbors(k)
    halves = [found.neighbors(k, labels, half)[0] for half in HALVES]
    all_pairs, unequal = found.reliability(), found.reliability(labels)
    own_rise, rise_error = found.rise
    facts = {
        "rise": own_rise,
        "rise_error": rise_error,
        "initial_loss": found.initial_losses.mean(dtype=np.float64),
        "gamma": found.gamma,
        "pairs": found.pairs,
        "width": found.width,
        "reliability": all_pairs[1],
        "reliability_unequal": unequal[1],
        "cka_features": found.cka(features),
        "seconds_gradients": found.seconds.sum(),
        # Without what an earlier run of the same journal took for anything but gradients.
        "cpu_seconds": time.process_time() - started,
        "memory_gb": _most_memory() / 1e9,
    }
    write_npz(
        output,
        label=labels,
        features=features.astype(np.float16),
        colors=[mean_color(Image.fromarray(p)) for p in pixels.permute(0, 2, 3, 1).numpy()],
        initial_losses=found.initial_losses,
        self_covariance=found.variances(),
        neighbors_removed=removed[0].astype(np.int32),
        distances_removed=removed[1].astype(np.float32),
        neighbors_kept=kept[0].astype(np.int32),
        distances_kept=kept[1].astype(np.float32),
        halves_neighbors=np.array(halves, np.int32),
        within=np.array([_within(found, labels, of) for of in (WHOLE, *HALVES)], np.float32),
        **_between(found, labels),
        facts=list(facts.values()),
        fact_names=list(facts),
    )


def _within(found: KernelRows, labels: NDArray, of: str) -> NDArray:
    """R of the pairs within each class, ``(class, pair)``; inputs are in the order of classes."""
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    size = len(labels) // len(starts)
    above = np.triu_indices(size, 1)
    return np.array(
        [
            found.correlation(slice(at, at + size), of)[:, at : at + size][above]
            for at in starts.tolist()
        ]
    )


def _between(found: KernelRows, labels: NDArray) -> dict[str, NDArray]:
    """What an analysis of variance of R between classes needs, ``(class, class)`` each.

    ``sums`` (2, class, class) of R over the pairs of two classes, by either half of the draws;
    ``products`` of both halves' R, summed over the same pairs; ``products_of_means`` of both
    halves' mean R of an image with the images of a class, summed over the images of the other.
    """
    member = (np.unique(labels) == labels[:, None]).astype(np.float32)
    sizes = member.sum(axis=0)
    sums = np.zeros((2, len(sizes), len(sizes)))
    products, of_means = np.zeros((2, *sums.shape[1:]))
    for part, first in found.blocks(HALVES[0]):
        halves, own = (first, found.correlation(part, HALVES[1])), member[part].T
        of_images = [rows @ member for rows in halves]
        sums += [own @ of for of in of_images]
        products += own @ ((halves[0] * halves[1]) @ member)
        of_means += own @ (of_images[0] * of_images[1] / sizes**2)
    return {"sums": sums, "products": products, "products_of_means": of_means}


def _most_memory() -> int:
    """The most memory that the process has held, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
