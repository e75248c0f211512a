"""Other architectures: do networks agree more on what is coupled, or on what is similar?

The first check that the paper's summary asks for, on the images of experiment 2 and on validation
images of Tiny ImageNet. Each function is one rule of
``workflow/rules/architecture.smk``; lift and correlation with WordNet of each network are those of
:func:`losskernel.experiments.imagenet.analyze.analyze`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from losskernel.errors import TraceError
from losskernel.experiments.claims import measured, write_claims
from losskernel.experiments.imagenet.kernels import FEATURES, feature_kernel, name_of
from losskernel.experiments.imagenet.measures import LEVELS
from losskernel.files import write_csv
from losskernel.kernel.alignment import corrected_cka
from losskernel.kernel.jackknife import jackknife_error
from losskernel.kernel.stored import StoredKernel
from losskernel.progress import bar
from losskernel.semantics.statistics import without_classes

KERNELS, DIFFERENCE, OWN = "kernels", "features less kernels", "kernel and features"
# What the images of each set are called.
IMAGES = {"imagenet": "ImageNet", "tiny_imagenet": "Tiny ImageNet"}


@dataclass(frozen=True)
class _View:
    """A similarity of the inputs: a kernel with its noise, or one that is known exactly.

    Attributes:
        halves: two estimates from disjoint draws, ``(input, input)`` each.
        whole: from all draws.
        left_out: without one group of draws in turn; none of an exact one.
        reliability: of the whole.
    """

    halves: tuple[NDArray, NDArray]
    whole: NDArray
    left_out: tuple[NDArray, ...] = ()
    reliability: float = 1.0

    @classmethod
    def of(cls, kernel: StoredKernel, counted: NDArray) -> _View:
        """Of a kernel, 0 where a pair does not count: ``counted`` is ``(input, input)``."""
        first, second = kernel.halves * counted
        parts = tuple(kernel.left_out * counted)
        return cls((first, second), kernel.r * counted, parts, kernel.reliability[1])


def agreement(
    names: list[str], kernels: list[Path], features: list[Path], settings: dict, output: Path
) -> None:
    """How alike networks are in their kernels and in their features, on the same images.

    CKA without noise, :func:`losskernel.kernel.alignment.corrected_cka`, of pairs of unequal label.
    ``output``: first and
    second network; ``of``: their ``kernels``, their ``features``, ``features less kernels``, or of
    one network (first and second) its ``kernel and features``; value, error_draws (jackknife over
    groups of pairs of either kernel, none of exact features), error_classes (jackknife over parts
    of the classes), null_low and null_high (95 % of permutations of the second's images).

    Args:
        names: of the networks, in the order of both lists of files.
        kernels: one of each network.
        features: penultimate features of the same images.
        settings: permutations, seed.
        output: the table.

    Raises:
        TraceError: a kernel is of other images than the first.
    """
    views: dict[tuple[str, str], _View] = {}
    first = StoredKernel.load(kernels[0])
    images, labels = first.coordinates["name"], first.coordinates["label"]
    counted = labels[:, None] != labels
    for name, kernel_file, feature_file in zip(names, kernels, features, strict=True):
        kernel = StoredKernel.load(kernel_file)
        if not np.array_equal(kernel.coordinates["name"], images):
            raise TraceError(
                f"{kernel_file}: of other images than {kernels[0]}; make both from one folder"
            )
        similarity = feature_kernel(feature_file, images, kernel.attributes["inputs_sha256"])
        similarity = similarity * counted
        views[name, KERNELS] = _View.of(kernel, counted)
        views[name, FEATURES] = _View((similarity, similarity), similarity)
    kept = without_classes(labels, settings["seed"])
    rows = []
    for name in bar(names, "kernels and features", unit="network"):
        pair = views[name, KERNELS], views[name, FEATURES]
        found, _ = _alignment(*pair, kept, settings)
        rows.append({"first": name, "second": name, "of": OWN} | found)
    for one, other in bar(list(combinations(names, 2)), "agreement", unit="pair"):
        parts, between = {}, {"first": one, "second": other}
        for what in (KERNELS, FEATURES):
            found, parts[what] = _alignment(views[one, what], views[other, what], kept, settings)
            rows.append(between | {"of": what} | found)
        excess = {
            "of": DIFFERENCE,
            "value": rows[-1]["value"] - rows[-2]["value"],
            "error_draws": rows[-2]["error_draws"],
            # Paired: the same classes are left out of both.
            "error_classes": jackknife_error(parts[FEATURES] - parts[KERNELS]),
        }
        rows.append(between | excess)
    write_csv(pd.DataFrame(rows), output)


def _alignment(
    one: _View, other: _View, kept: list[NDArray], settings: dict
) -> tuple[dict[str, float], NDArray]:
    """CKA of two views with errors and null, and its values without a part of the classes."""

    def at(keep: NDArray) -> Callable[[NDArray], NDArray]:
        return lambda matrix: matrix[np.ix_(keep, keep)]

    def value(first, second, keep=None) -> float:
        if keep is not None:
            first, second = ([*map(at(keep), halves)] for halves in (first, second))
        return corrected_cka(tuple(first), tuple(second))

    # Of a part of the draws there are no halves: its noise is that of the whole, so that the
    # correction multiplies the error as it does the value.
    scale = np.sqrt(max(one.reliability, 1e-6) * max(other.reliability, 1e-6))
    errors = [
        jackknife_error([value([part] * 2, [fixed.whole] * 2) for part in moved.left_out]) / scale
        for moved, fixed in ((one, other), (other, one))
        if moved.left_out
    ]
    parts = np.array([value(one.halves, other.halves, keep) for keep in kept])
    rng = np.random.default_rng(settings["seed"])
    null = []
    for _ in range(settings["permutations"]):
        moved = at(rng.permutation(len(one.whole)))
        null.append(value(one.halves, [*map(moved, other.halves)]))
    low, high = np.quantile(null, LEVELS)
    found = {
        "value": value(one.halves, other.halves),
        "error_draws": float(np.sqrt(np.sum(np.square(errors)))) if errors else np.nan,
        "error_classes": float(jackknife_error(parts)),
        "null_low": low,
        "null_high": high,
    }
    return found, parts


def kernel_of(facts: pd.DataFrame, gamma: float | None) -> str:
    """What the kernel of a network is called in a table whose first index is ``kernel``.

    Args:
        facts: what :func:`losskernel.experiments.imagenet.analyze.analyze` wrote.
        gamma: where there are several; else there is one beside the features.
    """
    if gamma is not None:
        return name_of(gamma)
    (name,) = set(facts.index.get_level_values("kernel")) - {FEATURES}
    return name


def claims(
    images: str,
    names: list[str],
    headlines: list[Path],
    accuracies: list[Path],
    agreement: Path,
    settings: dict,
    output: Path,
) -> None:
    """A row of each network but the first, such as ``architecture.efficientnet_lite0``.

    Args:
        images: which set, a key of :data:`IMAGES`.
        names: of the networks, that which the others are set beside first.
        headlines: of each, what :func:`losskernel.experiments.imagenet.analyze.analyze`
            wrote.
        accuracies: of each, what :func:`losskernel.experiments.imagenet.sample.evaluate` wrote.
        agreement: what :func:`agreement` wrote.
        settings: gammas by the name of the network, of those with several kernels; claim_neighbors
            and claim_depth.
        output: the rows.
    """
    alike = pd.read_csv(agreement)
    rows, first = {}, {}
    for name, headline, accuracy in zip(names, headlines, accuracies, strict=True):
        facts = pd.read_csv(headline).set_index(["kernel", "statistic"])
        kernel = kernel_of(facts, settings["gammas"].get(name))
        value, best = facts.value[kernel], facts.loc[kernel].loc["correlation"]
        if not first:
            first = {f"that of {name}": best.value, f"error of that of {name}": _error(best)}
            continue
        known = json.loads(accuracy.read_text())
        beside = first | {
            "magnitude |R|": value["correlation of the magnitude"],
            "features": facts.value[FEATURES, "correlation"],
            f"lift of the {settings['claim_neighbors']} nearest at depth "
            f"{settings['claim_depth']}": value["lift"],
            "its error": _error(facts.loc[(kernel, "lift")]),
            "lift of the most opposed": value["lift of the most opposed"],
            "lift, features": facts.value[FEATURES, "lift"],
        }
        for row in alike[(alike["first"] == name) | (alike["second"] == name)].itertuples():
            other = row.second if row.first == name else row.first
            where = "" if other == name else f" with {other}"
            beside[f"CKA{where}, {row.of}"] = row.value
            beside[f"error of CKA{where}, {row.of}"] = _error(row)
        rows[f"architecture.{name}"] = measured(
            best.value,
            _error(best),
            int(value["pairs"]),
            f"as imagenet.spearman; {value['inputs']:.0f} inputs of {IMAGES[images]}, top-1 "
            f"{known['top1']:.3f} of {known['images']}, Gaussian probe "
            f"of all weights at {kernel}, {value['pairs']:.0f} gradient pairs, rise of the mean "
            f"loss {value['rise']:.2f} nats, reliability {value['reliability']:.2f}; spread: "
            "jackknife over draws and over classes; null: permuted classes",
            null=best.null_high,
            beside=beside,
        )
    write_claims(rows, output)


def _error(row) -> float:
    """Over draws, where there are any, and over classes."""
    return float(np.hypot(np.nan_to_num(row.error_draws), row.error_classes))
