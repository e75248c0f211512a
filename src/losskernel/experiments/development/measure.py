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
from losskernel.semantics.trajectory import STATISTICS, Ranking, growth
from losskernel.semantics.wordnet import Hierarchy, coarse_groups

PARTS = ("values", "draws", "classes", "low", "high", "final", "maximum")


@dataclass
class Curves:
    """Statistics of one kernel of one network along its checkpoints; arrays end in (step, depth).

    Attributes:
        steps: of the checkpoints.
        values: by statistic.
        draws, classes: jackknife replicates by statistic, (step, block, depth); no blocks where a
            kernel has no draws.
        networks: the same of a mean over networks, one left out at a time; else no blocks.
        low, high: by statistic, the middle 95 % of the null of permuted classes.
        final, maximum: by statistic, (step, draw, depth): the null of
            :func:`losskernel.semantics.trajectory.growth`, of the last kernel and of the one whose
            mean lift is largest.
    """

    steps: list[int] = field(default_factory=list)
    values: dict[str, list] = field(default_factory=lambda: {name: [] for name in STATISTICS})
    draws: dict[str, list] = field(default_factory=lambda: {name: [] for name in STATISTICS})
    classes: dict[str, list] = field(default_factory=lambda: {name: [] for name in STATISTICS})
    networks: dict[str, list] = field(default_factory=lambda: {name: [] for name in STATISTICS})
    low: dict[str, list] = field(default_factory=lambda: {name: [] for name in STATISTICS})
    high: dict[str, list] = field(default_factory=lambda: {name: [] for name in STATISTICS})
    final: dict[str, list] = field(default_factory=lambda: {name: [] for name in STATISTICS})
    maximum: dict[str, list] = field(default_factory=lambda: {name: [] for name in STATISTICS})


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
            f"{name}/{part}/{statistic}": np.array(
                getattr(curve, part)[statistic],
                np.float32 if part in ("final", "maximum") else np.float64,
            )
            for name, curve in self.curves.items()
            for part in PARTS
            for statistic in STATISTICS
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
                        **{
                            part: {s: list(stored[f"{name}/{part}/{s}"]) for s in STATISTICS}
                            for part in PARTS
                        },
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
        largest = int(np.mean(curve.values["lift"], axis=1).argmax())
        for part, at in (("final", len(checkpoints) - 1), ("maximum", largest)):
            grown = growth(
                checkpoints[at].kernels()[name].r,
                own,
                settings["neighbors"],
                depth,
                depths,
                {statistic: np.array(of) for statistic, of in curve.values.items()},
                settings["growth_draws"],
                numpy_generator(settings["seed"], "resample", 1),
            )
            getattr(curve, part).update({s: list(of) for s, of in grown.items()})
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
    ranking = Ranking.of(kernel.r, labels, k)
    classes = np.arange(len(depth))
    rng = numpy_generator(seed, "resample")
    shuffled = [
        ranking.profile(depth, rng.permutation(classes)[labels], depths)
        for _ in range(settings["permutations"])
    ]
    groups = np.array_split(
        numpy_generator(seed, "order").permutation(len(classes)), settings["class_groups"]
    )
    without_classes = []
    for group in groups:
        keep = ~np.isin(labels, group)
        part = Ranking.of(kernel.r[np.ix_(keep, keep)], labels[keep], k)
        without_classes.append(part.profile(depth, labels[keep], depths))
    without_draws = [
        Ranking.of(r, labels, k).profile(depth, labels, depths) for r in kernel.left_out
    ]
    value = ranking.profile(depth, labels, depths)
    for name in STATISTICS:
        low, high = np.quantile([null[name] for null in shuffled], [0.025, 0.975], axis=0)
        curve.values[name].append(value[name])
        curve.low[name].append(low)
        curve.high[name].append(high)
        curve.draws[name].append([part[name] for part in without_draws])
        curve.classes[name].append([part[name] for part in without_classes])


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
    rule = settings["headline"]["rule"]
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
