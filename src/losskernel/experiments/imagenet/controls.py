"""Controls of experiment 2: where the loss kernel must fail to show semantic structure.

An untrained network of the same architecture, and data with several images a class, on which pairs
of equal label look like structure unless they are removed; and the losses of independent draws,
which must show the kernel that the gradients show. Each function is one rule of
``workflow/rules/imagenet_controls.smk``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from losskernel.data.tiny_imagenet import load_tiny_imagenet
from losskernel.errors import DataError
from losskernel.experiments.imagenet.kernels import FEATURES, LIMIT, feature_kernel
from losskernel.files import atomic_path, write_csv, write_npz
from losskernel.gradients.linear_response import gram
from losskernel.gradients.per_sample import Gradients
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.covariance import covariance, self_covariance
from losskernel.kernel.jackknife import jackknife_error
from losskernel.kernel.neighbors import kernel_distances, neighbors_by_distance
from losskernel.kernel.stored import StoredKernel
from losskernel.progress import bar
from losskernel.semantics.lift import lift_by_k, shuffled_null
from losskernel.semantics.wordnet import Hierarchy
from losskernel.trace import LossTrace

LEVELS = (0.025, 0.975)
SURE = 0.1  # nats


def tiny_images(archive: Path, per_class: int, output: Path) -> None:
    """Tiny ImageNet's validation images, the first of each class, in class folders."""
    images = load_tiny_imagenet(archive, "val", per_class)
    shown = bar(range(len(images)), "write", unit="image")
    for number in shown:
        wnid = images.wnids[int(images.labels[number])]
        pixels = images.pixels[number].permute(1, 2, 0).numpy()
        target = output / wnid / f"{Path(str(images.names[number])).stem}.png"
        with atomic_path(target, sync=False) as temporary:
            Image.fromarray(pixels).save(temporary)


def limit(gradients: Path, output: Path) -> None:
    """Gram matrix of the gradients, its lower triangle row by row: half the size of the matrix."""
    loaded = Gradients.load(gradients)
    matrix = gram(loaded)
    write_npz(
        output,
        triangle=matrix[np.tril_indices(len(matrix))].astype(np.float32),
        inputs_sha256=loaded.inputs_sha256,
        weights_sha256=loaded.weights_sha256,
    )


def measure(
    names: list[str],
    limits: list[Path],
    features: list[Path],
    hierarchy: Path,
    settings: dict,
    output: Path,
) -> None:
    """How semantic each control's neighbors are, with pairs of equal label and without them.

    Writes control, kernel, pairs (of equal label: ``kept`` or ``removed``), statistic, depth, k,
    value, null_low, null_high. Statistics: ``same_label_share`` of the k nearest, kept only;
    ``lift`` of the k nearest. The null permutes labels: of inputs where pairs
    of equal label are kept, of whole classes where they are removed.

    Args:
        names: of the controls, in the order of both lists of files.
        limits: Gram matrices, whole or as :func:`limit` writes them.
        features: features of the same inputs in the same order, whose names tell the classes.
    """
    tree = Hierarchy.from_file(hierarchy)
    tables = []
    files = list(zip(names, limits, features, strict=True))
    for control, limit_file, feature_file in bar(files, "controls", unit="control"):
        with np.load(feature_file) as stored:
            images = stored["name"]
        labels = np.array([tree.wnids.index(str(name).split("/")[0]) for name in images])
        kernels = {
            LIMIT: normalize(_gram(limit_file, len(labels))),
            FEATURES: feature_kernel(feature_file, images, _inputs(limit_file)),
        }
        for kernel, similarity in kernels.items():
            for removed in (False, True):
                rows = _rows(similarity, labels, tree, settings, removed)
                pairs = "removed" if removed else "kept"
                tables.append(rows.assign(control=control, kernel=kernel, pairs=pairs))
    found = pd.concat(tables)
    order = ["control", "kernel", "pairs", "statistic", "depth", "k", "value"]
    with atomic_path(output) as temporary:
        found[[*order, "null_low", "null_high"]].to_csv(temporary, index=False, float_format="%.6g")


def _inputs(path: Path) -> str:
    """Fingerprint of the inputs of a limit."""
    with np.load(path) as stored:
        return str(stored["inputs_sha256"])


def direct_draws(kernels: list[Path], traces: list[Path], settings: dict, output: Path) -> None:
    """Kernels by gradients against the losses of independent draws, at the gammas of both.

    ``output``: gamma, draws, inputs, statistic, value, standard_error. ``slope``: of K by losses on
    K by gradients over pairs of inputs, without noise; ``variance``: sum of the self-covariances by
    losses over that by gradients; both are 1 where the two agree, whatever the number of draws,
    which is not so of R: of losses with heavy tails few draws see another R than many. ``variance,
    sure`` and ``variance, unsure``: median over inputs of the ratio of variances, of losses below
    :data:`SURE` at the trained weights and above. Errors by the jackknife over
    ``settings["jackknife_blocks"]`` blocks of draws; those of the pairs are left out.

    Args:
        kernels: by gradient pairs.
        traces: of :func:`losskernel.experiments.mislabel.probe_time.sample`, of some of the inputs,
            with draws that are not those of the pairs.

    Raises:
        DataError: a trace has images that the kernels have not.
    """
    stored = {kernel.gamma: kernel for kernel in map(StoredKernel.load, kernels)}
    tables = []
    for path in bar(traces, "direct draws", unit="gamma"):
        trace = LossTrace.load(path)
        kernel = stored.get(json.loads(trace.attributes["probe"])["gamma"])
        if kernel is None:
            continue
        first = slice(None, None, int(trace.attributes["labels_per_image"]))  # the given label
        losses, names = trace.losses[..., first], trace.coordinate("name")[first]
        place = {name: at for at, name in enumerate(kernel.coordinates["name"])}
        if missing := sorted(set(names) - set(place)):
            raise DataError(f"{path}: {missing[0]} is no input of the kernels; sample both again")
        chosen = np.array([place[name] for name in names])
        among = np.ix_(chosen, chosen)
        halves = [half[among] for half in kernel.halves]
        variances = kernel.self_covariance[chosen]
        scale = np.sqrt(np.outer(variances, variances))
        sure = kernel.initial_losses[chosen] < SURE

        def agreement(part: NDArray, halves=halves, variances=variances, scale=scale, sure=sure):
            own = self_covariance(part)
            ratio = own / variances
            return np.array(
                [
                    _slope(covariance(part), *(half * scale for half in halves)),
                    own.sum() / variances.sum(),
                    *(np.median(ratio[at]) if at.any() else np.nan for at in (sure, ~sure)),
                ]
            )

        blocks = np.array_split(np.arange(losses.shape[1]), settings["jackknife_blocks"])
        error = jackknife_error([agreement(np.delete(losses, b, axis=1)) for b in blocks])
        tables.append(
            pd.DataFrame(
                {
                    "gamma": kernel.gamma,
                    "draws": losses.shape[1],
                    "inputs": len(names),
                    "statistic": ["slope", "variance", "variance, sure", "variance, unsure"],
                    "value": agreement(losses),
                    "standard_error": error,
                }
            )
        )
    write_csv(pd.concat(tables), output)


def _slope(losses: NDArray, first: NDArray, second: NDArray) -> float:
    """Regression of a kernel on one that is known by two independent estimates."""
    above = np.triu_indices(len(losses), 1)
    y, a, b = (matrix[above] - matrix[above].mean() for matrix in (losses, first, second))
    return float((y @ a + y @ b) / 2 / (a @ b))


def _gram(path: Path, inputs: int) -> np.ndarray:
    with np.load(path) as stored:
        if "gram" in stored:
            matrix = stored["gram"].astype(np.float64)
        else:
            matrix = np.zeros((inputs, inputs))
            lower = np.tril_indices(inputs)
            if len(lower[0]) != len(stored["triangle"]):
                raise DataError(
                    f"{path}: not the triangle of {inputs} inputs; make it and the features of "
                    "the same images"
                )
            matrix[lower] = stored["triangle"]
            matrix = matrix + np.tril(matrix, -1).T
    if len(matrix) != inputs:
        raise DataError(
            f"{path}: a matrix of {len(matrix)} inputs beside features of {inputs}; "
            "make both of the same images"
        )
    return matrix


def _rows(
    similarity: np.ndarray, labels: np.ndarray, tree: Hierarchy, settings: dict, removed: bool
) -> pd.DataFrame:
    depth = tree.lowest_common_hypernym_depth
    depths = np.arange(1, depth.max() + 1)
    ks = settings["lift_neighbors"]
    eligible = len(labels) - np.bincount(labels).max()
    ks = [k for k in ks if k <= min(max(settings["lift_neighbors"]), eligible)]
    graph, _ = neighbors_by_distance(
        kernel_distances(similarity), max(ks), exclude_labels=labels if removed else None
    )
    matrix, classes = (depth, labels) if removed else (depth[np.ix_(labels, labels)], None)

    def statistic(graph, matrix, classes) -> np.ndarray:
        return lift_by_k(graph, matrix, depths, ks, classes)

    value = statistic(graph, matrix, classes)
    null = shuffled_null(
        graph,
        matrix,
        statistic,
        permutations=settings["permutations"],
        seed=settings["seed"],
        labels=classes,
        levels=LEVELS,
    )
    low, high = null.quantiles
    rows = [
        ("lift", at, k, value[i, j], low[i, j], high[i, j])
        for i, k in enumerate(ks)
        for j, at in enumerate(depths)
    ]
    if not removed:
        rng = np.random.default_rng(settings["seed"])
        orders = [rng.permutation(labels) for _ in range(settings["permutations"])]
        for k in ks:
            samples = [_same_label_share(graph[:, :k], order) for order in orders]
            share = _same_label_share(graph[:, :k], labels)
            rows.append(("same_label_share", None, k, share, *np.quantile(samples, LEVELS)))
    return pd.DataFrame(rows, columns=["statistic", "depth", "k", "value", "null_low", "null_high"])


def _same_label_share(graph: np.ndarray, labels: np.ndarray) -> float:
    return float((labels[graph] == labels[:, None]).mean())
