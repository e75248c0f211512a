"""Experiment 2: the loss kernel of an image classifier against the WordNet hierarchy.

Section 4.2 of the paper. Each function is one rule of ``workflow/rules/imagenet.smk``. What needs
images (:func:`sample`, :func:`features`, :func:`evaluate`) writes intermediates without a pixel in
them; all that follows reads those.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from losskernel.data.images import WnidImages, imagenet_wnids, load_images
from losskernel.diagnostics import (
    cka_curve,
    convergence,
    effective_rank,
    noise_floor,
    shifted,
    split_half_cka,
)
from losskernel.errors import ConfigError
from losskernel.files import atomic_path
from losskernel.geometry import kernel_distances, nearest_neighbors, umap_embedding
from losskernel.inputs import fingerprint
from losskernel.kernel import correlation, self_covariance
from losskernel.models.loader import Classifier, load_classifier
from losskernel.probe import Probe
from losskernel.progress import bar
from losskernel.sampling import cross_entropy, sample_losses
from losskernel.seeds import numpy_generator
from losskernel.taxonomy import (
    Hierarchy,
    coarse_groups,
    hierarchy_order,
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


def join(traces: list[Path], output: Path) -> None:
    """Join the chains of one setting into one trace, each cut to the shortest chain's draws."""
    loaded = [LossTrace.load(trace) for trace in traces]
    draws = min(trace.dataset.sizes["draw"] for trace in loaded)
    concatenate([LossTrace(t.dataset.isel(draw=slice(draws))) for t in loaded]).save(output)


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


def _jackknife(losses: np.ndarray, blocks: int):
    """Losses with one of ``blocks`` stretches of consecutive draws left out, in turn.

    Not a bootstrap: drawing draws twice lowers their number and with it every neighbor statistic.
    """
    for left_out in np.array_split(np.arange(losses.shape[1]), blocks):
        yield np.delete(losses, left_out, axis=1)


def _jackknife_error(values: list) -> np.ndarray:
    """Standard error from delete-one-block values: ``sqrt((b - 1) / b * sum (v - mean v)^2)``."""
    return np.sqrt(len(values) - 1) * np.std(values, axis=0)


def _graph(similarity: np.ndarray, labels: np.ndarray, k: int):
    return nearest_neighbors(kernel_distances(similarity), k, exclude_labels=labels)


def analyze(
    trace: Path,
    features: Path,
    hierarchy: Path,
    settings: dict,
    output: Path,
    output_lift: Path,
    output_convergence: Path,
) -> None:
    """Kernel, neighbors, lift by depth, rank correlation and convergence of one trace.

    Writes arrays for the figures (``output``, npz), the lift table and the convergence table. Each
    statistic is given for the loss kernel with its standard error (jackknife over blocks of draws),
    for the time-shifted null (noise floor), and for the cosine of penultimate features (baseline).
    """
    loaded, tree = LossTrace.load(trace), Hierarchy.from_file(hierarchy)
    losses, labels = loaded.losses, loaded.coordinate("label")
    depth = tree.lowest_common_hypernym_depth
    k, seed, blocks = settings["neighbors"], settings["seed"], settings["jackknife_blocks"]
    ks = [n for n in settings["lift_neighbors"] if n <= k]
    r = correlation(losses)
    kernels = {"loss kernel": r, "penultimate features": None, "time-shifted null": None}
    kernels["penultimate features"] = _feature_kernel(features, loaded.coordinate("name"))
    kernels["time-shifted null"] = correlation(shifted(losses, seed))
    depths = np.arange(1, depth.max() + 1)
    wu_palmer = tree.wu_palmer[np.ix_(labels, labels)]
    lifts, summary = [], {}
    indices, distances = {}, {}
    for name, similarity in kernels.items():
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
    for fewer in bar(_jackknife(losses, blocks), "jackknife", total=blocks):
        similarity = correlation(fewer)
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
    draws = losses.shape[1]
    counts = np.unique(np.geomspace(4, draws, 20).astype(int))
    halves = np.unique(np.geomspace(2, max(2, draws // 2 - draws // 10), 12).astype(int))
    curve = pd.concat(
        [
            pd.DataFrame({"draws": counts, "cka": cka_curve(losses, counts), "kind": "to final"}),
            pd.DataFrame(
                {"draws": halves, "cka": split_half_cka(losses, halves), "kind": "split halves"}
            ),
            pd.DataFrame(
                {
                    "draws": halves,
                    "cka": split_half_cka(shifted(losses, seed), halves),
                    "kind": "split halves, time-shifted null",
                }
            ),
        ]
    )
    summary["random pairs"] = {"common_depth": mean_pair_depth(depth, labels)}
    summary["convergence"] = {
        "noise_floor": noise_floor(losses, seed=seed),
        "sd_R": float(r[~np.eye(len(r), dtype=bool)].std()),
        "effective_rank": effective_rank(losses),
        "median_ess": float(np.median(checks.ess)),
        "median_rhat": float(np.median(checks.rhat)),
        "drift": checks.drift,
        "drift_error": checks.drift_error,
        "initial_loss": float(loaded.initial_loss.mean()),
        "mean_loss": float(losses.mean()),
        "chains": losses.shape[0],
        "draws": draws,
        "inputs": losses.shape[2],
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
        curve.to_csv(temporary, index=False)


def _lift_rows(kernel: str, statistic: str, ks, depths, values: np.ndarray) -> pd.DataFrame:
    grid = pd.MultiIndex.from_product([ks, depths], names=["k", "depth"])
    return pd.DataFrame(
        {"kernel": kernel, "statistic": statistic, "lift": np.ravel(values)}, grid
    ).reset_index()
