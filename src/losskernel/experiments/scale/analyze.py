"""What the kernel of 10,000 images shows: hierarchy between classes, likeness within them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from losskernel.experiments.claims import measured, write_claims
from losskernel.files import read_npz, write_csv, write_npz
from losskernel.kernel.jackknife import jackknife_error
from losskernel.kernel.maps import umap_embedding
from losskernel.progress import bar
from losskernel.seeds import numpy_generator
from losskernel.semantics.lift import lift, shuffled_null
from losskernel.semantics.wordnet import Hierarchy, coarse_groups

LEVELS = (0.025, 0.975)
# Likenesses of two images of one class, and what is held fixed for a partial correlation.
LIKENESSES = {
    "features": ("features", None),
    "color": ("color", None),
    "loss": ("loss", None),
    "features, loss held": ("features", "loss"),
    "color, features held": ("color", "features"),
}


def measure(
    kernels: list[Path],
    hierarchy: Path,
    settings: dict,
    output: Path,
    output_within: Path,
    output_facts: Path,
    output_maps: Path,
) -> None:
    """Tables and maps from what :func:`losskernel.experiments.scale.sample.kernel` wrote.

    ``output``: rise, depth, pairs (share of class pairs that reach it), lift of the
    ``claim_neighbors`` nearest of another class, error_classes (jackknife over ``class_groups``
    groups of classes), half_0 and half_1 (from either half of the pairs of draws), null_low and
    null_high (classes permuted).
    ``output_within``: rise, likeness, value (rank correlation over the pairs of a class of R with
    the likeness, mean over classes), error_classes (of that mean), null_low and null_high (images
    permuted within their class), reliability (of the rank order of R within a class, by Spearman
    and Brown), corrected (value over the root of it).
    ``output_facts``: rise, fact, value; among them the shares of :func:`_shares` and their errors
    (jackknife over groups of classes). ``output_maps``: maps at the headline with pairs of equal
    label removed and kept, neighbors and self-covariances.
    """
    tree = Hierarchy.from_file(hierarchy)
    lifts, within, facts, arrays = [], [], [], {}
    for path in bar(sorted(kernels, key=lambda path: float(path.stem)), "kernels", unit="kernel"):
        data = read_npz(path)
        rise = float(path.stem)
        lifts.append(_lifts(data, tree, settings).assign(rise=rise))
        within.append(_within(data, settings).assign(rise=rise))
        same = (data["label"][data["neighbors_kept"]] == data["label"][:, None]).mean()
        told = dict(zip(data["fact_names"].tolist(), data["facts"], strict=True))
        told |= {"inputs": len(data["label"]), "same_label_share": same}
        told |= _shares_with_errors(data, settings)
        facts.append(pd.DataFrame({"rise": rise, "fact": list(told), "value": told.values()}))
        for name in ("neighbors_removed", "neighbors_kept"):
            arrays[f"{path.stem}_{name}"] = data[name].astype(np.uint16)
        arrays[f"{path.stem}_self_covariance"] = data["self_covariance"].astype(np.float32)
        if rise == settings["headline"]:
            group, names = coarse_groups(tree)
            arrays |= {"group": group[data["label"]].astype(np.uint8), "group_names": names}
            for which in ("removed", "kept"):
                graph = data[f"neighbors_{which}"], data[f"distances_{which}"]
                arrays[which] = umap_embedding(*graph, seed=settings["seed"]).astype(np.float16)
    write_csv(_ordered(lifts), output)
    write_csv(_ordered(within), output_within)
    write_csv(pd.concat(facts), output_facts)
    write_npz(output_maps, headline=settings["headline"], **arrays)


def _ordered(tables: list[pd.DataFrame]) -> pd.DataFrame:
    table = pd.concat(tables).round(6)
    return table[["rise", *table.columns.drop("rise")]]


def _lifts(data: dict, tree: Hierarchy, settings: dict) -> pd.DataFrame:
    labels, k = data["label"], settings["claim_neighbors"]
    graph, depth = data["neighbors_removed"][:, :k], tree.lowest_common_hypernym_depth
    classes = np.unique(labels)
    apart = ~np.eye(len(classes), dtype=bool)
    among = depth[np.ix_(classes, classes)][apart]
    depths = np.arange(1, among.max() + 1)
    null = shuffled_null(
        graph,
        depth,
        lambda g, m, y: lift(g, m, depths, y),
        permutations=settings["permutations"],
        seed=settings["seed"],
        labels=labels,
    )
    order = numpy_generator(settings["seed"], "order").permutation(classes)
    without = [
        _lift_among(graph, depth, depths, labels, ~np.isin(labels, part))
        for part in np.array_split(order, settings["class_groups"])
    ]
    halves = [lift(half[:, :k], depth, depths, labels) for half in data["halves_neighbors"]]
    return pd.DataFrame(
        {
            "depth": depths,
            "pairs": (among >= depths[:, None]).mean(axis=1),
            "lift": lift(graph, depth, depths, labels),
            "error_classes": jackknife_error(without),
            "half_0": halves[0],
            "half_1": halves[1],
            "null_low": null.quantiles[0],
            "null_high": null.quantiles[1],
        }
    )


def _lift_among(
    graph: NDArray, depth: NDArray, depths: NDArray, labels: NDArray, chosen: NDArray
) -> NDArray:
    """Lift of the edges between chosen inputs, over all pairs of them of unequal label."""
    edges = depth[labels[:, None], labels[graph]][chosen[:, None] & chosen[graph]]
    classes, sizes = np.unique(labels[chosen], return_counts=True)
    weights = np.outer(sizes, sizes) * (1 - np.eye(len(classes)))
    base = [np.average(depth[np.ix_(classes, classes)] >= d, weights=weights) for d in depths]
    share = (edges >= depths[:, None]).mean(axis=1)
    return np.divide(share, base, out=np.full(len(depths), np.nan), where=np.array(base) > 0)


def _shares_with_errors(data: dict, settings: dict) -> dict[str, float]:
    classes = np.unique(data["label"])
    order = numpy_generator(settings["seed"], "order").permutation(len(classes))
    parts = np.array_split(order, settings["class_groups"])
    left_out = [_shares(data, np.setdiff1d(order, part)) for part in parts]
    found = pd.Series(_shares(data, order))
    errors = jackknife_error([list(shares.values()) for shares in left_out])
    return {**found, **dict(zip(found.index + "_error", errors, strict=True))}


def _shares(data: dict, chosen: NDArray) -> dict[str, float]:
    """Parts of the variance of R between chosen classes, without noise.

    R of image i of class A and j of class B is the sum of a mean, ``c(A, B)``, ``a(i, B)``,
    ``a(j, A)`` and ``e(i, j)``, of independent variances: those of the means of a pair of classes,
    of an image with a class, and of R itself are three equations for the three. Variances are
    covariances of the halves of the draws, whose noise is independent.

    ``share_classes``: of c, what the pair of classes explains alone. ``share_image_and_class``: of
    both a. ``share_images``: of e, what two images have in common that their classes have not.
    """
    n = np.unique(data["label"], return_counts=True)[1][0]  # images a class, the same in all
    apart = ~np.eye(len(chosen), dtype=bool)

    def of(name: str) -> NDArray:
        return data[name][..., chosen, :][..., chosen][..., apart]

    first, second = of("sums") / n**2
    mean = first.mean() * second.mean()
    variances = np.array(
        [
            (first * second).mean() - mean,
            of("products_of_means").mean() / n - mean,
            of("products").mean() / n**2 - mean,
        ]
    )
    # of c, a and e in each: means over n images have an n-th of the variance
    weights = np.array([[1, 2 / n, 1 / n**2], [1, 1 + 1 / n, 1 / n], [1, 2, 1]])
    c, a, e = np.linalg.solve(weights, variances) / variances[2]
    return {"share_classes": c, "share_image_and_class": 2 * a, "share_images": e}


def _within(data: dict, settings: dict) -> pd.DataFrame:
    classes, pairs = data["within"].shape[1:]
    size = round((1 + np.sqrt(1 + 8 * pairs)) / 2)
    above = np.triu_indices(size, 1)

    def by_class(name: str) -> NDArray:
        return data[name].astype(np.float64).reshape(classes, size, -1)

    features, colors = by_class("features"), by_class("colors")
    losses = by_class("initial_losses")
    likeness = {
        "features": features @ features.swapaxes(1, 2),
        "color": -np.linalg.norm(colors[:, :, None] - colors[:, None], axis=3),
        "loss": -np.abs(losses - losses.swapaxes(1, 2)),
    }
    ranks = {name: _ranks(values[:, *above]) for name, values in likeness.items()}
    whole, *halves = (_ranks(values) for values in data["within"])
    agreement = (halves[0] * halves[1]).sum(1).mean()
    reliability = 2 * agreement / (1 + agreement)
    rng = numpy_generator(settings["seed"], "resample")
    square = np.zeros((classes, size, size))
    square[:, *above] = whole
    square += square.swapaxes(1, 2)
    everyone = np.arange(classes)[:, None]
    shuffled = []
    for _ in range(settings["permutations"]):
        order = rng.permuted(np.tile(np.arange(size), (classes, 1)), axis=1)
        moved = square[everyone, order[:, above[0]], order[:, above[1]]]
        shuffled.append([np.nanmean(_correlation(moved, ranks, *of)) for of in LIKENESSES.values()])
    low, high = np.quantile(shuffled, LEVELS, axis=0)
    found = np.array([_correlation(whole, ranks, *of) for of in LIKENESSES.values()])
    value = np.nanmean(found, axis=1)
    return pd.DataFrame(
        {
            "likeness": list(LIKENESSES),
            "value": value,
            "error_classes": np.nanstd(found, axis=1, ddof=1) / np.sqrt(classes),
            "null_low": low,
            "null_high": high,
            "reliability": reliability,
            "corrected": value / np.sqrt(reliability) if reliability > 0 else np.nan,
        }
    )


def _ranks(values: NDArray) -> NDArray:
    """Ranks of the pairs of each class ``(class, pair)`` less their mean, of norm 1."""
    ranks = rankdata(values, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.divide(ranks, norm, out=ranks, where=norm > 0)


def _correlation(r: NDArray, ranks: dict[str, NDArray], name: str, held: str | None) -> NDArray:
    """Rank correlation of R with a likeness in each class, partial if another is held fixed."""
    first = (r * ranks[name]).sum(1)
    if held is None:
        return first
    second, between = (r * ranks[held]).sum(1), (ranks[name] * ranks[held]).sum(1)
    rest = (1 - second**2) * (1 - between**2)
    top = first - second * between
    return np.divide(top, np.sqrt(rest), out=np.full(len(rest), np.nan), where=rest > 1e-9)


def claims(lifts: Path, within: Path, facts: Path, settings: dict, output: Path) -> None:
    """Rows of the kernel at the headline's rise."""
    rise, depth = settings["headline"], settings["claim_depth"]
    told = pd.read_csv(facts)
    told = told[told.rise == rise].set_index("fact").value
    at = pd.read_csv(lifts)
    at = at[(at.rise == rise) & (at.depth == depth)].squeeze()
    inside = pd.read_csv(within)
    inside = inside[inside.rise == rise].set_index("likeness")
    scale = (
        f"network {settings['training_seed']} of development (Tiny ImageNet), "
        f"{told['pairs']:.0f} gradient pairs folded into {told['width']:.0f} columns, "
        f"gamma={told['gamma']:.3g}, rise {told['rise']:.2f} nats"
    )
    inputs, features, color = int(told["inputs"]), inside.loc["features"], inside.loc["color"]
    rows = {
        "scale.inputs": measured(inputs, None, inputs, scale),
        "scale.seconds": measured(told["cpu_seconds"], None, inputs, f"{scale}; of one core"),
        "scale.memory_gb": measured(told["memory_gb"], None, inputs, f"{scale}; peak of the run"),
        "scale.lift": measured(
            at.lift,
            at.error_classes,
            inputs,
            f"{scale}; {settings['claim_neighbors']} nearest of another class, depth {depth}; "
            "spread over classes",
            null=at.null_high,
            beside={
                "one half of the draws": at.half_0,
                "the other": at.half_1,
                "share of R's variance by the pair of classes": told["share_classes"],
                "its error": told["share_classes_error"],
                "by an image and the other's class": told["share_image_and_class"],
                "by the two images": told["share_images"],
            },
        ),
        "scale.within_class": measured(
            features.value,
            features.error_classes,
            inputs,
            f"{scale}; features; spread over classes",
            null=features.null_high,
            beside={
                "without noise": features.corrected,
                "with the loss held": inside.loc["features, loss held"].value,
                "likeness of color": color.value,
                "its error": color.error_classes,
                "its null's bound": color.null_high,
            },
        ),
    }
    write_claims(rows, output)
