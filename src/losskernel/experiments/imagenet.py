"""Experiment 2: the loss kernel of an image classifier against the WordNet hierarchy.

Section 4.2 of the paper. Each function is one rule of ``workflow/rules/imagenet.smk``. What needs
images (:func:`sample`, :func:`features`, :func:`evaluate`) writes intermediates without a pixel in
them; all that follows reads those.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from losskernel.control_variate import (
    control_variate_kernel,
    control_variate_null,
    limit_kernel,
    normalize,
)
from losskernel.data.images import WnidImages, imagenet_wnids, load_images
from losskernel.diagnostics import cka, convergence, effective_rank, shifted
from losskernel.errors import ConfigError, TraceError
from losskernel.files import atomic_path
from losskernel.geometry import kernel_distances, nearest_neighbors, umap_embedding
from losskernel.hierarchy import Hierarchy, coarse_groups, hierarchy_order
from losskernel.inputs import fingerprint
from losskernel.kernel import correlation, covariance, self_covariance
from losskernel.linear_response import linear_part, write_coupled_displacements
from losskernel.models.loader import Classifier, load_classifier
from losskernel.per_sample_gradients import Gradients, per_sample_gradients
from losskernel.probe import Probe
from losskernel.progress import bar
from losskernel.sampling import cross_entropy, sample_losses
from losskernel.seeds import numpy_generator
from losskernel.taxonomy import (
    hierarchy_rank_correlation,
    lift_by_k,
    mean_common_depth,
    mean_pair_depth,
    shuffled_null,
)
from losskernel.trace import LossTrace, concatenate


def _load(settings: dict) -> tuple[Classifier, WnidImages, tuple[Tensor, Tensor]]:
    classifier = load_classifier(
        settings["model"], settings["weights"], settings["image_size"], settings["seed"]
    )
    images = WnidImages(
        settings["image_folder"], classifier.preprocess, per_class=settings["per_class"]
    )
    if settings["max_inputs"] and len(images) > settings["max_inputs"]:
        rng = numpy_generator(settings["seed"], "order")
        kept = rng.choice(len(images), settings["max_inputs"], replace=False)
        images.drop(np.setdiff1d(np.arange(len(images)), kept).tolist())
    return classifier, images, load_images(images, settings["skip_unreadable"])


def generate(settings: dict, output: Path) -> None:
    """Class folders of random textures, to run the whole chain where there are no photographs.

    Images of a class share a base color, so that neighbors mean something.
    """
    rng = numpy_generator(settings["seed"], "init")
    wnids = np.array(imagenet_wnids())[rng.choice(1000, settings["classes"], replace=False)]
    for wnid in wnids:
        color = rng.integers(40, 216, 3)
        for number in range(settings["per_class"]):
            noise = rng.normal(0, 40, (settings["side"], settings["side"], 3))
            pixels = np.clip(color + noise, 0, 255).astype(np.uint8)
            with atomic_path(output / wnid / f"{wnid}_{number}.png") as temporary:
                Image.fromarray(pixels).save(temporary)


def sample(settings: dict, chain: int, journal: Path, output: Path) -> None:
    """Sample one chain around the published weights, resumable, into a loss trace.

    The minibatch gradients come from the probe images themselves: the training set of the published
    network is not assumed to be there.
    """
    classifier, images, data = _load(settings)
    sampling = dict(settings["sampling"])
    sampling.pop("chains")
    trace = sample_losses(
        classifier.model,
        data,
        Probe(**settings["probe"]),
        seed=settings["seed"],
        chains=1,
        chain_ids=[chain],
        journal=journal,
        input_coords={"label": images.labels, "wnid": images.wnids, "name": images.names},
        **sampling,
    )
    trace.dataset.attrs |= {
        "model": settings["model"],
        "weights": Path(settings["weights"]).name,
        "image_size": settings["image_size"] or 0,
        "images": Path(settings["image_folder"]).name,
    }
    trace.save(output)


def gradients(settings: dict, output: Path) -> None:
    """Loss gradient of every image at the published weights: 2 bytes an image and parameter."""
    classifier, _, data = _load(settings)
    per_sample_gradients(
        classifier.model, data, output, parameters=settings["sampling"].get("parameters", "all")
    )


def join(
    traces: list[Path],
    journals: list[Path],
    output: Path,
    gradients: Path | None = None,
) -> None:
    """Join the chains of one setting into one trace, each cut to the shortest chain's draws.

    With ``gradients``, the trace carries the linear part of every loss, at the displacement of a
    chain without the loss that the same noise moves.
    """
    loaded = [LossTrace.load(trace) for trace in traces]
    draws = min(trace.dataset.sizes["draw"] for trace in loaded)
    joined = concatenate([LossTrace(t.dataset.isel(draw=slice(draws))) for t in loaded])
    if gradients is not None:
        with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
            coupled = [Path(scratch) / str(number) for number in range(len(journals))]
            for journal, folder in zip(journals, coupled, strict=True):
                write_coupled_displacements(journal, folder)
            linear = np.full(joined.dataset["loss"].shape, np.nan, np.float32)
            linear[~joined.diverged] = linear_part(Gradients.load(gradients), coupled, draws)
        joined = LossTrace(joined.dataset.assign(linear=(joined.dataset["loss"].dims, linear)))
    joined.save(output)


@torch.inference_mode()
def features(settings: dict, output: Path) -> None:
    """Penultimate features of the same images: the baseline kernel is their cosine.

    Captured at the input of the model's last linear layer, whichever model it is.
    """
    classifier, images, (inputs, _) = _load(settings)
    linear = [m for m in classifier.model.modules() if isinstance(m, torch.nn.Linear)]
    if not linear:
        raise ConfigError(f"model: '{settings['model']}' has no linear layer to read features at")
    captured = []
    hook = linear[-1].register_forward_pre_hook(lambda _, args: captured.append(args[0].flatten(1)))
    for block in bar(inputs.split(50), "features", unit="block"):
        classifier.model(block)
    hook.remove()
    with atomic_path(output) as temporary:
        np.savez_compressed(
            temporary,
            features=torch.cat(captured).numpy().astype(np.float16),
            name=images.names,
        )


@torch.inference_mode()
def evaluate(settings: dict, output: Path) -> None:
    """Accuracy and mean cross-entropy of the model on the images, before any perturbation."""
    classifier, images, (inputs, labels) = _load(settings)
    blocks = bar(inputs.split(50), "evaluate", unit="block")
    logits = torch.cat([classifier.model(block) for block in blocks])
    top5 = logits.topk(5).indices
    result = {
        "model": settings["model"],
        "image_size": settings["image_size"],
        "images": len(images),
        "top1": (top5[:, 0] == labels).float().mean().item(),
        "top5": (top5 == labels[:, None]).any(1).float().mean().item(),
        "cross_entropy": cross_entropy(logits, labels).mean().item(),
        "weights_sha256": fingerprint([*classifier.model.state_dict().values()]),
    }
    with atomic_path(output) as temporary:
        temporary.write_text(json.dumps(result, indent=1))


def hierarchy(output: Path, nltk_data: Path | None = None) -> None:
    """The WordNet hierarchy above the 1,000 ILSVRC classes, as a small file."""
    Hierarchy.from_wnids(imagenet_wnids(), nltk_data or os.environ.get("NLTK_DATA")).to_file(output)


def _feature_kernel(features: Path, names: np.ndarray) -> np.ndarray:
    with np.load(features) as stored:
        position = {name: i for i, name in enumerate(stored["name"])}
        values = stored["features"][[position[name] for name in names]].astype(np.float64)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values @ values.T


def _jackknife_error(values: list) -> np.ndarray:
    """Standard error from delete-one-block values: ``sqrt((b - 1) / b * sum (v - mean v)^2)``."""
    return np.sqrt(len(values) - 1) * np.std(values, axis=0)


def _graph(similarity: np.ndarray, labels: np.ndarray, k: int):
    return nearest_neighbors(kernel_distances(similarity), k, exclude_labels=labels)


@dataclass(frozen=True)
class _Draws:
    """Losses of a trace and, where gradients are known, what makes a control variate of them."""

    losses: np.ndarray  # (chain, draw, input)
    linear: np.ndarray | None = None  # the same shape
    known: np.ndarray | None = None  # (input, input)

    def at(self, draws) -> _Draws:
        """Some draws of every chain."""
        linear = None if self.linear is None else self.linear[:, draws]
        return _Draws(self.losses[:, draws], linear, self.known)

    @property
    def kernel(self) -> np.ndarray:
        if self.linear is None:
            return covariance(self.losses)
        return control_variate_kernel(self.losses, self.linear, self.known)

    @property
    def r(self) -> np.ndarray:
        return normalize(self.kernel)

    def null(self, seed: int) -> np.ndarray:
        """R of inputs that have nothing in common but the sampling noise."""
        if self.linear is None:
            return correlation(shifted(self.losses, seed))
        return control_variate_null(self.losses, self.linear, self.kernel, seed)


def analyze(
    trace: Path,
    features: Path,
    hierarchy: Path,
    settings: dict,
    output: Path,
    output_lift: Path,
    output_convergence: Path,
    limit: Path | None = None,
) -> None:
    """Kernel, neighbors, lift by depth, rank correlation and convergence of one trace.

    Writes arrays for the figures (``output``, npz), the lift table and the convergence table. Each
    statistic is given for the loss kernel with its standard error (jackknife over blocks of draws),
    for the time-shifted null (noise floor), and for the cosine of penultimate features (baseline).
    With ``limit``, the loss kernel is estimated with the control variate; its estimate from the
    draws alone and the exact limit stand beside it.
    """
    loaded, tree = LossTrace.load(trace), Hierarchy.from_file(hierarchy)
    losses, labels = loaded.losses, loaded.coordinate("label")
    depth = tree.lowest_common_hypernym_depth
    k, seed, blocks = settings["neighbors"], settings["seed"], settings["jackknife_blocks"]
    ks = [n for n in settings["lift_neighbors"] if n <= k]
    draws = _draws(loaded, limit)
    r, null_r = draws.r, draws.null(seed)
    kernels = {"loss kernel": r}
    if limit is not None:
        kernels["loss kernel, draws alone"] = correlation(losses)
        kernels["exact limit"] = normalize(draws.known)
    kernels["penultimate features"] = _feature_kernel(features, loaded.coordinate("name"))
    kernels["time-shifted null"] = null_r
    depths = np.arange(1, depth.max() + 1)
    wu_palmer = tree.wu_palmer[np.ix_(labels, labels)]
    lifts, summary = [], {}
    indices, distances = {}, {}
    for name, similarity in bar(kernels.items(), "kernels", unit="kernel"):
        indices[name], distances[name] = _graph(similarity, labels, k)
        values = lift_by_k(indices[name], depth, depths, ks, labels)
        lifts.append(_lift_rows(name, "value", ks, depths, values))
        rank = hierarchy_rank_correlation(
            similarity, wu_palmer, permutations=settings["permutations"], seed=seed
        )
        summary[name] = {
            "spearman": rank.correlation,
            "spearman_p": rank.p_value,
            "common_depth": mean_common_depth(indices[name], depth, labels),
        }
    without_block = {"lift": [], "common_depth": [], "spearman": []}
    for left_out in bar(
        np.array_split(np.arange(losses.shape[1]), blocks), "jackknife", unit="block"
    ):
        # Not a bootstrap: drawing draws twice lowers their number, and with it every statistic.
        similarity = draws.at(np.setdiff1d(np.arange(losses.shape[1]), left_out)).r
        graph, _ = _graph(similarity, labels, k)
        without_block["lift"].append(lift_by_k(graph, depth, depths, ks, labels))
        without_block["common_depth"].append(mean_common_depth(graph, depth, labels))
        rank = hierarchy_rank_correlation(similarity, wu_palmer, permutations=1, seed=seed)
        without_block["spearman"].append(rank.correlation)
    error = {name: _jackknife_error(values) for name, values in without_block.items()}
    lifts.append(_lift_rows("loss kernel", "standard_error", ks, depths, error.pop("lift")))
    summary["loss kernel"] |= {f"{name}_error": float(value) for name, value in error.items()}
    null = shuffled_null(
        indices["loss kernel"],
        depth,
        lambda graph, matrix, classes: lift_by_k(graph, matrix, depths, ks, classes),
        permutations=settings["permutations"],
        seed=seed,
        labels=labels,
    )
    for statistic, values in (
        ("value", null.mean),
        ("quantile_low", null.quantiles[0]),
        ("quantile_high", null.quantiles[1]),
    ):
        lifts.append(_lift_rows("label-shuffled null", statistic, ks, depths, values))
    _, position = hierarchy_order(tree)
    group, group_names = coarse_groups(tree)
    checks = convergence(losses)
    off = ~np.eye(len(r), dtype=bool)
    summary["random pairs"] = {"common_depth": mean_pair_depth(depth, labels)}
    summary["convergence"] = {
        "noise_floor": float(null_r[off].std()),
        "sd_R": float(r[off].std()),
        "effective_rank": effective_rank(losses),
        "median_ess": float(np.nanmedian(checks.ess)),
        "median_rhat": float(np.nanmedian(checks.rhat)),
        "drift": checks.drift,
        "drift_error": checks.drift_error,
        "initial_loss": float(loaded.initial_loss.mean()),
        "mean_loss": float(losses.mean()),
        "chains": losses.shape[0],
        "draws": losses.shape[1],
        "inputs": losses.shape[2],
    }
    if limit is not None:
        plain_null = correlation(shifted(losses, seed))
        summary["convergence"] |= {
            "plain_noise_floor": float(plain_null[off].std()),
            "cka_to_limit": cka(r, kernels["exact limit"]),
            "plain_cka_to_limit": cka(kernels["loss kernel, draws alone"], kernels["exact limit"]),
            # Share of the losses' variance that is linear in the displacement of the weights.
            "linear_share": float(
                1 - np.trace(covariance(losses - draws.linear)) / np.trace(covariance(losses))
            ),
        }
    near = settings["map_neighbors"]

    def embed(name: str) -> np.ndarray:
        return umap_embedding(indices[name][:, :near], distances[name][:, :near], seed=seed)

    leaf = np.argsort(position[labels], kind="stable")
    with atomic_path(output) as temporary:
        np.savez_compressed(
            temporary,
            R=r[np.ix_(leaf, leaf)].astype(np.float16),
            hierarchy_depth=depth[np.ix_(labels[leaf], labels[leaf])].astype(np.int8),
            embedding=embed("loss kernel"),
            features_embedding=embed("penultimate features"),
            neighbors=indices["loss kernel"],
            self_covariance=self_covariance(losses),
            label=labels,
            class_name=np.array(tree.names)[labels],
            position=position[labels],
            group=group[labels],
            group_names=np.array(group_names),
            name=loaded.coordinate("name"),
            summary=json.dumps(summary),
        )
    with atomic_path(output_lift) as temporary:
        pd.concat(lifts).to_csv(temporary, index=False)
    with atomic_path(output_convergence) as temporary:
        _convergence_curves(draws, kernels.get("exact limit"), seed).to_csv(temporary, index=False)


def _draws(trace: LossTrace, limit: Path | None) -> _Draws:
    if limit is None:
        return _Draws(trace.losses)
    probe = json.loads(trace.attributes["probe"])
    with np.load(limit) as stored:
        for key in ("weights_sha256", "inputs_sha256"):
            if str(stored[key]) != trace.attributes[key]:
                raise TraceError(
                    f"{limit}: made with another {key} than the trace; make both from one model "
                    "and one set of images"
                )
        known = limit_kernel(stored["gram"], Probe(**{**probe, "n_beta": 0}))
    return _Draws(trace.losses, trace.dataset["linear"].values[~trace.diverged], known)


def _convergence_curves(draws: _Draws, limit: np.ndarray | None, seed: int) -> pd.DataFrame:
    """CKA of R against draws: to the final R, between halves of the run, to the exact limit."""
    number = draws.losses.shape[1]
    counts = np.unique(np.geomspace(4, number, 20).astype(int))
    halves = np.unique(np.geomspace(4, max(4, number // 2 - number // 10), 12).astype(int))
    half = (np.arange(number) // max(1, number // 10)) % 2
    even, odd = draws.at(half == 0), draws.at(half == 1)
    alone, final = _Draws(draws.losses), draws.r
    null = _Draws(shifted(draws.losses, seed))

    def split(first: _Draws, second: _Draws) -> list[float]:
        return [cka(first.at(slice(n)).r, second.at(slice(n)).r) for n in halves]

    curves = [
        ("to final", counts, [cka(draws.at(slice(n)).r, final) for n in counts]),
        ("split halves", halves, split(even, odd)),
        (
            "split halves, time-shifted null",
            halves,
            split(null.at(half == 0), null.at(half == 1)),
        ),
    ]
    if limit is not None:
        curves[2:2] = [
            ("split halves, draws alone", halves, split(alone.at(half == 0), alone.at(half == 1))),
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


def _lift_rows(kernel: str, statistic: str, ks, depths, values: np.ndarray) -> pd.DataFrame:
    grid = pd.MultiIndex.from_product([ks, depths], names=["k", "depth"])
    return pd.DataFrame(
        {"kernel": kernel, "statistic": statistic, "lift": np.ravel(values)}, grid
    ).reset_index()
