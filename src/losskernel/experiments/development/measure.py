"""Experiment 5, one network: how far its kernels follow the hierarchy at every checkpoint.

Each function is one rule of ``workflow/rules/development.smk``; none needs images.

Standard errors are of two kinds, both by jackknife: over groups of pairs of draws, and over groups
of classes. What is left out is the same at all checkpoints, so that the errors of what is derived
from whole curves, the order of the depths, are had in the same way
(:mod:`losskernel.experiments.development.analyze`).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from losskernel.errors import DataError, TraceError
from losskernel.experiments.development.kernels import (
    SAMPLED,
    Checkpoint,
    Kernel,
    read_network,
)
from losskernel.files import atomic_path, write_npz
from losskernel.kernel.maps import umap_embedding
from losskernel.kernel.neighbors import kernel_distances, neighbors_by_distance
from losskernel.progress import bar
from losskernel.seeds import numpy_generator
from losskernel.semantics.lift import lift
from losskernel.semantics.trajectory import growth, nearest_lift
from losskernel.semantics.wordnet import Hierarchy, coarse_groups

PARTS = ("values", "draws", "classes", "low", "high", "final", "maximum")


@dataclass
class Curves:
    """Lift by one kernel of one network along its checkpoints; arrays end in (step, depth).

    Attributes:
        steps: of the checkpoints.
        values: the lift.
        draws, classes: jackknife replicates, (step, block, depth); no blocks where a kernel has no
            draws.
        networks: the same of a mean over networks, one left out at a time; else no blocks.
        low, high: the middle 95 % of the null of permuted classes.
        final, maximum: (step, draw, depth), the null of
            :func:`losskernel.semantics.trajectory.growth`, of the last kernel and of the one whose
            mean lift is largest.
    """

    steps: list[int] = field(default_factory=list)
    values: list = field(default_factory=list)
    draws: list = field(default_factory=list)
    classes: list = field(default_factory=list)
    networks: list = field(default_factory=list)
    low: list = field(default_factory=list)
    high: list = field(default_factory=list)
    final: list = field(default_factory=list)
    maximum: list = field(default_factory=list)


@dataclass
class Measured:
    """All that the analysis reads of one network.

    Attributes:
        network: its name.
        inputs: names of the probe inputs, ``(input,)``.
        settings: that it was measured with.
        depths: of the hierarchy.
        curves: by kernel.
        facts: rows of what is known of a checkpoint beside its curves.
    """

    network: str
    inputs: np.ndarray
    settings: dict
    depths: list[int]
    curves: dict[str, Curves]
    facts: list[dict]

    def save(self, path: Path) -> None:
        """Write an archive of NumPy arrays."""
        arrays = {
            # Draws of the null are many, and need few digits.
            f"{name}/{part}/lift": np.array(
                getattr(curve, part), np.float32 if part in ("final", "maximum") else np.float64
            )
            for name, curve in self.curves.items()
            for part in PARTS
        }
        about = {
            "network": self.network,
            "settings": self.settings,
            "depths": self.depths,
            "kernels": list(self.curves),
            "steps": next(iter(self.curves.values())).steps,
            "facts": self.facts,
        }
        write_npz(path, about=json.dumps(about), inputs=self.inputs, **arrays)

    @classmethod
    def load(cls, path: Path) -> Measured:
        """Read what :meth:`save` wrote.

        Raises:
            TraceError: the file is not one of those.
        """
        try:
            with np.load(path) as stored:
                about = json.loads(str(stored["about"]))
                curves = {
                    name: Curves(
                        about["steps"],
                        **{part: list(stored[f"{name}/{part}/lift"]) for part in PARTS},
                    )
                    for name in about["kernels"]
                }
                known = about["network"], stored["inputs"], about["settings"], about["depths"]
                return cls(*known, curves, about["facts"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise TraceError(
                f"{path}: not the measured curves of a network ({error}); delete it and measure "
                "again"
            ) from error


def measure(
    states: list[Path], kernels: list[Path], hierarchy: Path, settings: dict, output: Path
) -> None:
    """Agreement of every kernel of a network with the hierarchy, with what its errors need.

    ``output`` is read by :func:`losskernel.experiments.development.analyze.analyze`.

    Raises:
        DataError: a class is not in the hierarchy.
        TraceError: as :func:`losskernel.experiments.development.kernels.read_network`.
    """
    tree = Hierarchy.from_file(hierarchy)
    checkpoints = read_network(states, kernels)
    labels = _labels(tree, hierarchy, checkpoints[0])
    present, own = np.unique(labels, return_inverse=True)
    depth = tree.lowest_common_hypernym_depth[np.ix_(present, present)]
    depths = _depths(depth, settings["class_pairs"])
    names = checkpoints[0].of_inputs("name")
    found = Measured(checkpoints[0].network, names, settings, depths, {}, [])
    for checkpoint in bar(checkpoints, "checkpoints", unit="checkpoint"):
        found.facts += checkpoint.facts()
        for name, kernel in checkpoint.kernels().items():
            curve = found.curves.setdefault(name, Curves())
            curve.steps.append(checkpoint.step)
            _measure(curve, kernel, depth, own, depths, settings)
    for name, curve in bar(list(found.curves.items()), "growth alone", unit="kernel"):
        largest = int(np.mean(curve.values, axis=1).argmax())
        for part, at in (("final", len(checkpoints) - 1), ("maximum", largest)):
            grown = growth(
                checkpoints[at].kernels()[name].r,
                own,
                settings["neighbors"],
                depth,
                depths,
                np.array(curve.values),
                settings["growth_draws"],
                numpy_generator(settings["seed"], "resample", 1),
            )
            setattr(curve, part, list(grown))
    found.save(output)


def _labels(tree: Hierarchy, path: Path, checkpoint: Checkpoint) -> np.ndarray:
    """Class of each probe input, as a row of the hierarchy's matrices."""
    position = {wnid: i for i, wnid in enumerate(tree.wnids)}
    wnids = checkpoint.of_inputs("wnid")
    unknown = sorted(set(wnids) - position.keys())
    if unknown:
        raise DataError(f"{path}: has no class {unknown[0]}; make it of the data's classes")
    return np.array([position[wnid] for wnid in wnids])


def _depths(class_depth: np.ndarray, fewest: int) -> list[int]:
    """Depths that divide the pairs of classes, with at least some pairs on either side."""
    common = class_depth[np.triu_indices(len(class_depth), 1)]
    chosen = [
        depth
        for depth in range(1, int(common.max()) + 1)
        if fewest <= (common >= depth).sum() <= len(common) - fewest
    ]
    if not chosen:
        raise DataError(f"no depth has {fewest} pairs of classes on either side; lower class_pairs")
    return chosen


def _measure(
    curve: Curves,
    kernel: Kernel,
    depth: np.ndarray,
    labels: np.ndarray,
    depths: Sequence[int],
    settings: dict,
) -> None:
    """Add one checkpoint to the curves of a kernel; ``labels`` are rows of ``depth``, all used."""
    k, seed = settings["neighbors"], settings["seed"]
    classes = np.arange(len(depth))
    rng = numpy_generator(seed, "resample")
    graph, _ = neighbors_by_distance(kernel_distances(kernel.r), k, exclude_labels=labels)
    shuffled = [
        lift(graph, depth, np.asarray(depths), rng.permutation(classes)[labels])
        for _ in range(settings["permutations"])
    ]
    groups = np.array_split(
        numpy_generator(seed, "order").permutation(len(classes)), settings["class_groups"]
    )
    without_classes = []
    for group in groups:
        keep = ~np.isin(labels, group)
        part = kernel.r[np.ix_(keep, keep)]
        without_classes.append(nearest_lift(part, labels[keep], k, depth, depths))
    low, high = np.quantile(shuffled, [0.025, 0.975], axis=0)
    curve.values.append(lift(graph, depth, np.asarray(depths), labels))
    curve.low.append(low)
    curve.high.append(high)
    curve.draws.append([nearest_lift(r, labels, k, depth, depths) for r in kernel.left_out])
    curve.classes.append(without_classes)


def maps(
    states: list[Path], kernels: list[Path], hierarchy: Path, settings: dict, output: Path
) -> None:
    """UMAPs (step, input, 2) of a network along its training, each begun at the one before.

    Raises:
        DataError, TraceError: as :func:`measure`.
    """
    tree = Hierarchy.from_file(hierarchy)
    checkpoints = read_network(states, kernels)
    labels = _labels(tree, hierarchy, checkpoints[0])
    rule = settings["headline"]
    found: list[np.ndarray] = []
    for checkpoint in bar(checkpoints, "maps", unit="map"):
        graph = neighbors_by_distance(
            kernel_distances(checkpoint.stored[rule].r),
            settings["map_neighbors"],
            exclude_labels=labels,
        )
        found.append(
            umap_embedding(
                *graph,
                seed=settings["seed"],
                n_epochs=settings["map_epochs"],
                init=found[-1] if found else None,
            )
        )
    group, group_names = coarse_groups(tree)
    with atomic_path(output) as temporary:
        np.savez_compressed(
            temporary,
            steps=np.array([c.step for c in checkpoints]),
            top1=np.array([json.loads(str(c.state["accuracy"]))["top1"] for c in checkpoints]),
            kernel=SAMPLED[rule],
            maps=np.stack(found).astype(np.float32),
            group=group[labels],
            group_names=np.array(group_names),
        )
