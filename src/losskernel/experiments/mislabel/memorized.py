"""Experiment 4, the case that matters in practice: wrong labels that a network has memorized.

Labels are flipped before training (:func:`on_digits`, :func:`on_features`), or inputs come several
times in the training set (:func:`copies`). Each function is one rule of
``workflow/rules/mislabel.smk``.

Draw 0 chooses the probe (:func:`losskernel.sampling.pilot.propose_probe`: a given rise of the mean
loss under the given labels, blind to which are wrong) and is used for nothing else. Every further
draw is a network of its own: other wrong labels, another initialization, and of the digits other
inputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from losskernel.data.tiny_imagenet import LabeledImages, load_tiny_imagenet
from losskernel.errors import ConfigError
from losskernel.experiments.mislabel import setup
from losskernel.experiments.mislabel.labels import detection, flip_labels
from losskernel.experiments.mislabel.setup import Problem
from losskernel.files import write_csv, write_npz
from losskernel.gradients.per_sample import gradient_norms
from losskernel.kernel.covariance import correlation_blocks, self_covariance, slices
from losskernel.kernel.neighbors import extremes, nearest_neighbors, vote
from losskernel.models.features import penultimate_features
from losskernel.models.loader import Classifier, load_classifier
from losskernel.progress import bar
from losskernel.sampling.inputs import state_fingerprint
from losskernel.sampling.pilot import propose_probe
from losskernel.sampling.probe import Probe
from losskernel.sampling.sample import sample_losses
from losskernel.seeds import numpy_generator
from losskernel.training.train import evaluate

OURS = "self-covariance"


def features(settings: dict, output: Path) -> None:
    """Penultimate features of Tiny ImageNet's images, without a pixel in them (npz, float16).

    ``settings``: ``archive``, ``train_per_class`` and ``test_per_class`` (images of each class, of
    the archive's training and validation images), and ``model``, ``weights``, ``image_size`` and
    ``seed`` for :func:`losskernel.models.loader.load_classifier`.
    """
    classifier = load_classifier(
        settings["model"], settings["weights"], settings["image_size"], settings["seed"]
    )
    arrays: dict[str, np.ndarray] = {}
    for name, split in (("train", "train"), ("test", "val")):
        images = load_tiny_imagenet(settings["archive"], split, settings[f"{name}_per_class"])
        blocks = bar(list(slices(len(images), 50)), f"{name} features", unit="block")
        found = penultimate_features(
            classifier.model, (_preprocessed(classifier, images, block) for block in blocks)
        )
        arrays[f"{name}_features"] = found.numpy().astype(np.float16)
        arrays[f"{name}_label"] = images.labels.numpy().astype(np.int16)
    source = {key: settings[key] for key in ("model", "image_size")} | {
        "weights_sha256": state_fingerprint(classifier.model),
        "archive": Path(settings["archive"]).name,
    }
    write_npz(output, **arrays, wnids=np.array(images.wnids), source=json.dumps(source))


def _preprocessed(classifier: Classifier, images: LabeledImages, block: slice) -> Tensor:
    pixels = images.pixels[block].permute(0, 2, 3, 1).numpy()
    inputs = torch.stack([classifier.preprocess(Image.fromarray(image)) for image in pixels])
    return inputs.contiguous(memory_format=torch.channels_last)


def _out_of_sample(
    settings: dict, problem: Problem, given: Tensor, seed: int
) -> tuple[np.ndarray, float]:
    """Class probabilities ``(input, class)`` by networks that did not see the input; seconds."""
    from sklearn.model_selection import StratifiedKFold  # here, as it is slow to import

    folds = settings["folds"]
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(given, given)
    probabilities, seconds = np.empty((len(given), problem.classes)), 0.0
    for kept, held_out in splits:
        fit = setup.fit(settings, problem, problem.inputs[kept], given[kept], seed, 1 - 1 / folds)
        with torch.inference_mode():
            probabilities[held_out] = fit.model(problem.inputs[held_out]).double().softmax(1)
        seconds += fit.seconds
    return probabilities, seconds


def _scores(
    settings: dict, problem: Problem, given: Tensor, probe: Probe, pilot_seconds: float, seed: int
) -> tuple[dict[str, tuple[np.ndarray, float]], dict, dict]:
    """Every method's score and seconds beyond the training; facts on the run; suggested labels.

    Nothing here knows which labels are wrong.
    """
    from cleanlab.filter import find_label_issues  # here, as it is slow to import
    from cleanlab.rank import get_label_quality_scores

    data = (problem.inputs, given)
    fit = setup.fit(settings, problem, *data, seed)
    model = fit.model
    losses, loss_seconds = setup.timed(setup.losses_of, model, *data)
    gradients, gradient_seconds = setup.timed(gradient_norms, model, data)
    trace, sample_seconds = setup.timed(
        sample_losses, model, data, probe, seed=seed, progress=False, **settings["sampling"]
    )
    sample_seconds += pilot_seconds
    probabilities, fold_seconds = _out_of_sample(settings, problem, given, seed)
    labels = given.numpy()
    quality, cleanlab_seconds = setup.timed(get_label_quality_scores, labels, probabilities)
    scores = {
        OURS: (self_covariance(trace.losses), sample_seconds),
        "mean loss under the probe": (trace.losses.mean(axis=(0, 1)), sample_seconds),
        "gradient norm (exact limit)": (gradients**2, gradient_seconds),
        "loss": (losses, loss_seconds),
        "area under the margin": (-fit.margins.area, loss_seconds * fit.margins.evaluations),
        "confident learning": (1 - quality, fold_seconds + cleanlab_seconds),
    }
    k = settings["neighbors"]
    near = nearest_neighbors(trace.losses, k)
    _, _, opposed, values = extremes(correlation_blocks(trace.losses), k, labels)
    suggested = {
        "nearest": vote(*near, labels)[0],
        "opposed": vote(opposed, -values, labels)[0],
        "out of sample": probabilities.argmax(1),
    }
    facts = {
        "train_seconds": fit.seconds,
        "training_loss": losses.mean(),
        "rise": trace.losses.mean() - losses.mean(),
        "drift": setup.drift(trace.losses),
        "test_accuracy": evaluate(model, problem.test_inputs, problem.test_labels)[1],
        "wrong": (model(problem.inputs).argmax(1) != given).numpy(),
        "flagged": find_label_issues(labels, probabilities, n_jobs=1),
    }
    return scores, facts, suggested


def on_digits(settings: dict, output: Path, output_summary: Path, output_scores: Path) -> None:
    """Labels of digits flipped before training: who finds them? A network on raw pixels.

    Writes a row a share, draw and method; the mean and spread over draws, with the paired lead of
    self-covariance; and the self-covariances themselves for the figure (npz).
    """
    _detect(
        settings,
        lambda draw: setup.digits(settings["inputs"], draw),
        output,
        output_summary,
        output_scores,
    )


def on_features(
    settings: dict, features: Path, output: Path, output_summary: Path, output_scores: Path
) -> None:
    """Labels of photographs flipped before training a head on the features of a trained network.

    Writes what :func:`on_digits` does. The inputs are the same in all draws; the wrong labels, the
    initialization and the sampling differ.
    """
    problem = setup.stored_features(features)
    _detect(settings, lambda draw: problem, output, output_summary, output_scores)


def _detect(
    settings: dict,
    problem_of: Callable[[int], Problem],
    output: Path,
    output_summary: Path,
    output_scores: Path,
) -> None:
    """Every method on the network of each share and draw, trained on flipped labels."""
    rows, kept = [], []
    todo = [(share, draw) for share in settings["shares"] for draw in settings["draws"]]
    probes: dict[float, tuple[Probe, float]] = {}
    for share, draw in bar(todo, "networks", unit="network"):
        if share not in probes:
            problem = problem_of(setup.PILOT_DRAW)
            given, _ = _flipped(problem, share, setup.PILOT_DRAW)
            probes[share] = setup.chosen_probe(settings, problem, given)
        problem = problem_of(draw)
        given, flipped = _flipped(problem, share, draw)
        scores, facts, suggested = _scores(settings, problem, given, *probes[share], draw)
        row = {"share": share, "draw": draw, "flipped": int(flipped.sum())}
        row |= {"inputs": len(given), "classes": problem.classes}
        row |= asdict(probes[share][0]) | {"pilot_seconds": probes[share][1]}
        row |= {key: facts[key] for key in ("training_loss", "rise", "drift", "test_accuracy")}
        row["memorized"] = 1 - facts["wrong"][flipped].mean()
        flagged = facts["flagged"]
        row |= {
            "cleanlab_flagged": int(flagged.sum()),
            "cleanlab_precision": flipped[flagged].mean() if flagged.any() else np.nan,
            "cleanlab_recall": flagged[flipped].mean(),
        }
        for name, labels in suggested.items():
            row[f"suggested_right_{name.replace(' ', '_')}"] = (
                labels[flipped] == problem.labels[flipped]
            ).mean()
        for method, (values, seconds) in scores.items():
            cost = {"seconds": seconds, "training_runs": seconds / facts["train_seconds"]}
            rows.append(row | {"method": method} | asdict(detection(values, flipped)) | cost)
        kept.append((share, scores[OURS][0], flipped))
    table = pd.DataFrame(rows)
    ours = table[table["method"] == OURS].set_index(["share", "draw"])["auc"]
    table["lead"] = (
        ours.loc[pd.MultiIndex.from_frame(table[["share", "draw"]])].values - table["auc"]
    )
    write_npz(output_scores, **setup.stacked(kept, settings["shares"]))
    write_csv(table, output)
    write_csv(setup.mean_and_spread(table, ["share", "method"]), output_summary)


def along_rise(settings: dict, output: Path, features: Path | None = None) -> None:
    """Memorized wrong labels by independent draws, along the rise of the mean loss.

    Of digits, or of heads on the images of ``features``.

    ``settings``: as for :func:`on_digits`, and ``along_rise``: ``share`` of the labels, ``rises``
    (nats; each has a gamma of its own in every network) and ``weight_draws``. Writes the
    mean and spread over networks of the rise that was seen, the AUC of self-covariance and of the
    mean loss of the same draws, and the ratio of mean self-covariances.
    """
    chosen, rows = settings["along_rise"], []
    for draw in bar(settings["draws"], "networks", unit="network"):
        if features is None:
            problem = setup.digits(settings["inputs"], draw)
        else:
            problem = setup.stored_features(features)
        given, flipped = _flipped(problem, chosen["share"], draw)
        data = (problem.inputs, given)
        model = setup.fit(settings, problem, *data, draw).model
        for rise in chosen["rises"]:
            probe = propose_probe(model, data, rise=rise, seed=draw).probe
            sampling = {"chains": 1, "draws": chosen["weight_draws"], "progress": False}
            trace = sample_losses(model, data, probe, seed=draw, **sampling)
            k = self_covariance(trace.losses)
            found = {"target": rise, "draw": draw, "gamma": probe.gamma}
            found["rise"] = (trace.losses - trace.initial_loss).mean(dtype=float)
            found["auc_self_covariance"] = detection(k, flipped).auc
            found["auc_mean_loss"] = detection(trace.losses.mean(axis=(0, 1)), flipped).auc
            rows.append(found | {"ratio": k[flipped].mean() / k[~flipped].mean()})
    table = setup.mean_and_spread(pd.DataFrame(rows), ["target"])
    write_csv(table.assign(share=chosen["share"]), output)


def _flipped(problem: Problem, share: float, draw: int) -> tuple[Tensor, np.ndarray]:
    rng = numpy_generator(draw, "resample")
    given, flipped = flip_labels(problem.labels, share, problem.classes, rng)
    return torch.as_tensor(given), flipped


def copies(settings: dict, output: Path, output_summary: Path) -> None:
    """Controlled memorization: self-covariance against the copies of an input in the training set.

    For each number of copies there are as many inputs with a flipped label as with their true one.
    Writes a row a draw, gamma, kind and number of copies (median over the inputs), with Spearman's
    correlation of self-covariance and copies over the inputs of the kind; then mean and spread. The
    gamma of infinity is the exact limit, in squared norms of the gradient.
    """
    from scipy.stats import spearmanr  # here, as it is slow to import

    chosen, rows = settings["copies"], []
    for draw in bar(settings["draws"], "networks", unit="network"):
        problem, given, number, kind = _duplicated(settings, draw)
        unique = (problem.inputs, given)
        repeated = np.repeat(np.arange(len(number)), number)
        data = (problem.inputs[repeated], given[repeated])
        model = setup.fit(settings, problem, *data, draw).model
        losses = setup.losses_of(model, *unique)
        found = {np.inf: gradient_norms(model, unique) ** 2}
        for values in chosen["probes"]:
            trace = sample_losses(
                model,
                data,
                Probe(**values),
                probe_data=unique,
                seed=draw,
                progress=False,
                **settings["sampling"],
            )
            found[values["gamma"]] = self_covariance(trace.losses)
        for gamma, k in found.items():
            for name in ("flipped", "true label"):
                rank = spearmanr(number[kind == name], k[kind == name]).statistic
                for count in chosen["numbers"]:
                    at = (kind == name) & (number == count)
                    row = {"draw": draw, "gamma": gamma, "kind": name, "copies": count}
                    row |= {"self_covariance": np.median(k[at]), "loss": np.median(losses[at])}
                    rows.append(row | {"spearman": rank, "training_loss": losses.mean()})
    table = pd.DataFrame(rows)
    keys = ["draw", "gamma", "kind"]
    once = table[table["copies"] == chosen["numbers"][0]].set_index(keys)["self_covariance"]
    ratio = table["self_covariance"] / once.loc[pd.MultiIndex.from_frame(table[keys])].values
    table["log10_ratio"] = np.log10(ratio)
    write_csv(table, output)
    values = ["self_covariance", "log10_ratio", "spearman", "loss", "training_loss"]
    write_csv(setup.mean_and_spread(table, ["gamma", "kind", "copies"], values), output_summary)


def _duplicated(settings: dict, draw: int) -> tuple[Problem, Tensor, np.ndarray, np.ndarray]:
    """Inputs, given labels, copies of each input in the training set, and its kind ("": neither).

    The inputs come in random order, so that the first ones are a random choice.
    """
    numbers, each = settings["copies"]["numbers"], settings["copies"]["inputs_per_number"]
    problem = setup.digits(settings["inputs"], draw)
    of_kind = len(numbers) * each
    if 2 * of_kind > len(problem.labels):
        raise ConfigError(
            f"mislabel.copies: {2 * of_kind} inputs are more than mislabel.inputs = "
            f"{settings['inputs']}; lower inputs_per_number"
        )
    given, number = problem.labels.copy(), np.ones(len(problem.labels), int)
    rng = numpy_generator(draw, "resample")
    given[:of_kind], _ = flip_labels(given[:of_kind], 1, problem.classes, rng)
    number[: 2 * of_kind] = np.tile(np.repeat(numbers, each), 2)
    kind = np.array(["flipped"] * of_kind + ["true label"] * of_kind)
    kind = np.concatenate([kind, np.full(len(given) - 2 * of_kind, "")])
    return problem, torch.as_tensor(given), number, kind
