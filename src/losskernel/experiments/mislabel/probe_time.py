"""Experiment 4, the paper's case: clean training, labels corrupted where the losses are recorded.

Appendix D.4 of the paper, on photographs along the rise of the mean loss. A trace holds the loss of
every input under several labels, from the same logits, so that the corruption of each share and
draw is a choice among its columns. Each function is one rule of ``workflow/rules/mislabel.smk``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from losskernel.errors import ConfigError
from losskernel.experiments.imagenet.sample import load
from losskernel.experiments.mislabel import setup
from losskernel.experiments.mislabel.labels import (
    SeveralLabels,
    detection,
    flip_labels,
    margins,
    wrong_labels,
)
from losskernel.files import write_csv, write_npz
from losskernel.gradients.per_sample import gradient_norms
from losskernel.kernel.covariance import self_covariance
from losskernel.kernel.jackknife import jackknife_error
from losskernel.kernel.neighbors import nearest_neighbors
from losskernel.progress import bar
from losskernel.sampling.inputs import fingerprint
from losskernel.sampling.probe import Probe
from losskernel.sampling.sample import sample_losses
from losskernel.seeds import numpy_generator
from losskernel.trace import LossTrace

HARD = np.log(2)  # nats; a loss above it means less than half of the probability on the label


def on_digits(settings: dict, output: Path, output_summary: Path) -> None:
    """A network and a trace a draw; the trace holds the loss under every label of every input."""
    rows = []
    clean = setup.digits(settings["inputs"], setup.PILOT_DRAW)
    probe, _ = setup.chosen_probe(settings, clean, torch.as_tensor(clean.labels))
    for draw in bar(settings["draws"], "networks", unit="network"):
        problem = setup.digits(settings["inputs"], draw)
        labels = torch.as_tensor(problem.labels)
        data = (problem.inputs, labels)
        shown = SeveralLabels(
            setup.fit(settings, problem, *data, draw).model, problem.inputs, problem.classes
        )
        every = torch.arange(problem.classes).repeat(len(labels))
        sampling = settings["sampling"] | {"eval_batch_size": len(every)}
        trace = sample_losses(
            shown,
            data,
            probe,
            probe_data=(shown.pairs, every),
            seed=draw,
            progress=False,
            **sampling,
        )
        first = np.arange(len(labels)) * problem.classes
        right = first + problem.labels
        for share in settings["shares"]:
            given, flipped = flip_labels(
                problem.labels, share, problem.classes, numpy_generator(draw, "resample")
            )
            losses = trace.losses[..., first + given]
            k = self_covariance(losses)
            near, _ = nearest_neighbors(losses, settings["neighbors"])
            row = {"share": share, "draw": draw, "flipped": int(flipped.sum())} | asdict(probe)
            row |= {
                "training_loss": trace.initial_loss[right].mean(),
                "rise": (trace.losses - trace.initial_loss)[..., right].mean(),
                "drift": setup.drift(trace.losses[..., right]),
                **asdict(detection(k, flipped)),
                "auc_loss": detection(trace.initial_loss[first + given], flipped).auc,
                **_means(k, flipped),
                "neighbors_mislabeled": _clustering(near, flipped),
            }
            rows.append(row)
    table = pd.DataFrame(rows)
    write_csv(table, output)
    write_csv(setup.mean_and_spread(table, ["share"]), output_summary)


def _means(k: np.ndarray, flipped: np.ndarray) -> dict[str, float]:
    clean, wrong = k[~flipped].mean(), k[flipped].mean()
    return {
        "self_covariance_clean": clean,
        "self_covariance_mislabeled": wrong,
        "ratio": wrong / clean,
    }


def _clustering(near: np.ndarray, flipped: np.ndarray) -> float:
    """Share of mislabeled inputs among the neighbors of mislabeled ones, over the share of all."""
    return flipped[near[flipped]].mean() / flipped.mean()


def sample(
    settings: dict, gamma: float, journal: Path, output: Path, manifest: Path | None = None
) -> None:
    """Independent draws around an ImageNet classifier; losses under the given and wrong labels.

    ``settings`` are those of ``imagenet`` that load the model and the images, with ``draws``,
    ``eval_batch_size`` in images, ``device``, ``seed``, and ``wrong_labels``, how many of each
    image. The input dimension of the trace runs over pairs of image and label, those of an image
    side by side, its given label first; ``label`` is that of the pair, ``image`` the number and
    ``name`` the name of the image. Resumable by the journal.
    """
    classifier, images, inputs, pairs = _labeled(settings, manifest)
    per_image = pairs.shape[1]
    shown = SeveralLabels(classifier.model, inputs, per_image)
    trace = sample_losses(
        shown,
        (inputs, torch.as_tensor(images.labels)),
        Probe(gamma=gamma),
        probe_data=(shown.pairs, torch.as_tensor(pairs.ravel())),
        chains=1,
        draws=settings["draws"],
        eval_batch_size=settings["eval_batch_size"] * per_image,
        # Not the draws of the kernel by gradients, which is to be checked by these.
        seed=settings["seed"] + 1,
        device=settings["device"],
        journal=journal,
        input_coords={
            "label": pairs.ravel().astype(np.int16),
            "image": np.repeat(np.arange(len(images), dtype=np.int32), per_image),
            "name": np.repeat(images.names, per_image),
        },
    )
    trace.dataset.attrs |= {
        "model": settings["model"],
        "weights": Path(settings["weights"]).name,
        "image_size": settings["image_size"] or 0,
        **images.provenance,
        "images_sha256": fingerprint([inputs]),  # inputs_sha256 is that of the pairs
        "labels_per_image": per_image,
    }
    trace.save(output)


def _labeled(settings: dict, manifest: Path | None):
    """The classifier, the images, the inputs and labels ``(image, label)``, the given one first."""
    classifier, images, (inputs, _) = load(settings, manifest)
    rng = numpy_generator(settings["seed"], "resample")
    wrong = wrong_labels(images.labels, settings["wrong_labels"], len(images.classes), rng)
    return classifier, images, inputs, np.concatenate([images.labels[:, None], wrong], axis=1)


@torch.no_grad()
def baselines(settings: dict, output: Path, manifest: Path | None = None) -> None:
    """Scores at the trained weights: label, margin and gradient norm, ``(image, label)`` each.

    ``settings`` as for :func:`sample`, whose columns of labels these are.
    """
    classifier, images, inputs, pairs = _labeled(settings, manifest)
    model, labels = classifier.model.eval(), torch.as_tensor(pairs)
    logits = torch.cat([model(block) for block in inputs.split(settings["eval_batch_size"])])
    columns = bar(range(pairs.shape[1]), "gradient norms", unit="label")
    norms = [gradient_norms(model, (inputs, labels[:, at].contiguous())) for at in columns]
    margin = [margins(logits, labels[:, at]) for at in range(pairs.shape[1])]
    write_npz(
        output,
        name=images.names,
        label=pairs.astype(np.int16),
        margin=torch.stack(margin, dim=1).numpy().astype(np.float32),
        gradient_norm=np.stack(norms, axis=1).astype(np.float32),
    )


def on_images(
    settings: dict,
    traces: list[Path],
    plain: Path,
    output: Path,
    output_summary: Path,
    output_scores: Path,
) -> None:
    """Corrupt labels of traces of :func:`sample` by shares and draws, and look for them.

    ``plain`` is what :func:`baselines` wrote.

    ``settings``: ``shares``, ``draws`` (seeds of the corruption), ``neighbors``, ``permutations``,
    ``jackknife_blocks``, ``headline`` (a gamma). Writes a row a gamma, share and draw; then their
    means, with ``<value>_sd`` over the draws of the corruption and ``<value>_error``, the jackknife
    over blocks of images and, at once, over blocks of draws of the weights. ``matched_<value>``:
    the AUC where wrong labels are set against right ones of a loss above :data:`HARD` alone. The
    clustering of mislabeled images stands beside the 97.5 % quantile of random choices of as many.
    The self-covariances at the headline are for the figure (npz).
    """
    tables, summaries = [], []
    for path in traces:
        rows, summary, kept = _corrupted(settings, path, plain)
        tables.append(rows)
        summaries.append(summary)
        if summary.gamma.iloc[0] == settings["headline"]:
            write_npz(output_scores, **setup.stacked(kept, settings["shares"]))
    table = pd.concat(summaries).sort_values(["gamma", "share"], ascending=[False, True])
    if settings["headline"] not in set(table.gamma):
        raise ConfigError(
            f"mislabel.imagenet.gammas: none is {settings['headline']:g}, the headline of imagenet"
        )
    write_csv(pd.concat(tables), output)
    write_csv(table, output_summary)


def _corrupted(
    settings: dict, path: Path, plain_scores: Path
) -> tuple[pd.DataFrame, pd.DataFrame, list]:
    """Rows of one trace, their summary, and the self-covariances behind them."""
    loaded = LossTrace.load(path)
    if "labels_per_image" not in loaded.attributes:
        raise ConfigError(f"{path}: not made by `losskernel workflow mislabel.probe_time sample`")
    per_image = int(loaded.attributes["labels_per_image"])
    losses = loaded.losses.reshape(*loaded.losses.shape[:2], -1, per_image)
    initial = loaded.initial_loss.reshape(-1, per_image)
    # What needs no draws; high where a label is suspicious.
    with np.load(plain_scores) as stored:
        labels = loaded.coordinate("label").reshape(-1, per_image)
        if not np.array_equal(labels, stored["label"]):
            raise ConfigError(f"{plain_scores}: of other images or labels than {path}; make both")
        plain = {"loss": initial, "margin": -stored["margin"]}
        plain["gradient_norm"] = stored["gradient_norm"]
    images = np.arange(len(initial))
    corrupted = []
    for share in settings["shares"]:
        for draw in settings["draws"]:
            # A wrong label is one of the wrong columns, 1 on; flipping class 0 of as many does it.
            column, flipped = flip_labels(
                np.zeros(len(images), int), share, per_image, numpy_generator(draw, "resample")
            )
            corrupted.append((share, draw, column, flipped))
    hard = initial[:, 0] > HARD

    def aucs(
        name: str, scores: np.ndarray, column: np.ndarray, flipped: np.ndarray, kept=images
    ) -> dict:
        chosen, flipped = scores[kept, column[kept]], flipped[kept]
        found = {f"auc_{name}": detection(chosen, flipped).auc}
        if hard[kept][~flipped].any():
            among = hard[kept] | flipped
            found[f"matched_{name}"] = detection(chosen[among], flipped[among]).auc
        return found

    def statistics(chosen: np.ndarray, kept: np.ndarray = images) -> pd.DataFrame:
        """Of some draws of the weights and some images: a row a corruption."""
        k = self_covariance(chosen.reshape(*chosen.shape[:2], -1)).reshape(-1, per_image)
        mean = chosen.mean(axis=(0, 1), dtype=float)
        rows = [
            {
                "share": share,
                "draw": draw,
                **aucs("self_covariance", k, column, flipped, kept),
                **aucs("mean_loss", mean, column, flipped, kept),
                **_means(k[kept, column[kept]], flipped[kept]),
            }
            for share, draw, column, flipped in corrupted
            if flipped[kept].any() and not flipped[kept].all()
        ]
        return pd.DataFrame(rows)

    every = self_covariance(loaded.losses).reshape(-1, per_image)
    kept = [(share, every[images, column], flipped) for share, _, column, flipped in corrupted]
    table = statistics(losses)
    for at, (_, draw, column, flipped) in enumerate(bar(corrupted, "corruptions", unit="draw")):
        for name, scores in plain.items():
            for key, value in aucs(name, scores, column, flipped).items():
                table.loc[at, key] = value
        table.loc[at, "flipped"] = flipped.sum()
        table.loc[at, "hard_clean"] = (hard & ~flipped).sum()
        near, _ = nearest_neighbors(losses[..., images, column], settings["neighbors"])
        table.loc[at, "neighbors_mislabeled"] = _clustering(near, flipped)
        rng = numpy_generator(draw, "order")
        null = [
            _clustering(near, rng.permutation(flipped)) for _ in range(settings["permutations"])
        ]
        table.loc[at, "neighbors_null"] = np.mean(null)
        table.loc[at, "neighbors_null_high"] = np.quantile(null, 0.975)
    summary = setup.mean_and_spread(table, ["share"]).merge(
        _jackknife_errors(losses, statistics, settings["jackknife_blocks"]), on="share"
    )
    right = losses[..., 0]
    gamma = json.loads(loaded.attributes["probe"])["gamma"]
    by_draw = right.mean(axis=2, dtype=float)
    facts = {
        "gamma": gamma,
        "model": loaded.attributes["model"],
        "image_size": loaded.attributes["image_size"],
        "inputs": len(images),
        "weight_draws": losses.shape[1],
        "clean_loss": initial[:, 0].mean(dtype=float),
        "rise": by_draw.mean() - initial[:, 0].mean(dtype=float),
        "rise_error": by_draw.std(ddof=1) / by_draw.size**0.5,
    }
    return table.assign(gamma=gamma), summary.assign(**facts), kept


def _jackknife_errors(
    losses: np.ndarray, statistics: Callable[..., pd.DataFrame], blocks: int
) -> pd.DataFrame:
    """Standard error of each statistic's mean over corruptions, over draws and over images.

    By the jackknife over blocks of either, of images in an order of chance. The two add up.
    """
    draws = np.arange(losses.shape[1])
    images = numpy_generator(0, "order").permutation(losses.shape[2])
    without = {
        "draws": (draws, lambda kept: statistics(losses[:, kept])),
        "images": (images, lambda kept: statistics(losses, kept)),
    }
    squares = 0
    for name, (parts, of) in without.items():
        left_out = [
            of(np.setdiff1d(parts, block)).groupby("share", sort=False).mean()
            for block in bar(np.array_split(parts, blocks), f"jackknife, {name}", unit="block")
        ]
        squares = squares + jackknife_error(left_out) ** 2
    first = left_out[0]
    errors = pd.DataFrame(np.sqrt(squares), first.index, first.columns)
    return errors.drop(columns="draw").add_suffix("_error").reset_index()
