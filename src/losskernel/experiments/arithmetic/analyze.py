"""Experiment 1, after sampling: do the kernels separate addition from division?

Each function is one rule of ``workflow/rules/arithmetic.smk``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from losskernel.experiments.arithmetic.statistics import SCORES, alignments, confusion, measurements
from losskernel.experiments.arithmetic.triples import triple_excess
from losskernel.experiments.claims import measured, write_claims
from losskernel.files import read_npz, write_csv, write_npz
from losskernel.kernel.covariance import correlation
from losskernel.kernel.maps import umap_embedding
from losskernel.kernel.neighbors import kernel_distances, neighbors_by_distance
from losskernel.progress import bar
from losskernel.sampling.probe import Probe
from losskernel.semantics.separation import pair_auc
from losskernel.trace import LossTrace

# Other similarities of the same inputs, and what they are called in the table.
BESIDE = {
    "gradients_all": "gradients",
    "untrained": "untrained network",
    "activations": "activations",
    "activations_centered": "activations less their task's mean",
}


def measure(
    traces: list[Path], baselines: list[Path], histories: list[Path], settings: dict, output: Path
) -> None:
    """Separation, R by relation, what is confused, and the baselines' AUC, a row a network.

    ``cka_*`` is the noise-corrected CKA of R with the activations of each layer, ``triples_*`` are
    the fields of :class:`losskernel.experiments.arithmetic.triples.TripleExcess`.
    """
    rows = []
    places = list(zip(traces, baselines, histories, strict=True))
    for trace_path, baseline_path, history in bar(places, "networks", unit="network"):
        trace = LossTrace.load(trace_path)
        told = trace.attributes
        row = {
            "training_seed": told["training_seed"],
            "gamma": Probe.read(told["probe"]).gamma,
            "target_rise": told["target_rise"],
            **measurements(trace),
            **confusion(trace, json.loads(told["network"])["prime"]),
        }
        found = read_npz(baseline_path)
        layers = {
            name.removeprefix("layer_"): found.pop(name)
            for name in list(found)
            if name.startswith("layer_")
        }
        row |= alignments(trace, layers) | _triples(trace, settings["triples"], settings["seed"])
        for name, matrix in found.items():
            for score, of in (("R", np.asarray), ("|R|", np.abs)):
                row[f"{name}_auc_{score}"] = pair_auc(of(matrix), trace.coordinate("task"))
        rows.append(row | json.loads(history.read_text())["accuracy"])
    write_csv(pd.DataFrame(rows), output)


def _triples(trace: LossTrace, settings: dict, seed: int) -> dict[str, float]:
    task = trace.coordinate("task")
    half = settings["inputs"] // 2
    chosen = np.concatenate([np.flatnonzero(task == which)[:half] for which in np.unique(task)])
    losses = trace.losses[..., chosen].reshape(-1, len(chosen))
    found = triple_excess(
        losses, task[chosen], settings["surrogates"], settings["permutations"], seed
    )
    return {f"triples_{name}": value for name, value in asdict(found).items()}


def claims(networks: Path, settings: dict, output: Path) -> None:
    """What the networks say of the paper's numbers, for the comparison."""
    table = pd.read_csv(networks)
    table["gap"] = table["R_mean_within"] - table["R_mean_across"]
    count = len(table)
    mean, error = table.mean(), table.std(ddof=1) / np.sqrt(count)
    network = settings["network"]
    tokens = "shared" if network["shared_operands"] else "separate"
    classes = "shared" if network["shared_outputs"] else "separate"
    where = (
        f"all weights perturbed by N(0, I/gamma), gamma of each network where its mean "
        f"loss rises by {settings['rise']:g} nats ({table['gamma'].min():.2g} to "
        f"{table['gamma'].max():.2g}); p={network['prime']}, {tokens} operand tokens, {classes} "
        f"answer classes, {int(mean['inputs'])} inputs, {int(mean['draws'])} direct draws; recipe "
        f"and rise chosen on other seeds; {count} networks; spread: standard error over networks"
    )
    setting = f"signed R, {where}"

    def row(column: str, where: str = setting, **beside: float) -> dict:
        return measured(mean[column], error[column], count, where, beside=beside)

    found = {
        "arithmetic.auc": row(
            "auc_R",
            lowest=table["auc_R"].min(),
            highest=table["auc_R"].max(),
            **{"sd over networks": table["auc_R"].std(ddof=1)},
            **{"without noise": mean["auc_corrected"]},
            **{f"by {name}": mean[f"auc_{name}"] for name in SCORES if name != "R"},
            **{name: mean[f"{column}_auc_R"] for column, name in BESIDE.items()},
        ),
        "arithmetic.within_task": row(
            "gap", **{name: mean[f"R_mean_{name}"] for name in ("within", "addition", "division")}
        ),
        "arithmetic.cross_task": row(
            "R_mean_across",
            **{
                f"sd {name} without noise": mean[f"R_spread_{name}"]
                for name in ("across", "within")
            },
        ),
        "arithmetic.rise": row("rise", **{"loss at the trained weights": mean["initial_loss"]}),
        "arithmetic.auc_gradients_qkv": row(
            "gradients_QKV_auc_|R|",
            "no loss kernel: magnitude of the cosine of loss gradients in the query, key and value "
            f"weights, a group that was chosen by its AUC; {count} networks; spread: standard "
            "error over networks",
            signed=mean["gradients_QKV_auc_R"],
        ),
    }
    worst = table["triples_p"].sort_values().to_numpy() * np.arange(count, 0, -1)
    found["triples.within_task"] = measured(
        mean["triples_value"],
        error["triples_value"],
        count,
        f"third cumulants of standardized losses, triples of one task less mixed ones, less those "
        f"of a normal copula with the same marginals and pairs; {where}",
        null=max(mean["triples_sampling_null"], mean["triples_permutation_null"]),
        beside={
            "before the pairs' share is taken off": mean["triples_before"],
            "networks below p = 0.05 by Holm's rule": float(
                np.cumprod(np.maximum.accumulate(worst) < 0.05).sum()
            ),
        },
    )
    layers = [name for name in table if name.startswith("cka_")]
    found["activations.cka"] = measured(
        mean["cka_normalized"],
        error["cka_normalized"],
        count,
        f"R against activations before the unembedding, without noise and diagonals; {where}",
        beside={name.removeprefix("cka_"): mean[name] for name in layers},
    )
    write_claims(found, output)


def kernel(trace: Path, settings: dict, output: Path) -> None:
    """What figure 3 shows of one trace: R ordered by task, and the embedding from signed R."""
    loaded = LossTrace.load(trace)
    order = np.lexsort([loaded.coordinate(name) for name in ("b", "a", "task")])
    r = correlation(loaded.losses)[np.ix_(order, order)]
    graph = neighbors_by_distance(kernel_distances(r), settings["neighbors"])
    arrays = {"R": r.astype(np.float32), "embedding": umap_embedding(*graph, seed=settings["seed"])}
    arrays |= {name: loaded.coordinate(name)[order] for name in ("task", "a", "b")}
    write_npz(output, **arrays)
