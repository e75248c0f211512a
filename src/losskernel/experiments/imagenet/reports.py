"""Experiment 2 in words and tables: neighbors of named images, and the claims.

Each function is one rule of ``workflow/rules/imagenet.smk``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.errors import ConfigError
from losskernel.experiments.claims import measured, write_claims
from losskernel.experiments.imagenet.kernels import Sources, name_of
from losskernel.experiments.imagenet.measures import distances
from losskernel.files import atomic_path, write_csv
from losskernel.kernel.neighbors import neighbors_by_distance
from losskernel.semantics.lift import mean_pair_depth
from losskernel.semantics.wordnet import Hierarchy, lowest_common_hypernym

NEIGHBOR_COLUMNS = (
    "class",
    "image",
    "kernel",
    "direction",
    "rank",
    "neighbor_class",
    "neighbor",
    "similarity",
    "common_hypernym",
    "common_hypernym_depth",
)


def neighbors(
    kernels: list[Path],
    features: Path,
    hierarchy: Path,
    settings: dict,
    output: Path,
    output_markdown: Path,
    limit: Path | None = None,
) -> None:
    """Nearest and most opposed inputs of the images of chosen classes, by each kernel of the map.

    Classes that no input has are left out.

    Raises:
        ConfigError: a chosen class is not in the hierarchy.
    """
    sources = Sources.load(kernels, features, limit, settings["headline"])
    tree = Hierarchy.from_file(hierarchy)
    unknown = sorted(set(settings["named_classes"]) - set(tree.names))
    if unknown:
        raise ConfigError(
            f"imagenet.analysis.named_classes: '{unknown[0]}' is no class; see the names of "
            f"{hierarchy}"
        )
    labels, count = sources.labels, settings["named_neighbors"]
    image = sources.names
    depth = tree.lowest_common_hypernym_depth
    rows = []
    for kernel, similarity in sources.kernels.items():
        graphs = {
            "nearest": neighbors_by_distance(distances(similarity), count, labels)[0],
            "opposed": neighbors_by_distance(similarity - similarity.min(), count, labels)[0],
        }
        for name in settings["named_classes"]:
            for i in np.flatnonzero(labels == tree.names.index(name))[:1]:
                for direction, graph in graphs.items():
                    for rank, j in enumerate(graph[i], 1):
                        a, b = labels[i], labels[j]
                        rows.append(
                            {
                                "class": name,
                                "image": image[i],
                                "kernel": kernel,
                                "direction": direction,
                                "rank": rank,
                                "neighbor_class": tree.names[b],
                                "neighbor": image[j],
                                "similarity": similarity[i, j],
                                "common_hypernym": lowest_common_hypernym(tree, a, b),
                                "common_hypernym_depth": depth[a, b],
                            }
                        )
    found = pd.DataFrame(rows, columns=NEIGHBOR_COLUMNS)
    write_csv(found, output, "%.6g")
    with atomic_path(output_markdown) as temporary:
        temporary.write_text(_neighbors_markdown(found, mean_pair_depth(depth, labels)))


def _neighbors_markdown(found: pd.DataFrame, chance: float) -> str:
    """A row a class, a column a kernel; in parentheses the depth of the common hypernym."""
    found = found[found.direction == "nearest"]
    kernels = list(found.kernel.unique())
    lines = [
        "# Nearest neighbors of named images",
        "",
        "In parentheses the depth of the lowest common hypernym with the image's class; two "
        f"classes drawn at random share one of depth {chance:.2f} on average.",
        "",
        "| " + " | ".join(["image", *kernels]) + " |",
        "| " + " | ".join("-" for _ in range(len(kernels) + 1)) + " |",
    ]
    for name, rows in found.groupby("class", sort=False):
        cells = [
            ", ".join(
                f"{row.neighbor_class} ({row.common_hypernym_depth})"
                for row in rows[rows.kernel == kernel].itertuples()
            )
            for kernel in kernels
        ]
        lines.append(f"| **{name}** | " + " | ".join(cells) + " |")
    means = found.groupby("kernel", sort=False).common_hypernym_depth.mean()
    lines.append("| mean depth | " + " | ".join(f"{value:.2f}" for value in means) + " |")
    return "\n".join(lines) + "\n"


def claims(
    statistics: Path,
    headline: Path,
    regions: Path,
    settings: dict,
    output: Path,
    direct: Path | None = None,
    tempered: Path | None = None,
) -> None:
    """Rows of the comparison with the paper, of the kernel at the headline's localization.

    ``direct`` is what :func:`losskernel.experiments.imagenet.controls.direct_draws` found,
    ``tempered`` what :func:`losskernel.experiments.imagenet.tempered.measure` did.
    """
    table, where, best = (pd.read_csv(path) for path in (statistics, regions, headline))
    k, depth, name = settings["claim_neighbors"], settings["claim_depth"], settings["headline"]
    name = name_of(name)
    facts = best[best.kernel == name].set_index("statistic")
    value = facts.value
    scale = (
        f"{value['inputs']:.0f} inputs, {settings['model']}, Gaussian probe of all weights at "
        f"{name}, {value['pairs']:.0f} gradient pairs, rise of the mean loss {value['rise']:.2f} "
        f"nats, reliability {value['reliability']:.2f}"
    )
    at = table[(table.k == k) & (table.depth == depth)].set_index(["statistic", "kernel"])
    null = at.null_high.loc[("lift", name)]
    region = where[where.kernel == name]
    dense = region[region.lift > region.null_high].region

    def error(statistic: str) -> float:
        row = facts.loc[statistic]
        return float(np.hypot(row.error_draws, row.error_classes))

    def beside(statistic: str, what: str = "") -> dict[str, float]:
        rows = best[(best.statistic == statistic) & (best.kernel != name)]
        return {f"{what}{row.kernel}": row.value for row in rows.itertuples()}

    opposed = "lift of the most opposed"
    spread = "spread: jackknife over draws and over classes"
    rows = {
        "imagenet.inputs": measured(value["inputs"], None, 1, scale),
        "imagenet.lift": measured(
            value["lift"],
            error("lift"),
            int(value["pairs"]),
            f"k={k}, depth {depth}; {scale}; {spread}; null: permuted classes; regions above "
            f"theirs: {', '.join(dense) or 'none'}",
            null=null,
            beside={
                **beside("lift"),
                f"most opposed, {name}": value[opposed],
                **beside(opposed, "most opposed, "),
            },
        ),
        "imagenet.spearman": measured(
            value["correlation"],
            error("correlation"),
            int(value["pairs"]),
            f"correlation over pairs with Wu-Palmer similarity, over the root of the reliability; "
            f"{scale}; {spread}; null: permuted classes",
            null=facts.null_high["correlation"],
            beside={
                **beside("correlation"),
                f"magnitude |R|, {name}": value["correlation of the magnitude"],
                **beside("correlation of the magnitude", "magnitude |R|, "),
            },
        ),
        "imagenet.reliability": measured(
            value["reliability"],
            None,
            int(value["pairs"]),
            f"of R over pairs of inputs, from independent halves by Spearman and Brown; {scale}",
            beside={f"half, {name}": value["reliability of a half"]}
            | beside("reliability")
            | _agreement(direct),
        ),
    }
    if "signed excess" in facts.index:
        rows["imagenet.signed_excess"] = measured(
            value["signed excess"],
            error("signed excess"),
            int(value["pairs"]),
            f"imagenet.spearman less that of the exact limit; {scale}; {spread}, paired",
            beside=_tempered(tempered),
        )
    rows["imagenet.cost_gpu_hours"] = measured(
        None, None, None, f"computed on a CPU; {scale}", tested=False
    )
    write_claims(rows, output)


def _tempered(measured: Path | None) -> dict[str, float]:
    """Signed correlations with WordNet with the data in the probe, and without on its images."""
    found: dict[str, float] = {}
    if measured is None:
        return found
    for n_beta, rows in pd.read_csv(measured).groupby("n_beta"):
        at = rows.set_index("statistic")
        where = f"{at.value['inputs']:.0f} images, nβ = {n_beta:,.0f}, rise {at.value['rise']:.2g}"
        signed = at.loc["correlation"]
        found[f"correlation, {where}"] = signed.value
        found[f"its error, nβ = {n_beta:,.0f}"] = np.hypot(signed.error_draws, signed.error_classes)
    return found


def _agreement(direct: Path | None) -> dict[str, float]:
    """Slope of K by losses on K by gradients, and its error."""
    if direct is None:
        return {}
    found = pd.read_csv(direct)
    return {
        f"{name}, {name_of(row.gamma)}": value
        for row in found[found.statistic == "slope"].itertuples()
        for name, value in (
            (f"slope of K by {row.draws} loss draws on this K", row.value),
            ("its error over draws", row.standard_error),
        )
    }
