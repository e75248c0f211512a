"""Experiment 5, after sampling: does the kernel take up the hierarchy from coarse to fine?

Each function is one rule of ``workflow/rules/development.smk``; none needs images. Four kernels are
followed: the loss kernel under two rules for the probe, with its control variate, and as baselines
the cosine of loss gradients (the loss kernel in the limit of high localization) and of penultimate
features.

Standard errors are of two kinds, both by jackknife: over blocks of draws, and over groups of
classes. Stretches left out are the same at all checkpoints, so that the errors of what is derived
from whole curves, the order of the depths, are had in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.control_variate import best_coefficient, limit_kernel
from losskernel.errors import DataError, TraceError
from losskernel.estimate import Draws
from losskernel.experiments.claims import claim, write_claims
from losskernel.files import atomic_path
from losskernel.geometry import kernel_distances, nearest_neighbors, umap_embedding
from losskernel.hierarchy import Hierarchy, coarse_groups, hierarchy_order
from losskernel.probe import Probe
from losskernel.progress import bar
from losskernel.seeds import numpy_generator
from losskernel.trace import LossTrace
from losskernel.trajectory import CHANCE, STATISTICS, Ranking, crossing_step, half_similarity
from losskernel.trend import rank_trend, rank_trend_p

SAMPLED = {"fixed": "loss kernel, fixed gamma", "rise": "loss kernel, fixed rise"}
GRADIENTS, FEATURES = "gradient cosine", "feature cosine"
FEWEST_DEPTHS = 4  # of which an order is told
ALL = "all"  # the mean over networks
_CURVE = ["kernel", "statistic", "from"]  # what tells the curves of a network apart
SHUFFLED = "shuffled"  # how the names of networks with permuted labels begin


@dataclass
class _Kernel:
    """One kernel at one checkpoint: R, R without each block of draws, and R by halves."""

    similarity: np.ndarray
    without: list[np.ndarray] = field(default_factory=list)
    halves: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def both(self) -> tuple[np.ndarray, np.ndarray]:
        return self.halves or (self.similarity, self.similarity)


@dataclass
class _Curves:
    """Statistics of one kernel of one network along its checkpoints; arrays end in (step, depth).

    Attributes:
        values: by statistic.
        draws, classes: jackknife replicates by statistic, (block, step, depth); no blocks where a
            kernel has no draws.
        low, high: by statistic, the middle 95 % of the null.
    """

    steps: list[int] = field(default_factory=list)
    values: dict[str, list] = field(default_factory=lambda: {name: [] for name in STATISTICS})
    draws: dict[str, list] = field(default_factory=lambda: {name: [] for name in STATISTICS})
    classes: dict[str, list] = field(default_factory=lambda: {name: [] for name in STATISTICS})
    low: dict[str, list] = field(default_factory=lambda: {name: [] for name in STATISTICS})
    high: dict[str, list] = field(default_factory=lambda: {name: [] for name in STATISTICS})


def analyze(
    states: list[Path],
    traces: list[Path],
    hierarchy: Path,
    settings: dict,
    output: Path,
    output_crossings: Path,
    output_order: Path,
    output_arrays: Path,
) -> None:
    """Agreement with the hierarchy at every checkpoint, when each depth appears, and in what order.

    Tables: ``output`` one number a row (network, kernel, step, statistic, depth) with its errors
    and the middle 95 % of a null of permuted classes; ``output_crossings`` the step at which each
    depth crosses half of its final value; ``output_order`` the rank correlation of depth and that
    step, of the depths whose final value is above 97.5 % of the null. Half of the final value is
    counted from ``chance``, or from the value at ``initialization``. ``output_arrays`` holds the
    maps and the similarities (:func:`losskernel.trajectory.half_similarity`) of all pairs of
    checkpoints, both of the first network.

    Raises:
        DataError: a class is not in the hierarchy.
        TraceError: a trace does not belong to its checkpoint's file, or the inputs differ.
    """
    tree = Hierarchy.from_file(hierarchy)
    checkpoints = _read(states, traces)
    first = checkpoints[0]
    position = {wnid: i for i, wnid in enumerate(tree.wnids)}
    unknown = sorted(set(first.wnids) - position.keys())
    if unknown:
        raise DataError(f"{hierarchy}: has no class {unknown[0]}; make it of the data's classes")
    labels = np.array([position[wnid] for wnid in first.wnids])
    present, own = np.unique(labels, return_inverse=True)
    depth = tree.lowest_common_hypernym_depth[np.ix_(present, present)]
    depths = _depths(depth, settings["class_pairs"])
    curves: dict[tuple[str, str], _Curves] = {}
    rows: list[dict] = []
    kept: dict[str, list[_Kernel]] = {}
    for checkpoint in bar(checkpoints, "checkpoints", unit="checkpoint"):
        kernels, facts = checkpoint.kernels(settings)
        rows += facts
        for name, kernel in kernels.items():
            curve = curves.setdefault((checkpoint.network, name), _Curves())
            curve.steps.append(checkpoint.step)
            _measure(curve, kernel, depth, own, depths, settings)
            if checkpoint.network == first.network:
                kept.setdefault(name, []).append(kernel)
    rows += [row for key, curve in curves.items() for row in _rows(*key, curve, depths)]
    _write(pd.DataFrame(rows), output)
    crossings, order = _orders(_with_mean(curves), depths, settings["seed"])
    _write(crossings, output_crossings)
    _write(order, output_order)
    _write_arrays(output_arrays, checkpoints, kept, labels, tree, settings)


@dataclass(frozen=True)
class _Checkpoint:
    """The files of one checkpoint of one network."""

    network: str
    step: int
    state: dict
    traces: dict[str, LossTrace]  # by rule

    @property
    def wnids(self) -> np.ndarray:
        return self.traces["fixed"].coordinate("wnid")

    @property
    def gram(self) -> np.ndarray:
        norms = self.state["norms"].astype(float)
        return _full(self.state["cosine"]) * np.outer(norms, norms)

    def kernels(self, settings: dict) -> tuple[dict[str, _Kernel], list[dict]]:
        """Every kernel, and rows of facts on how they were sampled."""
        found, facts = {}, []
        key = {"network": self.network, "step": self.step}
        for rule, name in SAMPLED.items():
            trace = self.traces[rule]
            probe = Probe(**json.loads(trace.attributes["probe"]))
            known = limit_kernel(self.gram, Probe(0, probe.gamma, probe.step_size))
            linear = trace.dataset["linear"].values[~trace.diverged]
            coefficient = best_coefficient(trace.losses, linear)
            draws = Draws(trace.losses, coefficient * linear, coefficient**2 * known)
            found[name] = _sampled_kernel(draws, settings["jackknife_blocks"])
            means = trace.losses.mean(axis=(0, 2), dtype=float)
            early, late = np.array_split(means, 2)
            off = ~np.eye(len(known), dtype=bool)
            numbers = {
                "gamma": probe.gamma,
                "rise": means.mean() - trace.initial_loss.mean(dtype=float),
                "drift": late.mean() - early.mean(),
                "coefficient": coefficient,
                "linear_share": draws.linear_share,
                "R_sd": found[name].similarity[off].std(),
                "noise_floor": draws.null(settings["seed"])[off].std(),
            }
            facts += [
                key | {"kernel": name, "statistic": n, "value": v} for n, v in numbers.items()
            ]
        found[GRADIENTS] = _Kernel(_full(self.state["cosine"]))
        features = self.state["features"].astype(float)
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        features = np.divide(features, norms, out=np.zeros_like(features), where=norms > 0)
        found[FEATURES] = _Kernel(features @ features.T)
        accuracy = json.loads(str(self.state["accuracy"]))
        facts += [
            key | {"kernel": "network", "statistic": n, "value": v} for n, v in accuracy.items()
        ]
        return found, facts


def _full(triangle: np.ndarray) -> np.ndarray:
    """A symmetric matrix from its lower triangle, row by row, ones on the diagonal."""
    n = int((2 * len(triangle)) ** 0.5)
    matrix = np.zeros((n, n))
    matrix[np.tril_indices(n)] = triangle
    matrix = np.tril(matrix, -1)
    return np.clip(matrix + matrix.T + np.eye(n), -1, 1)


def _sampled_kernel(draws: Draws, blocks: int) -> _Kernel:
    number = np.arange(draws.losses.shape[1])
    without = [
        draws.at(np.setdiff1d(number, block)).r
        for block in np.array_split(number, min(blocks, len(number) - 1))
    ]
    # By chains where there are several: what a chain does early it may still do late.
    chains = len(draws.losses)
    parts = [Draws(draws.losses[part::2], draws.linear[part::2], draws.known) for part in (0, 1)]
    halves = parts if chains > 1 else draws.halves()
    return _Kernel(draws.r, without, (halves[0].r, halves[1].r))


def _read(states: list[Path], traces: list[Path]) -> list[_Checkpoint]:
    """Checkpoints by network and step, networks with true labels first."""
    by_key: dict[tuple[str, int], dict[str, LossTrace]] = {}
    for path in traces:
        trace = LossTrace.load(path)
        attributes = trace.attributes
        key = (str(attributes["network"]), int(attributes["step"]))
        by_key.setdefault(key, {})[attributes["rule"]] = trace
    found = []
    for path in states:
        with np.load(path) as stored:
            state = dict(stored)
        key = (str(state["network"]), int(state["step"]))
        of_key = by_key.get(key, {})
        for rule in SAMPLED:
            if rule not in of_key:
                raise TraceError(f"{path}: there is no trace of rule '{rule}' beside it")
            if of_key[rule].attributes["weights_sha256"] != str(state["weights_sha256"]):
                raise TraceError(f"{path}: of other weights than the trace of rule '{rule}'")
        found.append(_Checkpoint(*key, state, of_key))
    found.sort(key=lambda c: (c.network.startswith(SHUFFLED), c.network, c.step))
    names = found[0].traces["fixed"].coordinate("name")
    for other in found:
        if not np.array_equal(names, other.traces["fixed"].coordinate("name")):
            raise TraceError(
                f"network {other.network}, step {other.step}: other probe inputs than those of "
                f"{found[0].network}, {found[0].step}; sample all with the same settings"
            )
    return found


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
    curve: _Curves,
    kernel: _Kernel,
    depth: np.ndarray,
    labels: np.ndarray,
    depths: Sequence[int],
    settings: dict,
) -> None:
    """Add one checkpoint to the curves of a kernel; ``labels`` are rows of ``depth``, all used."""
    k, seed = settings["neighbors"], settings["seed"]
    ranking = Ranking.of(kernel.similarity, labels, k)
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
        part = Ranking.of(kernel.similarity[np.ix_(keep, keep)], labels[keep], k)
        without_classes.append(part.profile(depth, labels[keep], depths))
    without_draws = [
        Ranking.of(similarity, labels, k).profile(depth, labels, depths)
        for similarity in kernel.without
    ]
    value = ranking.profile(depth, labels, depths)
    for name in STATISTICS:
        low, high = np.quantile([null[name] for null in shuffled], [0.025, 0.975], axis=0)
        curve.values[name].append(value[name])
        curve.low[name].append(low)
        curve.high[name].append(high)
        curve.draws[name].append([part[name] for part in without_draws])
        curve.classes[name].append([part[name] for part in without_classes])


def _jackknife(replicates: np.ndarray) -> np.ndarray:
    """Standard error from delete-one-block values along the first axis; NaN without blocks."""
    if len(replicates) < 2:
        return np.full(replicates.shape[1:], np.nan)
    return np.sqrt(len(replicates) - 1) * np.std(replicates, axis=0)


def _rows(network: str, name: str, curve: _Curves, depths: Sequence[int]) -> list[dict]:
    rows = []
    for statistic in STATISTICS:
        for at, step in enumerate(curve.steps):
            blocks = len(curve.draws[statistic][at])
            draws = np.reshape(curve.draws[statistic][at], (blocks, len(depths)))
            errors = _jackknife(draws), _jackknife(np.array(curve.classes[statistic][at]))
            for i, depth in enumerate(depths):
                rows.append(
                    {
                        "network": network,
                        "step": step,
                        "kernel": name,
                        "statistic": statistic,
                        "value": curve.values[statistic][at][i],
                        "depth": depth,
                        "error_draws": errors[0][i],
                        "error_classes": errors[1][i],
                        "null_low": curve.low[statistic][at][i],
                        "null_high": curve.high[statistic][at][i],
                    }
                )
    return rows


def _with_mean(curves: dict[tuple[str, str], _Curves]) -> dict[tuple[str, str], _Curves]:
    """The curves of networks with true labels, and their mean where there are several networks."""
    trained = {key: c for key, c in curves.items() if not key[0].startswith(SHUFFLED)}
    kernels = list(dict.fromkeys(name for _, name in trained))
    for name in kernels:
        own = [curve for (_, kernel), curve in trained.items() if kernel == name]
        if len(own) > 1 and all(curve.steps == own[0].steps for curve in own):
            mean = {
                part: {
                    statistic: list(np.mean([getattr(c, part)[statistic] for c in own], axis=0))
                    for statistic in STATISTICS
                }
                for part in ("values", "draws", "classes", "low", "high")
            }
            trained[ALL, name] = _Curves(own[0].steps, **mean)
    return trained


def _orders(
    curves: dict[tuple[str, str], _Curves], depths: Sequence[int], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of the crossing steps, a row a depth, and of their order, a row a curve."""
    crossings, orders = [], []
    for (network, name), curve in curves.items():
        for statistic in STATISTICS:
            for start in ("chance", "initialization"):
                key = {"network": network, "kernel": name, "statistic": statistic, "from": start}
                found = _Crossings.of(curve, statistic, start)
                crossings += [key | row for row in found.rows(depths)]
                orders.append(key | found.order(seed))
    return pd.DataFrame(crossings), pd.DataFrame(orders)


@dataclass(frozen=True)
class _Crossings:
    """The crossing step of each depth, ``(depth,)``, NaN where there is none.

    Attributes:
        steps: of all inputs and draws.
        resolved: whether a depth's final value is above 97.5 % of the null.
        replicates: of the jackknife, ``(block, depth)``, by what is left out.
    """

    steps: np.ndarray
    resolved: np.ndarray
    replicates: dict[str, np.ndarray]

    @classmethod
    def of(cls, curve: _Curves, statistic: str, start: str) -> _Crossings:
        def crossings(values: np.ndarray) -> np.ndarray:
            chance = CHANCE[statistic] if start == "chance" else None
            return np.array(
                [
                    crossing_step(curve.steps, line, line[0] if chance is None else chance)
                    for line in values.T
                ]
            )

        values = np.array(curve.values[statistic])
        replicates = {
            "draws": np.array(curve.draws[statistic]),
            "classes": np.array(curve.classes[statistic]),
        }
        return cls(
            crossings(values),
            values[-1] > np.array(curve.high[statistic])[-1],
            {
                # (step, block, depth); kernels without draws have no blocks of them.
                part: np.array([crossings(block) for block in np.swapaxes(stored, 0, 1)])
                for part, stored in replicates.items()
                if stored.size
            },
        )

    def rows(self, depths: Sequence[int]) -> list[dict]:
        """The errors are of ``log(1 + step)``."""
        columns = {"depth": depths, "step": self.steps, "resolved": self.resolved}
        for part in ("draws", "classes"):
            missing = np.full((1, len(depths)), np.nan)
            errors = _jackknife(np.log1p(self.replicates.get(part, missing)))
            columns[f"log_error_{part}"] = errors
        return pd.DataFrame(columns).to_dict("records")

    def order(self, seed: int) -> dict:
        """Rank correlation of depth and step over the resolved depths, with p and errors."""
        used = self.resolved & np.isfinite(self.steps)
        row = {"depths": int(used.sum()), "spearman": np.nan, "p": np.nan}
        row |= {"error_draws": np.nan, "error_classes": np.nan}
        if used.sum() < FEWEST_DEPTHS:
            return row
        row |= {"spearman": _trend(self.steps[used]), "p": rank_trend_p(self.steps[used], seed)}
        for part, replicates in self.replicates.items():
            trends = np.array([_trend(replicate[used]) for replicate in replicates])
            row[f"error_{part}"] = float(_jackknife(trends))
        return row


def _trend(crossings: np.ndarray) -> float:
    """Rank correlation of depth and crossing step of the depths that cross; 0 for less than two.

    A replicate that loses a depth keeps the others in their order.
    """
    found = crossings[np.isfinite(crossings)]
    return rank_trend(found) if len(found) > 1 else 0.0


def _write_arrays(
    path: Path,
    checkpoints: list[_Checkpoint],
    kept: dict[str, list[_Kernel]],
    labels: np.ndarray,
    tree: Hierarchy,
    settings: dict,
) -> None:
    own = [c for c in checkpoints if c.network == checkpoints[0].network]
    similarity = np.array(
        [
            [[half_similarity(a.both, b.both) for b in kernels] for a in kernels]
            for kernels in kept.values()
        ]
    )
    shown = [SAMPLED[settings["headline"]["rule"]], FEATURES]
    _, position = hierarchy_order(tree)
    group, group_names = coarse_groups(tree)
    with atomic_path(path) as temporary:
        np.savez_compressed(
            temporary,
            steps=np.array([c.step for c in own]),
            top1=np.array([json.loads(str(c.state["accuracy"]))["top1"] for c in own]),
            kernels=np.array(list(kept)),
            similarity=similarity,
            map_kernels=np.array(shown),
            maps=np.stack([_maps(kept[name], labels, settings) for name in shown]),
            position=position[labels],
            group=group[labels],
            group_names=np.array(group_names),
            class_name=np.array(tree.names)[labels],
        )


def _maps(kernels: list[_Kernel], labels: np.ndarray, settings: dict) -> np.ndarray:
    """Embeddings (step, input, 2), each begun at the one before."""
    maps: list[np.ndarray] = []
    for kernel in bar(kernels, "maps", unit="map"):
        graph = nearest_neighbors(
            kernel_distances(kernel.similarity), settings["map_neighbors"], exclude_labels=labels
        )
        maps.append(
            umap_embedding(
                *graph,
                seed=settings["seed"],
                n_epochs=settings["map_epochs"],
                init=maps[-1] if maps else None,
            )
        )
    return np.stack(maps)


def _write(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def claims(order: Path, metrics: Path, settings: dict, output: Path) -> None:
    """What the trajectory says of the paper's claim, for the comparison."""
    table, numbers = pd.read_csv(order, dtype={"network": str}), pd.read_csv(metrics)
    headline = settings["headline"]
    network = ALL if (table["network"] == ALL).any() else str(table["network"].iloc[0])
    of_network = table[table["network"] == network].set_index(_CURVE)
    name = SAMPLED[headline["rule"]]
    row = of_network.loc[(name, headline["statistic"], headline["from"])]
    error = float(np.hypot(*row[["error_draws", "error_classes"]].fillna(0)))
    spread = "jackknife over draws and classes"
    alone = table[table["network"] != ALL]
    networks = alone["network"].nunique()
    if networks > 1:
        same = (alone[key] == value for key, value in zip(_CURVE, row.name, strict=True))
        error = float(alone[np.logical_and.reduce([*same])]["spearman"].std(ddof=1))
        spread = "sd over networks"
    top1 = numbers[(numbers["kernel"] == "network") & (numbers["statistic"] == "top1")]
    top1 = top1[~top1["network"].astype(str).str.startswith(SHUFFLED)]
    reached = top1[top1["step"] == top1["step"].max()]["value"].mean()
    steps = top1["step"].nunique()
    orders = of_network.xs(headline["from"], level="from")["spearman"].dropna()
    others = ", ".join(
        f"{kernel} by {statistic.replace('_', ' ')} {value:+.2f}"
        for (kernel, statistic), value in orders.items()
        if statistic in ("lift", "conditional_auc")
        and (kernel, statistic) != (name, headline["statistic"])
    )
    beside = f"; beside it: {others}" if others else ""
    setting = (
        f"Tiny ImageNet, validation top-1 {reached:.1%}, {networks} network(s), {steps} "
        f"checkpoints; {name}, {headline['statistic']} from {headline['from']}, "
        f"{int(row['depths'])} depths above shuffled classes; spread: {spread}"
    )
    write_claims(
        {
            "development.coarse_to_fine": claim(
                row["spearman"] if np.isfinite(row["spearman"]) else None,
                error if np.isfinite(row["spearman"]) else None,
                networks,
                setting,
                _verdict(row, error) + beside,
            )
        },
        output,
    )


def _verdict(row: pd.Series, error: float) -> str:
    if not np.isfinite(row["spearman"]):
        return (
            f"not resolved at this scale: {int(row['depths'])} depths stand above shuffled "
            f"classes, {FEWEST_DEPTHS} are needed to tell an order"
        )
    certain = row["p"] < 0.05 and abs(row["spearman"]) > 2 * error
    word = "not resolved"
    if certain:
        word = "holds" if row["spearman"] > 0 else "contradicted"
    return f"{word} at this scale: permutation p = {row['p']:.2g}"
