"""Experiment 2: the map of the inputs and how far each kernel follows the WordNet hierarchy.

Section 4.2 of the paper. Each function is one rule of ``workflow/rules/imagenet.smk``; all read a
trace and what :mod:`losskernel.experiments.imagenet.sample` made beside it, none needs an image.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from losskernel.diagnostics.convergence import convergence, effective_rank
from losskernel.errors import ConfigError
from losskernel.experiments.imagenet.kernels import (
    ALONE,
    LIMIT,
    NULL,
    SAMPLED,
    Sources,
    left_out,
)
from losskernel.experiments.imagenet.measures import (
    LEVELS,
    Measures,
    Rows,
    distances,
    table,
)
from losskernel.files import atomic_path
from losskernel.kernel.alignment import cka
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.covariance import self_covariance
from losskernel.kernel.estimate import Draws
from losskernel.kernel.maps import umap_embedding
from losskernel.kernel.neighbors import neighbors_by_distance
from losskernel.kernel.noise import shifted
from losskernel.pages.document import thumbnails
from losskernel.pages.map import Inputs, View, view, write_map
from losskernel.pages.sources import read_kernel
from losskernel.progress import bar
from losskernel.semantics.lift import region_lift
from losskernel.semantics.wordnet import (
    Hierarchy,
    coarse_groups,
    hierarchy_order,
    subtree_members,
)


def _jackknife_error(values: list) -> np.ndarray:
    """Standard error from delete-one-block values: ``sqrt((b - 1) / b * sum (v - mean v)^2)``."""
    return np.sqrt(len(values) - 1) * np.std(values, axis=0)


def _leave_out(draws: Draws, blocks: int, statistic) -> Rows:
    """Standard error of every row of ``statistic(R)`` by leaving out a part of the draws in turn.

    Not a bootstrap: drawing draws twice lowers their number, and with it every statistic.
    """
    parts = left_out(draws, blocks)
    samples = [statistic(part.r) for part in bar(parts, "jackknife", unit="block")]
    keys = list(samples[0])
    errors = _jackknife_error([[sample[key] for key in keys] for sample in samples])
    return dict(zip(keys, errors.tolist(), strict=True))


def analyze(
    trace: Path,
    features: Path,
    hierarchy: Path,
    settings: dict,
    output: Path,
    output_statistics: Path,
    output_convergence: Path,
    limit: Path | None = None,
) -> None:
    """Every statistic of every kernel, the kernel in hierarchy order, convergence of the trace.

    ``output_statistics``: kernel, statistic, depth, k (neighbors, or clusters), value,
    standard_error (jackknife over draws; exact kernels have none), null_low, null_high
    (95 % of label permutations). With ``limit``, the loss kernel is estimated with the control
    variate; its estimate from the draws alone and the exact limit stand beside it.
    """
    sources, tree = Sources.load(trace, features, limit), Hierarchy.from_file(hierarchy)
    draws, labels = sources.draws, sources.labels
    measures = Measures(
        tree,
        labels,
        sources.features,
        ks=sorted(n for n in settings["lift_neighbors"] if n <= settings["neighbors"]),
        cluster_depths=settings["cluster_depths"],
        graph_neighbors=settings["map_neighbors"],
        seed=settings["seed"],
    )
    estimates = {SAMPLED: draws, ALONE: draws.alone}
    tables = []
    for name, similarity in bar(sources.kernels.items(), "kernels", unit="kernel"):
        error = {}
        if name in estimates:
            error = _leave_out(estimates[name], settings["jackknife_blocks"], measures.values)
        graphs = measures.graphs(similarity)
        null = measures.null(similarity, settings["permutations"], graphs)
        tables.append(table(name, measures.values(similarity, graphs), error, *null))
    null_r = draws.null(settings["seed"])
    tables.append(table(NULL, measures.values(null_r), {}, {}, {}))
    with atomic_path(output_statistics) as temporary:
        pd.concat(tables).to_csv(temporary, index=False, float_format="%.6g")
    _, position = hierarchy_order(tree)
    leaf = np.argsort(position[labels], kind="stable")
    depth = tree.lowest_common_hypernym_depth
    r = sources.kernels[SAMPLED]
    with atomic_path(output) as temporary:
        np.savez_compressed(
            temporary,
            R=r[np.ix_(leaf, leaf)].astype(np.float16),
            hierarchy_depth=depth[np.ix_(labels[leaf], labels[leaf])].astype(np.int8),
            self_covariance=self_covariance(draws.losses),
            summary=json.dumps({"convergence": _summary(sources, null_r, settings["seed"])}),
        )
    with atomic_path(output_convergence) as temporary:
        curves = _convergence_curves(draws, settings["seed"])
        curves.to_csv(temporary, index=False)


def _summary(sources: Sources, null_r: np.ndarray, seed: int) -> dict:
    draws, r = sources.draws, sources.kernels[SAMPLED]
    losses, off = draws.losses, ~np.eye(len(r), dtype=bool)
    checks = convergence(losses)
    found = {
        "noise_floor": float(null_r[off].std()),
        "sd_R": float(r[off].std()),
        "effective_rank": effective_rank(losses),
        "median_ess": float(np.nanmedian(checks.ess)),
        "median_rhat": float(np.nanmedian(checks.rhat)),
        "drift": checks.drift,
        "drift_error": checks.drift_error,
        "initial_loss": float(sources.trace.initial_loss.mean()),
        "mean_loss": float(losses.mean()),
        "chains": losses.shape[0],
        "draws": losses.shape[1],
        "inputs": losses.shape[2],
        "device": sources.trace.attributes["device"],
    }
    if draws.linear is not None:
        alone, limit = sources.kernels[ALONE], sources.kernels[LIMIT]
        found |= {
            "plain_noise_floor": float(draws.alone.null(seed)[off].std()),
            "cka_to_limit": cka(r, limit),
            "plain_cka_to_limit": cka(alone, limit),
            "linear_share": draws.linear_share,
        }
    return found


def _convergence_curves(draws: Draws, seed: int) -> pd.DataFrame:
    """CKA of R against draws: to the final R, between halves of the run, to the exact limit."""
    number = draws.losses.shape[1]
    counts = np.unique(np.geomspace(4, number, 20).astype(int))
    halves = np.unique(np.geomspace(4, max(4, number // 2 - number // 10), 12).astype(int))
    even, odd = draws.halves()
    alone, final = draws.alone, draws.r
    null = Draws(shifted(draws.losses, seed))

    def split(first: Draws, second: Draws) -> list[float]:
        return [cka(first.at(slice(n)).r, second.at(slice(n)).r) for n in halves]

    curves = [
        ("to final", counts, [cka(draws.at(slice(n)).r, final) for n in counts]),
        ("split halves", halves, split(even, odd)),
        (
            "split halves, time-shifted null",
            halves,
            split(*null.halves()),
        ),
    ]
    if draws.known is not None:
        limit = normalize(draws.known)
        curves[2:2] = [
            ("split halves, draws alone", halves, split(even.alone, odd.alone)),
            ("to the exact limit", counts, [cka(draws.at(slice(n)).r, limit) for n in counts]),
            (
                "to the exact limit, draws alone",
                counts,
                [cka(alone.at(slice(n)).r, limit) for n in counts],
            ),
        ]
    return pd.concat(
        pd.DataFrame({"draws": numbers, "cka": values, "kind": kind})
        for kind, numbers, values in curves
    )


def embed(
    trace: Path,
    features: Path,
    hierarchy: Path,
    settings: dict,
    output: Path,
    output_regions: Path,
    limit: Path | None = None,
) -> None:
    """Maps of the inputs by kernel, and how concentrated named regions of the hierarchy are.

    ``output`` (npz): a UMAP in two dimensions of each kernel of ``map_kernels``, of the first also
    in three, and what colors and names them. ``output_regions``: of each kernel and region its
    classes, its lift among the ``map_neighbors`` nearest in the kernel with standard error and
    null, and the same in the plane of the map.
    """
    sources, tree = Sources.load(trace, features, limit), Hierarchy.from_file(hierarchy)
    labels, near, seed = sources.labels, settings["map_neighbors"], settings["seed"]
    names = [name for name in settings["map_kernels"] if name in sources.kernels]
    if not names:
        raise ConfigError(
            f"imagenet.analysis.map_kernels = {settings['map_kernels']}: none is known here; "
            f"choose of {', '.join(sources.kernels)}"
        )
    members = _members(tree, labels, settings["regions"])
    regions = list(settings["regions"])
    maps, tables = {}, []
    for name in bar(names, "maps", unit="map"):
        graph = neighbors_by_distance(distances(sources.kernels[name]), near, exclude_labels=labels)
        maps[name] = umap_embedding(*graph, seed=seed)
        if name == names[0]:
            orbit = umap_embedding(*graph, n_components=3, seed=seed)
        plane = _plane_neighbors(maps[name], near, labels)
        error = [np.nan] * len(regions)
        estimate = {SAMPLED: sources.draws, ALONE: sources.draws.alone}.get(name)
        if estimate is not None:

            def lifts(r: np.ndarray) -> Rows:
                nearest, _ = neighbors_by_distance(distances(r), near, exclude_labels=labels)
                found = region_lift(nearest, members, labels)
                return {(region, None, near): x for region, x in zip(regions, found, strict=True)}

            error = list(_leave_out(estimate, settings["jackknife_blocks"], lifts).values())
        low, high = _region_null(graph[0], members, labels, settings["permutations"], seed)
        plane_low, plane_high = _region_null(plane, members, labels, settings["permutations"], seed)
        tables.append(
            pd.DataFrame(
                {
                    "kernel": name,
                    "region": regions,
                    "classes": [len(np.unique(labels[inside])) for inside in members.T],
                    "k": near,
                    "lift": region_lift(graph[0], members, labels),
                    "standard_error": error,
                    "null_low": low,
                    "null_high": high,
                    "map_lift": region_lift(plane, members, labels),
                    "map_null_low": plane_low,
                    "map_null_high": plane_high,
                }
            )
        )
    with atomic_path(output_regions) as temporary:
        pd.concat(tables).to_csv(temporary, index=False, float_format="%.6g")
    _, position = hierarchy_order(tree)
    group, group_names = coarse_groups(tree)
    losses = sources.draws.losses
    with atomic_path(output) as temporary:
        np.savez_compressed(
            temporary,
            kernels=np.array(names),
            embeddings=np.stack([maps[name] for name in names]),
            orbit=orbit,
            regions=np.array(regions),
            members=members,
            label=labels,
            class_name=np.array(tree.names)[labels],
            position=position[labels],
            group=group[labels],
            group_names=np.array(group_names),
            name=sources.trace.coordinate("name"),
            chains=losses.shape[0],
            draws=losses.shape[1],
        )


def browse(
    trace: Path,
    features: Path,
    hierarchy: Path,
    settings: dict,
    output: Path,
    limit: Path | None = None,
    images: Path | None = None,
    kernels: list[str] | None = None,
) -> None:
    """The maps as one page for the browser; with ``images``, small copies of them are in it.

    ``kernels`` are further ones, as NAME=FILE; see :func:`losskernel.pages.sources.read_kernel`.
    """
    sources, tree = Sources.load(trace, features, limit), Hierarchy.from_file(hierarchy)
    labels, names = sources.labels, sources.trace.coordinate("name").astype(str)
    sampled = self_covariance(sources.draws.losses)
    variances = {SAMPLED: sampled, ALONE: sampled}
    if sources.draws.known is not None:
        variances[LIMIT] = np.diag(sources.draws.known)
    shown = [
        (name, [(slice(None), r)], variances.get(name))
        for name, r in sources.kernels.items()
        if name in settings["map_kernels"]
    ]
    for text in kernels or []:
        file = read_kernel(text)
        file.match(names)
        shown.append((file.name, file.blocks(), file.self_covariance))
    views: list[View] = []
    for name, blocks, variance in bar(shown, "maps", unit="map"):
        first = views[0] if views else None
        near, seed = settings["map_neighbors"], settings["seed"]
        views.append(view(name, blocks, labels, near, seed, variance, first))
    loss = sources.trace.initial_loss.astype(float)
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


def _plane_neighbors(points: np.ndarray, k: int, labels: np.ndarray) -> np.ndarray:
    return neighbors_by_distance(cdist(points, points), k, exclude_labels=labels)[0]


def _region_null(graph, members, labels, permutations: int, seed: int) -> np.ndarray:
    """(2, region) quantiles of the lift of regions whose classes are drawn at random."""
    present, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rng = np.random.default_rng(seed)
    samples = [
        region_lift(graph, members[first][rng.permutation(len(present))][inverse], labels)
        for _ in range(permutations)
    ]
    return np.quantile(samples, LEVELS, axis=0)
