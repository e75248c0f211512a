"""The localization sweep: which kernel a classifier has near and far from its trained weights.

Appendix D.3 of the paper. Each function is one rule of ``workflow/rules/gamma_sweep.smk``. Kernels
come from gradient pairs (Inception-v1) or from the losses of a trace (a small network); what is
compared along gamma is free of noise, or said to be lowered by it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from losskernel.errors import DataError
from losskernel.files import atomic_path, write_csv
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.jackknife import jackknife_error
from losskernel.kernel.neighbors import neighbors_by_distance
from losskernel.kernel.stored import StoredKernel
from losskernel.progress import bar
from losskernel.semantics.color import color_differences, mean_color, similar_colors
from losskernel.semantics.relation import Relation
from losskernel.semantics.statistics import (
    Statistic,
    correlation,
    depth_lift,
    with_errors,
)
from losskernel.semantics.wordnet import Hierarchy
from losskernel.trace import LossTrace

HIERARCHY, MAGNITUDE, COLOR = "hierarchy", "hierarchy, magnitude", "color"
LIFT, OPPOSED, COLOR_LIFT = "hierarchy lift", "hierarchy lift, opposed", "color lift"
BY_DEPTH = "mean R at depth"


def colors(settings: dict, output: Path, manifest: Path | None = None) -> None:
    """Mean L*, a* and b* of every image: a table without a pixel in it."""
    # Here, as PyTorch comes with it, and the analysis does without.
    from losskernel.data.images import ClassFolders

    per_class = settings["per_class"]
    images = ClassFolders(settings["image_folder"], mean_color, None, per_class, manifest)
    rows = images.read(settings["skip_unreadable"], "colors")
    table = pd.DataFrame(np.array(rows), columns=["L", "a", "b"])
    table.insert(0, "name", images.names)
    with atomic_path(output) as temporary:
        table.to_csv(temporary, index=False, float_format="%.2f")


def analyze(
    colors: Path,
    hierarchy: Path,
    settings: dict,
    output: Path,
    kernels: list[Path] | None = None,
    traces: list[Path] | None = None,
    limit: Path | None = None,
) -> None:
    """Hierarchy and color in the kernel at every localization, and how they change along it.

    ``output``: gamma (infinite for the exact limit), statistic, value, error_draws, error_classes.
    Correlations of R with WordNet's Wu-Palmer similarity and with the likeness of mean colors,
    without noise; lifts of the nearest neighbors; mean R by depth of the common hypernym; rise of
    the mean loss, reliability, linear share. ``change`` rows: of a statistic from the lowest gamma
    to the highest, with the classes left out of both ends alike.

    Args:
        colors, hierarchy: what inputs have in common.
        settings: depth, neighbors, depth bins, quantile of colors that count as alike, blocks.
        output: the table.
        kernels, traces: of each gamma, one or the other.
        limit: Gram matrix of the gradients.

    Raises:
        DataError: there are fewer than two gammas.
    """
    stored = [StoredKernel.load(path) for path in kernels or []]
    for path in traces or []:
        trace = LossTrace.load(path)
        cut = LossTrace(trace.dataset.isel(draw=slice(settings["discard"], None)))
        stored.append(StoredKernel.of_trace(cut, settings["blocks"]))
    if len(stored) < 2:
        raise DataError("a sweep needs at least two gammas; add a probe")
    stored.sort(key=lambda kernel: kernel.gamma)
    tree, first = Hierarchy.from_file(hierarchy), stored[0]
    labels = first.coordinates["label"]
    chosen = _statistics(tree, labels, _colors(colors, first.coordinates["name"]), settings)
    tables = []
    for kernel in bar(stored, "localizations", unit="gamma"):
        found = with_errors(chosen, kernel.r, kernel, labels, settings["seed"])
        facts = {"rise": kernel.rise[0], "reliability": kernel.reliability[1]}
        facts["linear share"] = kernel.attributes.get("linear_share", np.nan)
        rows = pd.DataFrame({"statistic": list(facts), "value": list(facts.values())})
        rows.loc[rows.statistic == "rise", "error_draws"] = kernel.rise[1]
        tables.append(pd.concat([found, rows]).assign(gamma=kernel.gamma))
    ends = [table.set_index("statistic") for table in (tables[0], tables[-1])]
    changes = pd.DataFrame([_change(statistic, *ends) for statistic in chosen])
    if limit is not None:
        with np.load(limit) as file:
            r = normalize(file["gram"])
        tables.append(with_errors(chosen, r, None, labels, settings["seed"]).assign(gamma=np.inf))
    write_csv(pd.concat([*tables, changes]).drop(columns="parts"), output)


def _statistics(
    tree: Hierarchy, labels: NDArray, colors: NDArray, settings: dict
) -> list[Statistic]:
    own = np.ix_(labels, labels)
    likeness = -color_differences(colors)
    alike = similar_colors(colors, settings["color_quantile"], labels)
    k, depth = settings["neighbors"], settings["depth"]
    depths = tree.lowest_common_hypernym_depth[own]
    pairs = labels[:, None] != labels
    found = [
        correlation(HIERARCHY, tree.wu_palmer[own], labels),
        correlation(MAGNITUDE, tree.wu_palmer[own], labels, magnitude=True),
        correlation(COLOR, likeness, labels),
        depth_lift(LIFT, tree, labels, k, depth),
        depth_lift(OPPOSED, tree, labels, k, depth, opposed=True),
        _relation_lift(COLOR_LIFT, alike, labels, k),
    ]
    edges = [*settings["depth_bins"], np.inf]
    for low, high in zip(edges, edges[1:], strict=False):
        chosen = pairs & (depths >= low) & (depths < high)
        if chosen.any():
            last = "or deeper" if np.isinf(high) else f"to {high - 1:g}"
            found.append(_mean(f"{BY_DEPTH} {low:g} {last}", chosen))
    return found


def _mean(name: str, chosen: NDArray) -> Statistic:
    """Mean R of some pairs: noise of mean zero does not move it."""

    def of(r: NDArray, _, keep: NDArray) -> float:
        at = np.ix_(keep, keep)
        return float(r[at][chosen[at]].mean())

    return Statistic(name, of, False)


def _relation_lift(name: str, related: NDArray, labels: NDArray, k: int) -> Statistic:
    def of(r: NDArray, _, keep: NDArray) -> float:
        at = np.ix_(keep, keep)
        graph, _ = neighbors_by_distance(1 - r[at], k, exclude_labels=labels[keep])
        apart = labels[keep][:, None] != labels[keep]
        return Relation(related[at], apart).lift(graph)

    return Statistic(name, of, False)


def _colors(table: Path, names: NDArray) -> NDArray:
    colors = pd.read_csv(table).set_index("name")
    return colors.loc[names.astype(str), ["L", "a", "b"]].to_numpy(float)


def _change(statistic: Statistic, low: pd.DataFrame, high: pd.DataFrame) -> dict:
    first, last = low.loc[statistic.name], high.loc[statistic.name]
    return {
        "gamma": np.nan,
        "statistic": f"change of {statistic.name}",
        "value": last.value - first.value,
        "error_draws": float(np.hypot(first.error_draws, last.error_draws)),
        "error_classes": jackknife_error(np.array(last.parts) - np.array(first.parts)),
    }
