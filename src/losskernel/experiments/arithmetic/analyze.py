"""Experiment 1, after sampling: do the kernels separate addition from division?

Each function is one rule of ``workflow/rules/arithmetic.smk``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.experiments.arithmetic.statistics import SCORES, estimate, measurements
from losskernel.experiments.claims import measured, write_claims
from losskernel.files import atomic_path
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.maps import umap_embedding
from losskernel.kernel.neighbors import kernel_distances, neighbors_by_distance
from losskernel.progress import bar
from losskernel.trace import LossTrace

KEY = ("group", "training_seed", "sampling_seed")


def measure(traces: list[Path], limits: list[Path], history: Path, output: Path) -> None:
    """Separation, R by pair of tasks and convergence of one network's traces, a row each."""
    by_group = {}
    for path in limits:
        with np.load(path) as stored:
            by_group[str(stored["group"])] = stored["gram"]
    trained = json.loads(history.read_text())
    rows = []
    for path in bar(traces, "traces", unit="trace"):
        trace = LossTrace.load(path)
        key = {name: trace.attributes[name] for name in KEY}
        rows.append(key | measurements(trace, by_group[key["group"]]) | trained["accuracy"])
    with atomic_path(output) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def summarize(rows: list[Path], output: Path, output_summary: Path) -> None:
    """All measurements in one table, and their mean and spread over seeds in another.

    The spread ``sd`` is the standard deviation over training seeds of the mean over sampling seeds:
    the sampling seeds of one network are not independent replications of training. ``sd_sampling``
    is the standard deviation over sampling seeds within a network.
    """
    table = pd.concat([pd.read_csv(path) for path in rows], ignore_index=True)
    values = [name for name in table if name not in KEY]
    by_network = table.groupby(["group", "training_seed"], sort=False)[values]
    means, spreads = by_network.mean(), by_network.std(ddof=1)
    summary = pd.concat(
        {
            "mean": means.groupby("group", sort=False).mean(),
            "sd": means.groupby("group", sort=False).std(ddof=1),
            "sd_sampling": spreads.groupby("group", sort=False).mean(),
        },
        names=["statistic"],
    )
    summary["networks"] = table["training_seed"].nunique()
    for frame, path, index in ((table, output, False), (summary, output_summary, True)):
        with atomic_path(path) as temporary:
            frame.to_csv(temporary, index=index)


def claims(summary: Path, rows: Path, settings: dict, output: Path) -> None:
    """What the networks say of the paper's numbers, for the comparison."""
    table = pd.read_csv(summary).set_index(["statistic", "group"])
    group, score = settings["figure_group"], settings["score"]
    mean, sd = table.loc[("mean", group)], table.loc[("sd", group)]
    networks = int(mean["networks"])
    network = settings["network"]
    tokens = "shared" if network["shared_operands"] else "separate"
    classes = "shared" if network["shared_outputs"] else "separate"
    probe = settings["groups"][group].get("probe", settings["probe"])
    setting = (
        f"score {score}; n_beta={probe['n_beta']:g}, gamma={probe['gamma']:g}, "
        f"eps={probe['step_size']:g}; p={network['prime']}, {tokens} operand tokens, {classes} "
        f"answer classes, {int(mean['inputs'])} inputs, weights perturbed: {group}; {networks} "
        f"training x {len(settings['sampling_seeds'])} sampling seeds of {int(mean['chains'])} "
        f"chains x {int(mean['draws'])} draws, linear part as control variate; spread: sd over "
        f"networks; {settings['selection'] or 'no setting was chosen by it'}"
    )
    others = {f"by {name}": mean[f"auc_{name}"] for name in SCORES if name != score}
    others["without control variate"] = mean[f"plain_auc_{score}"]
    others["exact limit"] = mean[f"limit_auc_{score}"]
    if group != "all" and ("mean", "all") in table.index:
        whole = table.loc[("mean", "all")]
        others |= {f"all weights by {name}": whole[f"auc_{name}"] for name in SCORES}
    within = (mean["R_sd_addition"] + mean["R_sd_division"]) / 2 / mean["R_sd_across"]
    seeds = pd.read_csv(rows)
    seeds = seeds[seeds["group"] == group].groupby("training_seed").mean(numeric_only=True)
    ratios = (seeds["R_sd_addition"] + seeds["R_sd_division"]) / 2 / seeds["R_sd_across"]
    spreads = ("R_sd_addition", "R_sd_division", "R_sd_across", "noise_floor")
    means = ("R_mean_addition", "R_mean_division")
    found = {
        "arithmetic.auc": measured(
            mean[f"auc_{score}"], sd[f"auc_{score}"], networks, setting, beside=others
        ),
        "arithmetic.within_task": measured(
            within,
            ratios.std(ddof=1),
            networks,
            setting,
            beside={name: mean[name] for name in spreads},
        ),
        "arithmetic.cross_task": measured(
            mean["R_mean_across"],
            sd["R_mean_across"],
            networks,
            setting,
            beside={name: mean[name] for name in means},
        ),
    }
    write_claims(found, output)


def kernel(trace: Path, limit: Path, settings: dict, output: Path) -> None:
    """What figure 3 shows of one trace: K and R ordered by task, and the embedding.

    The embedding's distances are those of |R|: pairs of one task covary with both signs.
    """
    loaded = LossTrace.load(trace)
    with np.load(limit) as stored:
        k, floor = estimate(loaded, stored["gram"])
    r = normalize(k)
    order = np.lexsort([loaded.coordinate(name) for name in ("b", "a", "task")])
    graph = neighbors_by_distance(kernel_distances(np.abs(r)), settings["neighbors"])
    arrays = {
        "K": k[np.ix_(order, order)].astype(np.float32),
        "R": r[np.ix_(order, order)].astype(np.float32),
        "embedding": umap_embedding(*graph, seed=settings["seed"])[order],
        "noise_floor": floor,
    }
    arrays |= {name: loaded.coordinate(name)[order] for name in ("task", "a", "b")}
    with atomic_path(output) as temporary:
        np.savez_compressed(temporary, **arrays)
