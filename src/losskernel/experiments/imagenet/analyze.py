"""Experiment 2: the map of the inputs and how far each kernel follows the WordNet hierarchy.

Section 4.2 of the paper. Each function is one rule of ``workflow/rules/imagenet.smk``; all read
kernels and what :mod:`losskernel.experiments.imagenet.sample` made beside them, none needs an
image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from losskernel.experiments.imagenet.kernels import LIMIT, Sources, name_of
from losskernel.experiments.imagenet.measures import LEVELS, Measures, Rows, distances, table
from losskernel.files import write_csv, write_npz
from losskernel.kernel.jackknife import jackknife_error
from losskernel.kernel.maps import umap_embedding
from losskernel.kernel.neighbors import neighbors_by_distance
from losskernel.pages.document import thumbnails
from losskernel.pages.map import Inputs, View, view, write_map
from losskernel.progress import bar
from losskernel.semantics.lift import region_lift
from losskernel.semantics.statistics import Statistic, correlation, depth_lift, with_errors
from losskernel.semantics.wordnet import Hierarchy, coarse_groups, hierarchy_order, subtree_members


def analyze(
    kernels: list[Path],
    features: Path,
    hierarchy: Path,
    settings: dict,
    output: Path,
    output_statistics: Path,
    output_headline: Path,
    limit: Path | None = None,
) -> None:
    """Every statistic of every kernel, and the kernel of the headline in hierarchy order.

    ``output_statistics``: kernel, statistic, depth, k (neighbors, or clusters), value,
    standard_error (jackknife over draws; exact kernels have none), null_low, null_high (95 % of
    permutations of the classes). ``output_headline``: the few statistics behind the claims with
    their errors over draws and over classes, and what is known of each kernel.
    """
    sources = Sources.load(kernels, features, limit, settings["headline"])
    tree, labels = Hierarchy.from_file(hierarchy), sources.labels
    measures = Measures(
        tree,
        labels,
        ks=settings["lift_neighbors"],
        cluster_depths=settings["cluster_depths"],
        graph_neighbors=settings["map_neighbors"],
        seed=settings["seed"],
    )
    without_clusters = replace(measures, cluster_depths=())
    tables = []
    for name, similarity in bar(sources.kernels.items(), "kernels", unit="kernel"):
        graphs = measures.graphs(similarity)
        null = measures.null(similarity, settings["permutations"], graphs)
        error: Rows = {}
        if (kernel := sources.at(name)) is not None:
            keys = list(without_clusters.values(similarity))
            errors = kernel.error(lambda r: list(without_clusters.values(r).values()))
            error = dict(zip(keys, errors.tolist(), strict=True))
        tables.append(table(name, measures.values(similarity, graphs), error, *null))
    write_csv(pd.concat(tables), output_statistics)
    write_csv(_headline(sources, tree, settings), output_headline)
    _, position = hierarchy_order(tree)
    leaf = np.argsort(position[labels], kind="stable")
    depth = tree.lowest_common_hypernym_depth
    write_npz(
        output,
        R=sources.main.r[np.ix_(leaf, leaf)].astype(np.float16),
        hierarchy_depth=depth[np.ix_(labels[leaf], labels[leaf])].astype(np.int8),
        gamma=sources.headline,
        reliability=sources.main.reliability[1],
    )


def _headline(sources: Sources, tree: Hierarchy, settings: dict) -> pd.DataFrame:
    """Statistics behind the claims: kernel, statistic, value, error_draws, error_classes, null."""
    tables, claimed = [], _claimed(sources.labels, tree, settings)
    for name, r in sources.kernels.items():
        kernel = sources.at(name)
        found = with_errors(claimed, r, kernel, sources.labels, settings["seed"])
        chosen = found.statistic == "correlation"
        halves = [r, r] if kernel is None else kernel.halves
        null = np.quantile(relabeled(r, halves, sources.labels, tree, settings), LEVELS)
        found.loc[chosen, ["null_low", "null_high"]] = null
        tables.append(found.assign(kernel=name))
        if kernel is not None:
            facts = {
                "reliability of a half": kernel.reliability[0],
                "reliability": kernel.reliability[1],
                "rise": kernel.rise[0],
                "inputs": len(r),
                "pairs": kernel.attributes["pairs"],
                "linear share": kernel.attributes["linear_share"],
            }
            rows = pd.DataFrame({"statistic": list(facts), "value": list(facts.values())})
            rows.loc[rows.statistic == "rise", "error_draws"] = kernel.rise[1]
            tables.append(rows.assign(kernel=name))
    if LIMIT in sources.kernels:
        first, second = (
            table.set_index("statistic").loc["correlation"]
            for table in tables
            if table.kernel.iloc[0] in (name_of(sources.headline), LIMIT)
            and "correlation" in set(table.statistic)
        )
        row = {
            "kernel": name_of(sources.headline),
            "statistic": "signed excess",
            "value": first.value - second.value,
            "error_draws": first.error_draws,
            # Paired: the same classes are left out of both.
            "error_classes": jackknife_error(np.array(first.parts) - np.array(second.parts)),
        }
        tables.append(pd.DataFrame([row]))
    return pd.concat(tables).drop(columns="parts")


def _claimed(labels: NDArray, tree: Hierarchy, settings: dict) -> list[Statistic]:
    """Correlation with WordNet without noise, and lift at one depth and k, which noise lowers."""
    similarity = tree.wu_palmer[np.ix_(labels, labels)]
    k, depth = settings["claim_neighbors"], settings["claim_depth"]
    return [
        correlation("correlation", similarity, labels),
        correlation("correlation of the magnitude", similarity, labels, magnitude=True),
        depth_lift("lift", tree, labels, k, depth),
        depth_lift("lift of the most opposed", tree, labels, k, depth, opposed=True),
    ]


def relabeled(
    r: NDArray, halves: Sequence[NDArray], labels: NDArray, tree: Hierarchy, settings: dict
) -> list[float]:
    """The correlation with WordNet without noise, each time with whole classes traded at random.

    Pairs of inputs are not independent, so that the null is that of permuted classes (Mantel 1967).
    """
    present, inverse = np.unique(labels, return_inverse=True)
    rng, everyone = np.random.default_rng(settings["seed"]), np.arange(len(labels))
    samples = []
    for _ in range(settings["permutations"]):
        at = rng.permutation(present)[inverse]
        traded = correlation("", tree.wu_palmer[np.ix_(at, at)], labels)
        samples.append(traded.of(r, halves, everyone))
    return samples


def embed(
    kernels: list[Path],
    features: Path,
    hierarchy: Path,
    settings: dict,
    output: Path,
    output_regions: Path,
    limit: Path | None = None,
) -> None:
    """Maps of the inputs by kernel, and how concentrated named regions of the hierarchy are.

    ``output`` (npz): a UMAP in two dimensions of each kernel, and what colors and names them.
    ``output_regions``: of each kernel and region its classes and its lift among the
    ``map_neighbors`` nearest in the kernel, with standard error and null.
    """
    sources = Sources.load(kernels, features, limit, settings["headline"])
    tree, labels = Hierarchy.from_file(hierarchy), sources.labels
    near, seed = settings["map_neighbors"], settings["seed"]
    members = _members(tree, labels, settings["regions"])
    regions = list(settings["regions"])
    maps, tables = {}, []
    for name, r in bar(sources.kernels.items(), "maps", unit="map"):
        graph = neighbors_by_distance(distances(r), near, exclude_labels=labels)
        maps[name] = umap_embedding(*graph, seed=seed)

        def lifts(part: NDArray) -> NDArray:
            nearest, _ = neighbors_by_distance(distances(part), near, exclude_labels=labels)
            return region_lift(nearest, members, labels)

        kernel = sources.at(name)
        low, high = _region_null(graph[0], members, labels, settings["permutations"], seed)
        tables.append(
            pd.DataFrame(
                {
                    "kernel": name,
                    "region": regions,
                    "classes": [len(np.unique(labels[inside])) for inside in members.T],
                    "k": near,
                    "lift": region_lift(graph[0], members, labels),
                    "standard_error": np.nan if kernel is None else kernel.error(lifts),
                    "null_low": low,
                    "null_high": high,
                }
            )
        )
    write_csv(pd.concat(tables), output_regions)
    group, group_names = coarse_groups(tree)
    write_npz(
        output,
        kernels=np.array(list(maps)),
        embeddings=np.stack(list(maps.values())),
        label=labels,
        class_name=np.array(tree.names)[labels],
        group=group[labels],
        group_names=np.array(group_names),
        name=sources.names,
        headline=name_of(sources.headline),
    )


def browse(
    kernels: list[Path],
    features: Path,
    hierarchy: Path,
    settings: dict,
    output: Path,
    limit: Path | None = None,
    images: Path | None = None,
) -> None:
    """The maps as one page for the browser; with ``images``, small copies of them are in it."""
    sources = Sources.load(kernels, features, limit, settings["headline"])
    tree, labels, names = Hierarchy.from_file(hierarchy), sources.labels, sources.names.astype(str)
    views: list[View] = []
    for name, r in bar(sources.kernels.items(), "maps", unit="map"):
        first, variance = views[0] if views else None, sources.variances.get(name)
        near, seed = settings["map_neighbors"], settings["seed"]
        views.append(view(name, [(slice(None), r)], labels, near, seed, variance, first))
    loss = sources.main.initial_losses.astype(float)
    write_map(
        Inputs(names, np.array(tree.names)[labels], loss, tree, labels),
        views,
        output,
        thumbnails=None if images is None else thumbnails(images, names, 64),
        title="ImageNet by the loss kernel of a classifier",
        note=f"{len(names)} images. Near on the map is similar by the kernel; images of equal "
        "label are no neighbors of each other.",
    )


def _members(tree: Hierarchy, labels: np.ndarray, regions: dict) -> np.ndarray:
    """(input, region) whether the class of an input lies under a synset of the region."""
    inside = [
        np.isin(labels, np.concatenate([subtree_members(tree, synset) for synset in synsets]))
        for synsets in regions.values()
    ]
    return np.stack(inside, axis=1)


def _region_null(graph, members, labels, permutations: int, seed: int) -> np.ndarray:
    """(2, region) quantiles of the lift of regions whose classes are drawn at random."""
    present, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rng = np.random.default_rng(seed)
    samples = [
        region_lift(graph, members[first][rng.permutation(len(present))][inverse], labels)
        for _ in range(permutations)
    ]
    return np.quantile(samples, LEVELS, axis=0)
