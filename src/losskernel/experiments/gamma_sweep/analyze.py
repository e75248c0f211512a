"""The localization sweep: which kernel a classifier has near and far from its trained weights.

Appendix D.3 of the paper, and a sweep of n_beta that it lacks. Each function is one rule of
``workflow/rules/gamma_sweep.smk``; sampling is that of
:mod:`losskernel.experiments.imagenet.sample`, one trace a setting (n_beta, gamma, step size), all
on the same images.

What can be compared between settings. A lift of nearest neighbors falls with the sampling noise, so
all settings have the same number of draws; their noise floors still differ where chains mix at
different speeds, and with the control variate. Lifts of squared R, contrasts and corrected CKAs are
not moved by noise of mean zero, and stand beside: the first and the last if a setting has two
chains, which are independent however slowly they mix.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.diagnostics.convergence import autocorrelation_time, convergence, settled_at
from losskernel.diagnostics.trend import rank_trend, rank_trend_p
from losskernel.errors import DataError, TraceError
from losskernel.files import atomic_path
from losskernel.kernel.alignment import cka, corrected_cka
from losskernel.kernel.control_variate import coupled_law, limit_kernel, normalize
from losskernel.kernel.estimate import Draws
from losskernel.kernel.neighbors import kernel_distances, neighbors_by_distance
from losskernel.progress import bar
from losskernel.sampling.probe import Probe
from losskernel.seeds import numpy_generator
from losskernel.semantics.color import mean_color, similar_colors
from losskernel.semantics.relation import Relation, pairs, renamings
from losskernel.semantics.wordnet import Hierarchy
from losskernel.trace import LossTrace

ALONE, CORRECTED, LIMIT = "draws alone", "control variate", "exact limit"
# Groups of inputs, whose spread tells how much a time to convergence depends on the inputs.
INPUT_GROUPS, FEWEST_INPUTS = 10, 8


def colors(settings: dict, output: Path) -> None:
    """Mean L*, a* and b* of every image: a table without a pixel in it."""
    # Here, as PyTorch comes with it, and the analysis does without.
    from losskernel.data.images import ClassFolders

    images = ClassFolders(settings["image_folder"], mean_color, per_class=settings["per_class"])
    rows = images.read(settings["skip_unreadable"], "colors")
    table = pd.DataFrame(np.array(rows), columns=["L", "a", "b"])
    table.insert(0, "name", images.names)
    with atomic_path(output) as temporary:
        table.to_csv(temporary, index=False, float_format="%.2f")


@dataclass
class _Setting:
    """One trace of the sweep, its kernels, and what was measured of it."""

    probe: dict
    initial_loss: np.ndarray  # (input,)
    whole: np.ndarray  # (chain, draw, input) losses from the start of the chains
    draws: dict[str, Draws]  # by estimator, of the draws that are compared
    reached: float  # share of the stationary variance that a free weight has in them
    kernels: dict[str, list] = field(default_factory=dict)  # R and its halves: all draws, blocks
    values: dict[tuple[str, str], dict] = field(default_factory=dict)

    def keep(self, estimator: str, statistic: str, value, replicates=None, error=None, null=None):
        """Store one number, with its jackknife replicates or its error, and its null's range."""
        if replicates is not None:
            error = _jackknife(replicates)
        low, high = (np.nan, np.nan) if null is None else np.quantile(null, [0.025, 0.975])
        self.values[estimator, statistic] = {
            "value": float(value),
            "error": np.nan if error is None else float(error),
            "null_low": float(low),
            "null_high": float(high),
            "replicates": replicates,
        }

    @property
    def best(self) -> str:
        """The estimator with the least noise that there is."""
        return CORRECTED if CORRECTED in self.draws else ALONE


def analyze(
    traces: list[Path],
    colors: Path,
    hierarchy: Path,
    settings: dict,
    output: Path,
    output_regimes: Path,
    output_trends: Path,
    output_cka: Path,
    limit: Path | None = None,
) -> None:
    """Lifts, contrasts, CKA, mean loss and convergence of every setting, and trends along gamma.

    Tables: ``output`` one number a row (setting, estimator, statistic; its jackknife error over
    blocks of draws, too small where draws are correlated beyond a block, and the middle 95 % of a
    null of renamed inputs); ``output_regimes`` the
    regime of each setting; ``output_trends`` how each statistic changes along a sweep;
    ``output_cka`` every pair of settings. With ``limit``, estimates with the control variate stand
    beside those of the draws alone if the traces have linear parts, and the exact limit is the end
    of the sweep.

    Statistics: ``hierarchy_lift``, ``hierarchy_squared_lift``, ``hierarchy_contrast`` (at the first
    of ``settings["depths"]``; at further ones with the depth in the name) and ``color_*``: the lift
    of the k nearest neighbors, and what noise does not move, the lift of squared R and the mean R
    of related pairs less that of all pairs (:class:`losskernel.semantics.relation.Relation`);
    ``R_sd`` over pairs, its ``noise_floor``, and ``R_spread``, the standard deviation of R without
    its noise (from the covariance of two halves of the draws); ``mean_loss_rise`` over the
    trained weights and ``drift``, nats; ``variance_reached``, the share of its stationary variance
    that a weight which the loss does not feel has in the run; ``linear_share``;
    ``cka_to_limit`` and ``corrected_cka_to_limit``; of the mean loss
    ``autocorrelation_draws`` and ``settled_draws``
    (:func:`losskernel.diagnostics.convergence.autocorrelation_time`, ``settled_at``);
    ``cka_draws``, the draws from which on CKA(t, final) stays above ``settings["cka_level"]``; and
    ``median_ess``. Errors of the three times are standard deviations over groups of inputs.

    Raises:
        TraceError: the traces are not of the same inputs and weights, or two share their noise.
    """
    loaded = [LossTrace.load(trace) for trace in traces]
    _check_independent(traces, loaded)
    labels, names = loaded[0].coordinate("label"), loaded[0].coordinate("name")
    sweep = _settings(loaded, settings["discard"], limit)
    relations = _relations(labels, names, colors, hierarchy, settings)
    blocks = np.array_split(np.arange(sweep[0].draws[ALONE].losses.shape[1]), settings["blocks"])
    orders = renamings(
        labels, settings["permutations"], numpy_generator(settings["seed"], "resample")
    )
    nulls = [{name: r.permuted(order) for name, r in relations.items()} for order in orders]
    exact = None if limit is None else _exact(limit)
    for setting in bar(sweep, "settings", unit="setting"):
        _measure_kernels(setting, blocks, relations, nulls, labels, exact, settings)
        _measure_run(setting, settings)
    rows = [row for setting in sweep for row in _rows(setting)]
    if exact is not None:
        end = _Setting({"n_beta": np.nan, "gamma": np.inf, "step_size": np.nan}, *[None] * 4)
        graph = _graph(exact, labels, settings["neighbors"])
        null = _null(nulls, (exact,) * 3, graph)
        for statistic, value in _statistics(relations, (exact,) * 3, graph).items():
            end.keep(LIMIT, statistic, value, null=null[statistic])
        end.keep(LIMIT, "R_spread", _spread(exact, exact, pairs(labels)))
        rows += _rows(end)
        end.kernels[LIMIT] = [(exact, exact, exact)] * (1 + len(blocks))
    _write(pd.DataFrame(rows), output)
    regimes = [
        setting.probe | dict(zip(("regime", "reason"), _regime(setting, settings), strict=True))
        for setting in sweep
    ]
    _write(pd.DataFrame(regimes), output_regimes)
    _write(_trends(sweep, settings), output_trends)
    _write(_agreement(sweep, None if exact is None else end, settings["base"]), output_cka)


def _check_independent(paths: list[Path], traces: list[LossTrace]) -> None:
    """One model and one set of images; no noise in common, which kernels would agree by."""
    first, used = traces[0].attributes, {}
    for path, trace in zip(paths, traces, strict=True):
        for key in ("weights_sha256", "inputs_sha256"):
            if trace.attributes[key] != first[key]:
                raise TraceError(f"{path}: another {key} than {paths[0]}; sample both alike")
        for chain in trace.dataset["chain"].values.tolist():
            key = int(trace.attributes["seed"]), chain
            if key in used:
                raise TraceError(
                    f"{path}: its chain {chain} has the noise of the one in {used[key]}; sample "
                    "every setting with chain numbers of its own"
                )
            used[key] = path


def _settings(traces: list[LossTrace], discard: int, limit: Path | None) -> list[_Setting]:
    """The traces by n_beta, step size and gamma, all cut to the same number of draws."""
    fewest = min(trace.dataset.sizes["draw"] for trace in traces)
    found = []
    for trace in traces:
        told = trace.attributes
        probe, kept = json.loads(told["probe"]), slice(discard, fewest)
        draws = {ALONE: Draws(trace.losses[:, kept])}
        free = Probe.read(probe).free
        steps = told["burn_in"] + told["steps_per_draw"] * np.arange(1, fewest + 1)
        # At low gamma a run is over before it is stationary: its own law is what is known of it.
        law = coupled_law(free, steps[kept]) / free.localization_variance
        if limit is not None:
            with np.load(limit) as stored:
                for key in ("weights_sha256", "inputs_sha256"):
                    if str(stored[key]) != told[key]:
                        raise TraceError(f"{limit}: another {key} than the traces; make it anew")
                known = limit_kernel(stored["gram"], free)
            if "linear" in trace.dataset:
                linear = trace.dataset["linear"].values[~trace.diverged]
                draws[CORRECTED] = Draws(trace.losses[:, kept], linear[:, kept], known, law)
        reached = np.diag(law).mean()
        whole = trace.losses[:, :fewest]
        found.append(_Setting(probe, trace.initial_loss, whole, draws, float(reached)))
    return sorted(found, key=lambda s: (s.probe["n_beta"], s.probe["step_size"], s.probe["gamma"]))


def _exact(limit: Path) -> np.ndarray:
    with np.load(limit) as stored:
        return normalize(stored["gram"])


def _relations(
    labels: np.ndarray, names: np.ndarray, colors: Path, hierarchy: Path, settings: dict
) -> dict[str, Relation]:
    """``hierarchy`` (of the first depth), ``hierarchy_<depth>`` and ``color``."""
    eligible = pairs(labels)
    depth = Hierarchy.from_file(hierarchy).lowest_common_hypernym_depth[np.ix_(labels, labels)]
    first, *others = settings["depths"]
    found = {"hierarchy": Relation(depth >= first, eligible)}
    found |= {f"hierarchy_{other}": Relation(depth >= other, eligible) for other in others}
    table = pd.read_csv(colors).set_index("name")
    missing = sorted(set(names) - set(table.index))
    if missing:
        raise DataError(f"{colors}: lacks {missing[0]} of the traces; compute the colors anew")
    similar = similar_colors(table.loc[names].to_numpy(), settings["color_quantile"], labels)
    return found | {"color": Relation(similar, eligible)}


def _spread(first: np.ndarray, second: np.ndarray, eligible: np.ndarray) -> float:
    """Standard deviation of R over pairs without its noise; NaN where there is noise alone."""
    covariance = np.cov(first[eligible], second[eligible])[0, 1]
    return float(np.sqrt(covariance)) if covariance > 0 else float("nan")


def _graph(r: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    return neighbors_by_distance(kernel_distances(r), k, exclude_labels=labels)[0]


def _statistics(
    relations: dict[str, Relation], kernels: tuple[np.ndarray, ...], graph: np.ndarray
) -> dict[str, float]:
    """Lifts and contrast of every relation, from R and its halves; of a further depth, named so."""
    r, *halves = kernels
    found = {}
    for name, relation in relations.items():
        kind, mark, depth = name.partition("_")
        found[f"{kind}_lift{mark}{depth}"] = relation.lift(graph)
        found[f"{kind}_squared_lift{mark}{depth}"] = relation.squared_lift(*halves)
        found[f"{kind}_contrast{mark}{depth}"] = relation.contrast(r)
    return found


def _null(
    nulls: list[dict[str, Relation]], kernels: tuple[np.ndarray, ...], graph: np.ndarray
) -> dict[str, list[float]]:
    """The statistics with the inputs of the relations renamed; kernel and neighbors stay."""
    samples = [_statistics(relations, kernels, graph) for relations in nulls]
    return {name: [sample[name] for sample in samples] for name in samples[0]}


def _measure_kernels(
    setting: _Setting,
    blocks: list[np.ndarray],
    relations: dict[str, Relation],
    nulls: list[dict[str, Relation]],
    labels: np.ndarray,
    exact: np.ndarray | None,
    settings: dict,
) -> None:
    eligible = pairs(labels)
    for estimator, draws in setting.draws.items():
        number = np.arange(draws.losses.shape[1])
        kept = [number, *(np.setdiff1d(number, block) for block in blocks)]
        kernels = []
        for chosen in kept:
            part = draws.at(chosen)
            kernels.append(
                tuple(d.r.astype(np.float32) for d in (part, *part.independent_halves()))
            )
        setting.kernels[estimator] = kernels
        spreads = [_spread(first, second, eligible) for _, first, second in kernels]
        graphs = [_graph(r, labels, settings["neighbors"]) for r, _, _ in kernels]
        found = [
            _statistics(relations, part, graph) for part, graph in zip(kernels, graphs, strict=True)
        ]
        null = _null(nulls, kernels[0], graphs[0])
        for statistic, value in found[0].items():
            replicates = [other[statistic] for other in found[1:]]
            setting.keep(estimator, statistic, value, replicates, null=null[statistic])
        setting.keep(estimator, "R_spread", spreads[0], spreads[1:])
        setting.keep(estimator, "R_sd", kernels[0][0][eligible].std())
        floor = draws.null(settings["seed"])[eligible].std()
        setting.keep(estimator, "noise_floor", floor)
        if exact is not None:
            to_limit = [cka(r, exact) for r, _, _ in kernels]
            setting.keep(estimator, "cka_to_limit", to_limit[0], to_limit[1:])
            noiseless = [corrected_cka(halves, (exact, exact)) for _, *halves in kernels]
            setting.keep(estimator, "corrected_cka_to_limit", noiseless[0], noiseless[1:])
        if draws.linear is not None:
            shares = [draws.at(chosen).linear_share for chosen in kept]
            setting.keep("", "linear_share", shares[0], shares[1:])


def _measure_run(setting: _Setting, settings: dict) -> None:
    """Mean loss and the times to convergence, from the start of the chains."""
    kept = setting.draws[ALONE].losses
    level = kept.mean(axis=2, dtype=float)
    start = float(setting.initial_loss.mean())
    samples = level.size / autocorrelation_time(level)
    setting.keep("", "mean_loss", level.mean(), error=level.std(ddof=1) / np.sqrt(samples))
    rise = level.mean() - start
    setting.keep("", "mean_loss_rise", rise, error=level.std(ddof=1) / np.sqrt(samples))
    setting.keep("", "variance_reached", setting.reached)
    checks = convergence(kept)
    setting.keep("", "drift", checks.drift, error=checks.drift_error)
    setting.keep("", "median_ess", np.nanmedian(checks.ess))
    inputs = np.arange(kept.shape[2])
    count = max(2, min(INPUT_GROUPS, len(inputs) // FEWEST_INPUTS))
    groups = [inputs, *(inputs[first::count] for first in range(count))]
    final = setting.draws[ALONE].r
    times = {
        "autocorrelation_draws": lambda chosen: autocorrelation_time(kept[..., chosen].mean(2)),
        "settled_draws": lambda chosen: _settled(setting, chosen),
        "cka_draws": lambda chosen: _cka_draws(
            setting.draws[ALONE], final, chosen, settings["cka_level"]
        ),
    }
    for name, of in times.items():
        everything, *parts = (of(chosen) for chosen in groups)
        setting.keep("", name, everything, error=np.std(parts, ddof=1))


def _settled(setting: _Setting, chosen: np.ndarray) -> int:
    """Draws until the mean loss of some inputs no longer shows that it began at the weights'."""
    chains, draws, _ = setting.whole.shape
    start = np.full((chains, 1), setting.initial_loss[chosen].mean())
    settled = settled_at(np.hstack([start, setting.whole[..., chosen].mean(axis=2)]))
    return min(max(settled, 1), draws)


def _cka_draws(draws: Draws, final: np.ndarray, chosen: np.ndarray, level: float) -> int:
    """The first number of draws from which on CKA(t, final) does not fall below ``level``."""
    number = draws.losses.shape[1]
    final, some = final[np.ix_(chosen, chosen)], Draws(draws.losses[..., chosen])
    needed = number
    for count in range(number - 1, 2, -1):  # two draws correlate fully, whatever they are
        if cka(some.at(slice(count)).r, final) < level:
            break
        needed = count
    return needed


def _regime(setting: _Setting, settings: dict) -> tuple[str, str]:
    """Diffuse, frozen, semantic or unresolved, by the rule of ``gamma_sweep.regimes``, and why."""
    rule = settings["regimes"]
    rise = setting.values["", "mean_loss_rise"]["value"]
    if rise > rule["diffuse_rise"]:
        return "diffuse", f"mean loss rises by {rise:.2f} > {rule['diffuse_rise']:g} nats"
    share = setting.values.get(("", "linear_share"), {"value": np.nan})["value"]
    if share >= rule["frozen_linear_share"]:
        return "frozen", f"linear share {share:.3f} >= {rule['frozen_linear_share']:g}"
    lift = setting.values[setting.best, "hierarchy_lift"]
    said = f"hierarchy lift {lift['value']:.2f} ({setting.best}), 97.5 % of its null"
    if lift["value"] > lift["null_high"]:
        return "semantic", f"{said} below {lift['null_high']:.2f}"
    return "unresolved", f"{said} reach {lift['null_high']:.2f}"


def _rows(setting: _Setting):
    for (estimator, statistic), row in setting.values.items():
        numbers = {name: value for name, value in row.items() if name != "replicates"}
        yield setting.probe | {"estimator": estimator, "statistic": statistic} | numbers


def _lines(sweep: list[_Setting], base: dict) -> dict[tuple[str, float], list[_Setting]]:
    """Settings that differ in gamma alone, by step size, and those that differ in n_beta alone.

    Where the step size falls with gamma, so that ``eps gamma`` is the same and free weights forget
    as fast at every gamma, the settings are a line too, under ``- eps gamma``.
    """
    lines: dict[tuple[str, float], list[_Setting]] = {}
    for setting in sweep:
        probe = setting.probe
        if probe["n_beta"] == base["n_beta"]:
            lines.setdefault(("gamma", probe["step_size"]), []).append(setting)
            product = -float(f"{probe['step_size'] * probe['gamma']:.6g}")
            lines.setdefault(("gamma", product), []).append(setting)
        if probe["gamma"] == base["gamma"] and probe["step_size"] == base["step_size"]:
            lines.setdefault(("n_beta", probe["step_size"]), []).append(setting)
    return {
        line: sorted(found, key=lambda s: s.probe[line[0]])
        for line, found in lines.items()
        if len(found) > 2
    }


def _trends(sweep: list[_Setting], settings: dict) -> pd.DataFrame:
    """Spearman correlation of each statistic with gamma (or n_beta), and its change end to end."""
    rows = []
    for (along, step_size), line in _lines(sweep, settings["base"]).items():
        shared = set.intersection(*(set(setting.values) for setting in line))
        for key in sorted(shared):
            cells = [setting.values[key] for setting in line]
            values = np.array([cell["value"] for cell in cells])
            if not np.isfinite(values).all():
                continue
            rho, p = rank_trend(values), rank_trend_p(values, settings["seed"])
            error = np.nan
            if all(cell["replicates"] is not None for cell in cells):
                without = np.array([cell["replicates"] for cell in cells]).T
                rhos = [rank_trend(row) for row in without if np.isfinite(row).all()]
                error = np.sqrt(len(rhos) - 1) * np.std(rhos) if len(rhos) > 1 else np.nan
            rows.append(
                {
                    "along": along,
                    "step_size": step_size if step_size > 0 else np.nan,
                    "estimator": key[0],
                    "statistic": key[1],
                    "settings": len(line),
                    "lowest": line[0].probe[along],
                    "highest": line[-1].probe[along],
                    "spearman": rho,
                    "spearman_error": error,
                    "p": p,
                    "change": values[-1] - values[0],
                    "change_error": np.hypot(_uncertainty(cells[0]), _uncertainty(cells[-1])),
                }
            )
    return pd.DataFrame(rows)


def _uncertainty(cell: dict) -> float:
    """The larger of the error and the standard deviation of the null, where there is one.

    The jackknife knows nothing of draws that are correlated beyond a block, as at low gamma; the
    statistic of renamed inputs varies with all the noise that is in the kernel.
    """
    null = (cell["null_high"] - cell["null_low"]) / (2 * 1.96)
    return float(np.fmax(cell["error"], null)) if np.isfinite(cell["error"]) else np.nan


def _agreement(sweep: list[_Setting], end: _Setting | None, base: dict) -> pd.DataFrame:
    """CKA of R of every two settings, plain and corrected for noise, with jackknife errors.

    Column ``adjacent``: neighbors along one sweep.
    """
    next_to = {
        frozenset((id(a), id(b)))
        for line in _lines(sweep, base).values()
        for a, b in zip(line[:-1], line[1:], strict=True)
    }
    rows = []
    for estimator in sweep[0].draws:
        of = {id(setting): setting.kernels[estimator] for setting in sweep}
        if end is not None:
            of[id(end)] = end.kernels[LIMIT]
        found = [*sweep, end] if end is not None else sweep
        for first, second in combinations(found, 2):
            parts = list(zip(of[id(first)], of[id(second)], strict=True))
            plain = [cka(a[0], b[0]) for a, b in parts]
            noiseless = [corrected_cka(a[1:], b[1:]) for a, b in parts]
            row = {f"{name}_1": value for name, value in first.probe.items()}
            row |= {f"{name}_2": value for name, value in second.probe.items()}
            row |= {"estimator": estimator}
            row |= {"adjacent": frozenset((id(first), id(second))) in next_to}
            for name, values in (("cka", plain), ("corrected_cka", noiseless)):
                row |= {name: values[0], f"{name}_error": _jackknife(values[1:])}
            rows.append(row)
    return pd.DataFrame(rows)


def _jackknife(replicates: list[float]) -> float:
    """Standard error from delete-one-block values: ``sqrt((b - 1) / b * sum (v - mean v)^2)``."""
    return float(np.sqrt(len(replicates) - 1) * np.std(replicates))


def _write(table: pd.DataFrame, output: Path) -> None:
    with atomic_path(output) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
