"""Experiment 2 in words and tables: neighbors of named images, which kernel leads, the claims.

Each function is one rule of ``workflow/rules/imagenet.smk``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.errors import ConfigError
from losskernel.experiments.claims import measured, write_claims
from losskernel.experiments.imagenet.kernels import ALONE, FEATURES, LIMIT, SAMPLED, Sources
from losskernel.experiments.imagenet.measures import MEASURES, distances
from losskernel.files import atomic_path
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
LEADERS = (SAMPLED, LIMIT, FEATURES)
FAMILIES = {
    "Spearman correlation with WordNet similarity": "spearman",
    "Spearman correlation of the magnitude": "spearman_magnitude",
    "lift of the nearest neighbors": "lift",
    "depth of the common hypernym of the nearest neighbors": "common_depth",
    "agreement of clusters with the hierarchy (AMI)": "ami",
}


def neighbors(
    trace: Path,
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
    sources, tree = Sources.load(trace, features, limit), Hierarchy.from_file(hierarchy)
    unknown = sorted(set(settings["named_classes"]) - set(tree.names))
    if unknown:
        raise ConfigError(
            f"imagenet.analysis.named_classes: '{unknown[0]}' is no class; see the names of "
            f"{hierarchy}"
        )
    labels, count = sources.labels, settings["named_neighbors"]
    image = sources.trace.coordinate("name")
    depth = tree.lowest_common_hypernym_depth
    rows = []
    for kernel in settings["map_kernels"]:
        similarity = sources.kernels.get(kernel)
        if similarity is None:
            continue
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
    with atomic_path(output) as temporary:
        found.to_csv(temporary, index=False, float_format="%.6g")
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


def leaders(statistics: Path, output: Path, output_markdown: Path) -> None:
    """Which kernel follows the hierarchy most closely, statistic by statistic, and in a sentence.

    Of the sampled kernel, its exact limit and the features. A statistic is level where the sampled
    kernel's value lies within two of its standard errors of the leader's.
    """
    table = pd.read_csv(statistics)
    rows = []
    for family, prefix in FAMILIES.items():
        chosen = table[table.statistic.map(_family) == prefix]
        for key, cell in chosen.groupby(["statistic", "depth", "k"], dropna=False, sort=False):
            cell = cell.set_index("kernel").reindex(
                [name for name in LEADERS if name in set(cell.kernel)]
            )
            if cell.value.isna().any() or cell.value.nunique() == 1:
                continue  # a lift whose base rate is 0, or a depth that every pair reaches
            sampled, leader = cell.loc[SAMPLED], cell.value.idxmax()
            gap = cell.value.max() - sampled.value
            rows.append(
                {
                    "family": family,
                    **dict(zip(("statistic", "depth", "k"), key, strict=True)),
                    "leader": leader,
                    **{f"value, {name}": value for name, value in cell.value.items()},
                    "standard_error": sampled.standard_error,
                    "level": leader != SAMPLED and gap <= 2 * sampled.standard_error,
                    "above_null": sampled.value > sampled.null_high,
                }
            )
    found = pd.DataFrame(rows)
    with atomic_path(output) as temporary:
        found.to_csv(temporary, index=False, float_format="%.6g")
    with atomic_path(output_markdown) as temporary:
        temporary.write_text(_leaders_markdown(found))


def _family(statistic: str) -> str:
    """A statistic without the name of the WordNet similarity behind it."""
    for measure in MEASURES:
        statistic = statistic.removesuffix(f"_{measure}")
    return statistic


def _leaders_markdown(found: pd.DataFrame) -> str:
    kernels = [name for name in LEADERS if f"value, {name}" in found]
    counts = found.leader.value_counts()
    led = ", ".join(f"{name} {counts.get(name, 0)}" for name in kernels)
    lines = [
        "# Which kernel follows the hierarchy most closely",
        "",
        f"Of {len(found)} statistics the highest value is that of: {led}. In "
        f"{int(found.level.sum())} of those that another leads, the sampled kernel is within two "
        f"standard errors. It lies above 97.5 % of its label permutations in "
        f"{int(found.above_null.sum())} of {len(found)}.",
        "",
        "| family | statistics | " + " | ".join(f"{name} leads" for name in kernels) + " | level "
        "| sampled above null |",
        "| " + " | ".join("-" for _ in range(len(kernels) + 4)) + " |",
    ]
    for family, rows in found.groupby("family", sort=False):
        counts = rows.leader.value_counts()
        cells = [len(rows), *(counts.get(name, 0) for name in kernels)]
        cells += [int(rows.level.sum()), int(rows.above_null.sum())]
        lines.append(f"| {family} | " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def claims(
    analysis: Path, statistics: Path, regions: Path, leaders: Path, settings: dict, output: Path
) -> None:
    """Rows of the comparison with the paper; ``settings`` name the neighbors and the depth."""
    with np.load(analysis) as stored:
        run = json.loads(str(stored["summary"]))["convergence"]
    table, where = pd.read_csv(statistics), pd.read_csv(regions)
    k, depth = settings["claim_neighbors"], settings["claim_depth"]
    found, best = table.set_index(["statistic", "kernel"]), pd.read_csv(leaders)
    scale = (
        f"{run['inputs']} inputs, {run['chains']} chains x {run['draws']} draws, "
        f"noise floor {run['noise_floor']:.3f}"
    )
    if ALONE in set(table.kernel):
        scale += ", linear part as control variate"
    draws = run["chains"] * run["draws"]
    at = table[(table.k == k) & (table.depth == depth)].set_index(["statistic", "kernel"])
    lift, opposed = (at.loc[name] for name in ("lift", "opposed_lift"))
    ranks = found.loc["spearman_wu_palmer"]
    magnitude = found.loc["spearman_magnitude_wu_palmer"]
    region = where[where.kernel == SAMPLED]
    dense = region[region.lift > region.null_high].region
    counts = {
        f"highest of {len(best)} statistics: {name}": n
        for name, n in best.leader.value_counts().items()
    }
    inside = LIMIT in ranks.index and ranks.value[LIMIT] <= ranks.null_high[LIMIT]
    write_claims(
        {
            "imagenet.inputs": measured(run["inputs"], None, 1, scale),
            "imagenet.lift": measured(
                lift.value[SAMPLED],
                lift.standard_error[SAMPLED],
                draws,
                f"k={k}, depth {depth}; {scale}; spread: jackknife over draws; null: shuffled "
                f"labels; regions above their null: {', '.join(dense) or 'none'}",
                null=lift.null_high[SAMPLED],
                beside={**_beside(lift), **_beside(opposed, "most opposed inputs, "), **counts},
            ),
            "imagenet.spearman": measured(
                ranks.value[SAMPLED],
                # Near a limit that is within its own null, a kernel above its null is no support.
                None if inside else ranks.standard_error[SAMPLED],
                draws,
                f"Wu-Palmer similarity; {scale}; spread: jackknife over draws; null: shuffled "
                f"labels{'; the exact limit is within its null' if inside else ''}",
                null=ranks.null_high[SAMPLED],
                beside={**_beside(ranks), **_beside(magnitude, "magnitude |R|, ")},
            ),
            "imagenet.cost_gpu_hours": measured(
                None, None, None, f"sampled on {run['device']}; {scale}", tested=False
            ),
        },
        output,
    )


def _beside(cells: pd.DataFrame, what: str = "") -> dict[str, float]:
    """The statistic of every kernel, by what it is of."""
    shown = [name for name in (SAMPLED, ALONE, LIMIT, FEATURES) if name in cells.index]
    return {f"{what}{name}": cells.value[name] for name in shown}
