"""The localization sweep: which kernel a classifier has near and far from its trained weights.

Appendix D.3 of the paper. Each function is one rule of ``workflow/rules/gamma_sweep.smk``. Kernels
come from gradient pairs; what is compared along gamma is free of noise, or said to be lowered by
it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from losskernel.errors import DataError
from losskernel.files import read_npz, write_csv
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.jackknife import jackknife_error
from losskernel.kernel.neighbors import neighbors_by_distance
from losskernel.kernel.stored import StoredKernel
from losskernel.progress import bar
from losskernel.semantics.color import closest_pairs, color_differences, mean_color
from losskernel.semantics.relation import Relation
from losskernel.semantics.statistics import Statistic, correlation, depth_lift, with_errors
from losskernel.semantics.texture import texture, texture_differences
from losskernel.semantics.wordnet import Hierarchy

HIERARCHY, MAGNITUDE, COLOR, TEXTURE = "hierarchy", "hierarchy, magnitude", "color", "texture"
LIFT, OPPOSED = "hierarchy lift", "hierarchy lift, opposed"
COLOR_LIFT, TEXTURE_LIFT = "color lift", "texture lift"
BY_DEPTH = "mean R at depth"


def colors(settings: dict, output: Path, manifest: Path | None = None) -> None:
    """Mean L*, a* and b* and energies of edges of every image: a table without a pixel in it."""
    # Here, as PyTorch comes with it, and the analysis does without.
    from losskernel.data.images import ClassFolders

    per_class = settings["per_class"]
    images = ClassFolders(settings["image_folder"], looks, None, per_class, manifest)
    rows = images.read(settings["skip_unreadable"], "colors")
    write_csv(table_of_looks(images.names, rows), output, "%.2f")


def looks(image: Image.Image) -> NDArray:
    """Mean color and texture of an image, ``(19,)``."""
    return np.concatenate([mean_color(image), texture(image)])


def table_of_looks(names: NDArray, rows: list[NDArray]) -> pd.DataFrame:
    """What :func:`looks` gives of each image, by name."""
    table = pd.DataFrame(np.array(rows))
    table.columns = ["L", "a", "b", *(f"texture_{i}" for i in range(table.shape[1] - 3))]
    table.insert(0, "name", names)
    return table


def analyze(
    colors: Path,
    hierarchy: Path,
    settings: dict,
    output: Path,
    kernels: list[Path],
    limit: Path | None = None,
) -> None:
    """Hierarchy and color in the kernel at every localization, and how they change along it.

    ``output``: gamma (infinite for the exact limit), statistic, value, error_draws, error_classes.
    Correlations of R with WordNet's Wu-Palmer similarity and with the likeness of mean colors
    and of textures, without noise; lifts of the nearest neighbors; mean R by depth of the common
    hypernym; rise of the mean loss, reliability, linear share. ``change`` rows: of a statistic from
    the lowest gamma to the highest, with the classes left out of both ends alike.

    Raises:
        DataError: there are fewer than two gammas.
    """
    stored = [StoredKernel.load(path) for path in kernels]
    if len(stored) < 2:
        raise DataError("a sweep needs at least two gammas; add a probe")
    stored.sort(key=lambda kernel: kernel.gamma)
    tree, first = Hierarchy.from_file(hierarchy), stored[0]
    labels = first.coordinates["label"]
    seen = pd.read_csv(colors).set_index("name").loc[first.coordinates["name"].astype(str)]
    chosen = _statistics(tree, labels, seen, settings)
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
        r = normalize(read_npz(limit)["gram"])
        tables.append(with_errors(chosen, r, None, labels, settings["seed"]).assign(gamma=np.inf))
    write_csv(pd.concat([*tables, changes]).drop(columns="parts"), output)


def mean_of_networks(metrics: list[Path], output: Path) -> None:
    """The mean over networks of what :func:`analyze` found of each, on the same inputs.

    ``error_draws`` are independent between networks. ``error_classes`` are not, the inputs being
    the same, and are averaged. ``error_networks`` is the standard error of the mean, NaN of one.
    """
    tables = [pd.read_csv(path) for path in metrics]
    groups = pd.concat(tables).groupby(["gamma", "statistic"], sort=False, dropna=False)
    count = len(tables)
    squares = groups["error_draws"].agg(lambda errors: np.sum(errors**2))
    table = groups[["value", "error_classes"]].mean()
    table["error_draws"] = np.sqrt(squares) / count
    table["error_networks"] = groups["value"].std(ddof=1) / np.sqrt(count)
    write_csv(table.reset_index(), output)


def all_errors(rows: pd.DataFrame | pd.Series) -> NDArray:
    """All kinds of standard error of a row in one; a kind that is not known counts as none."""
    kinds = [rows.get(f"error_{kind}", np.nan) for kind in ("draws", "classes", "networks")]
    return np.sqrt(sum(np.nan_to_num(np.asarray(errors, float)) ** 2 for errors in kinds))


def _statistics(
    tree: Hierarchy, labels: NDArray, looks: pd.DataFrame, settings: dict
) -> list[Statistic]:
    own = np.ix_(labels, labels)
    differences = {
        COLOR: color_differences(looks[["L", "a", "b"]]),
        TEXTURE: texture_differences(looks.filter(like="texture")),
    }
    k, depth = settings["neighbors"], settings["depth"]
    depths = tree.lowest_common_hypernym_depth[own]
    pairs = labels[:, None] != labels
    found = [
        correlation(HIERARCHY, tree.wu_palmer[own], labels),
        correlation(MAGNITUDE, tree.wu_palmer[own], labels, magnitude=True),
        *(correlation(name, -found, labels) for name, found in differences.items()),
        depth_lift(LIFT, tree, labels, k, depth),
        depth_lift(OPPOSED, tree, labels, k, depth, opposed=True),
    ]
    for name, difference in differences.items():
        alike = closest_pairs(difference, settings["alike_quantile"], labels)
        found.append(_relation_lift(f"{name} lift", alike, labels, k))
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


def _change(statistic: Statistic, low: pd.DataFrame, high: pd.DataFrame) -> dict:
    first, last = low.loc[statistic.name], high.loc[statistic.name]
    return {
        "gamma": np.nan,
        "statistic": f"change of {statistic.name}",
        "value": last.value - first.value,
        "error_draws": float(np.hypot(first.error_draws, last.error_draws)),
        "error_classes": jackknife_error(np.array(last.parts) - np.array(first.parts)),
    }
