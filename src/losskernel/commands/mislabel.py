"""Ranking the suspicious labels of a user's own trace or image folder.

The experiments behind it are in :mod:`losskernel.experiments.mislabel.memorized` and
:mod:`losskernel.experiments.mislabel.probe_time`.
"""

from __future__ import annotations

import logging
import time
import typing
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from losskernel.data.images import ClassFolders, imagenet_wnids, load_images
from losskernel.errors import ConfigError, DataError, TraceError, needs
from losskernel.experiments.mislabel.labels import margins
from losskernel.files import check_writable, read_npz, write_csv
from losskernel.kernel.covariance import correlation_blocks, self_covariance
from losskernel.kernel.neighbors import extremes, nearest_neighbors, vote
from losskernel.models.features import penultimate_features
from losskernel.models.loader import load_classifier
from losskernel.pages.suspects import Suspects, write_suspects
from losskernel.progress import bar
from losskernel.sampling.inputs import usable_device
from losskernel.sampling.journal import JournalHead
from losskernel.sampling.pilot import propose_probe
from losskernel.sampling.probe import Probe
from losskernel.sampling.sample import sample_losses
from losskernel.trace import LossTrace

Score = Literal[
    "best",
    "confident_learning",
    "area_under_margin",
    "mean_loss",
    "self_covariance",
    "initial_loss",
]
SCORES = {  # of any trace, high where a label is suspicious
    "self_covariance": lambda trace: self_covariance(trace.losses),
    "mean_loss": lambda trace: trace.losses.mean(axis=(0, 1), dtype=float),
    "initial_loss": lambda trace: trace.initial_loss,
}
# What is taken for the best where it can be had: in the order of ROC-AUC and precision on digits
# and on Tiny ImageNet (results/reference/mislabel).
BEST = ("confident_learning", "area_under_margin", "mean_loss")
REFIT = (
    "Refitting would find more: where wrong labels were memorized, confident learning with models "
    "that had not seen an image, and the margins of the training itself, found more of them than "
    "any score of the trained weights; give --predictions or --training-log{folds}."
)
RISE = 0.1  # nats: of the mean loss, by which a probe is chosen where none is given
PILOT = {"most_inputs": 64, "directions": 3}  # what a pilot of a minute or two affords
FEWEST_DRAWS, MOST_DRAWS = 10, 200  # of the Gaussian, where the time decides
HEAD = 0.01  # inverse strength of the penalty on a new last layer: no memory for single images
NEIGHBORS_SHOWN = 5
log = logging.getLogger(__name__)


def rank(
    trace: Path,
    output: Path,
    page: Path | None = None,
    images: Path | None = None,
    predictions: Path | None = None,
    training_log: Path | None = None,
    k: int = 10,
    label: str = "label",
    score: Score = "best",
    cards: int = 100,
) -> None:
    """Rank the suspicious labels of any saved trace, as CSV, the most suspicious first.

    A row an input: its score, given label, the suggested label and its share of the votes, the
    nearest inputs (largest R), the opposed ones (most negative R, of another label) and their
    labels, and every score that is known. The suggestion is the vote of the opposed inputs,
    weighted by -R: a wrong label is memorized against the inputs that look alike. With predictions
    it is the class that they give, and its probability.

    Args:
        trace: the saved trace (.nc).
        output: the table (.csv).
        page: also a page to look at and tick (.html).
        images: folder of the images, for the page.
        predictions: table (.csv) of class probabilities from models that had not seen the input: a
            column name, and one for each label.
        training_log: archive (.npz) of the training: name (input,), and margins (epoch, input) or
            logits (epoch, input, class) with classes, the labels of the outputs.
        k: inputs that are listed as nearest, and as opposed, and vote.
        label: coordinate of the trace with the given labels, under which the losses were taken.
        score: what ranks: best is confident_learning where there are predictions, else
            area_under_margin where there is a training log, else mean_loss, that under the probe;
            self_covariance is the paper's, initial_loss the loss at the trained weights.
        cards: suspects on the page.
    """
    if score not in typing.get_args(Score):
        raise ConfigError(f"score: '{score}' is not one of {', '.join(typing.get_args(Score))}")
    loaded = LossTrace.load(trace)
    try:
        labels = loaded.coordinate(label)
    except TraceError as error:
        raise TraceError(
            f"{trace}: {error}; name with --label what holds the given labels, or sample again "
            "with an array of them among the inputs (input_coords in Python)"
        ) from error
    names = loaded.dataset["name" if "name" in loaded.dataset.coords else "input"].values
    scores = {name: value(loaded) for name, value in SCORES.items()}
    probabilities = None
    if predictions is not None:
        probabilities, classes = _predictions(predictions, names, labels)
        scores["confident_learning"] = _doubt(probabilities, classes, labels)
    if training_log is not None:
        scores["area_under_margin"] = -_area_under_margin(training_log, names, labels)
    chosen = next(name for name in BEST if name in scores) if score == "best" else score
    if chosen not in scores:
        raise ConfigError(f"score: {chosen} needs {_NEEDED[chosen]}")
    near, near_r = nearest_neighbors(loaded.losses, k)
    _, _, opposed, values = extremes(correlation_blocks(loaded.losses), k, labels)
    if probabilities is None:
        suggested, share = vote(opposed, -values, labels)
        suggested = np.where(share > 0, suggested.astype(object), "")
    else:
        suggested, share = classes[probabilities.argmax(axis=1)], probabilities.max(axis=1)
        suggested = np.where(suggested == labels.astype(str), "", suggested.astype(object))
    columns = {"name": names, "score": scores[chosen], "given_label": labels}
    columns |= {"suggested_label": suggested, "share_of_votes": share}
    for kind, indices in (("nearest", near), ("opposed", opposed)):
        columns[kind] = [" | ".join(map(str, names[row])) for row in indices]
        columns[f"{kind}_labels"] = [" | ".join(map(str, labels[row])) for row in indices]
    table = pd.DataFrame(columns | scores)
    order = np.argsort(-scores[chosen], kind="stable")
    ranked = table.iloc[order]
    ranked.insert(0, "rank", np.arange(1, len(table) + 1))
    write_csv(ranked, output)
    if page is not None:
        shown = Suspects(
            names=names,
            labels=labels,
            scores={"score": scores[chosen], "loss": loaded.initial_loss},
            suggested=suggested,
            share=share,
            nearest=near[:, :NEIGHBORS_SHOWN],
            nearest_r=near_r[:, :NEIGHBORS_SHOWN],
            opposed=opposed[:, :NEIGHBORS_SHOWN],
            opposed_r=values[:, :NEIGHBORS_SHOWN],
        )
        refit = chosen in ("confident_learning", "area_under_margin")
        folds = "" if images is None else ", or --folds 5 to losskernel mislabel folder"
        note = "" if refit else REFIT.format(folds=folds)
        words = chosen.replace("_", " ")
        write_suspects(shown, order[:cards], page, words, note, images)


_NEEDED = {
    "confident_learning": "--predictions, or --folds of mislabel folder",
    "area_under_margin": "--training-log",
}


def apply(
    ticks: Path, output: Path | None = None, images: Path | None = None, move: bool = False
) -> None:
    """Turn the ticks of the page into a table of labels, or into moves between class folders.

    Of images that are ticked as wrong the new label is the one in the column new_label. Without
    ``move`` it is only told what would be moved. Nothing is deleted or overwritten: if any move
    cannot be made, none is.

    Args:
        ticks: the table (.csv) that the page exports: name, given_label, verdict, new_label.
        output: the table (.csv) of names and labels after the ticks: relabeled inputs alone.
        images: folder of class folders in which images are to be moved.
        move: make the moves, instead of telling them.
    """
    table = _ticks(ticks)
    wrong = table[(table["verdict"] == "wrong") & (table["new_label"] != "")]
    unnamed = table[(table["verdict"] == "wrong") & (table["new_label"] == "")]
    changed = wrong[wrong["new_label"] != wrong["given_label"]]
    for name in unnamed["name"]:
        log.info("%s: wrong, but no new label is given; stays as it is", name)
    if output is not None:
        write_csv(changed[["name", "given_label", "new_label"]], output)
    if images is None:
        if output is None or move:
            raise ConfigError("apply: give an output for the table, or images to be moved")
        return
    moves = [_move(images, row.name, row.new_label) for row in changed.itertuples(index=False)]
    targets = [target for _, target in moves]
    for source, target in moves:
        if not source.is_file():
            raise DataError(f"{source}: is not there; has it been moved before? nothing is moved")
        if target.exists() or targets.count(target) > 1:
            raise DataError(f"{target}: is taken; rename one of the two images; nothing is moved")
    for source, target in moves:
        log.info("%s %s to %s", "moved" if move else "would move", source, target)
        if move:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
    if not move:
        log.info("%d images would be moved; add --move to move them", len(moves))


def _ticks(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: unreadable as a table of ticks ({said}); export it from the page that "
            "--page of losskernel mislabel folder writes"
        ) from error
    missing = {"name", "given_label", "verdict", "new_label"} - set(table)
    if missing:
        raise DataError(f"{path}: has no column {min(missing)}; export it from the page")
    unknown = sorted(set(table["verdict"]) - {"wrong", "right", "not sure", ""})
    if unknown:
        raise DataError(f"{path}: verdict '{unknown[0]}' is not wrong, right or not sure")
    return table


def _move(images: Path, name: str, label: str) -> tuple[Path, Path]:
    """Where an image lies and where it is to go: the same place below another class folder."""
    path = PurePosixPath(name)
    if len(path.parts) < 2 or path.is_absolute() or ".." in path.parts:
        raise DataError(f"{name}: is no image below a class folder; nothing is moved")
    if "/" in label or label in (".", ".."):
        raise DataError(f"new label '{label}' of {name} is no name of a class folder")
    return images / path, images.joinpath(label, *path.parts[1:])


def _predictions(path: Path, names: np.ndarray, labels: np.ndarray) -> tuple:
    """Probabilities ``(input, class)`` in the order of ``names``, and the classes' names."""
    try:
        table = pd.read_csv(path, dtype={"name": str}).set_index("name")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: no table with a column name ({error}); save it again") from error
    for wanted, there, what in (
        (names, table.index, "prediction for the input"),
        (labels, table.columns, "column for the label"),
    ):
        absent = sorted(set(wanted.astype(str)) - set(there))
        if absent:
            raise DataError(f"{path}: has no {what} '{absent[0]}'; predict all of them")
    found = table.loc[names.astype(str)].to_numpy(float)
    if len(found) != len(names) or not np.allclose(found.sum(axis=1), 1, atol=1e-3):
        raise DataError(f"{path}: not one row an input that sums to 1; give class probabilities")
    return found, table.columns.to_numpy(str)


def _doubt(probabilities: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One minus the label's probability: cleanlab's quality score, turned round."""
    with needs("mislabel"):
        from cleanlab.rank import get_label_quality_scores  # here, as it is slow to import

    number = {name: i for i, name in enumerate(classes)}
    given = np.array([number[label] for label in labels.astype(str)])
    return 1 - get_label_quality_scores(given, probabilities)


def _area_under_margin(path: Path, names: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean margin over the epochs, ``(input,)`` (Pleiss et al. 2020, arXiv:2001.10528)."""
    held = read_npz(path)
    if "name" not in held or not ("margins" in held or {"logits", "classes"} <= held.keys()):
        raise DataError(f"{path}: needs name, and margins or logits with classes")
    position = {name: i for i, name in enumerate(held["name"].astype(str))}
    absent = [name for name in names.astype(str) if name not in position]
    if absent:
        raise DataError(f"{path}: has no input '{absent[0]}'; log all inputs")
    rows = [position[name] for name in names.astype(str)]
    if "margins" in held:
        return held["margins"][:, rows].mean(axis=0)
    number = {name: i for i, name in enumerate(held["classes"].astype(str))}
    given = torch.tensor([number[label] for label in labels.astype(str)])
    epochs = torch.as_tensor(held["logits"][:, rows], dtype=torch.float64)
    return torch.stack([margins(epoch, given) for epoch in epochs]).mean(0).numpy()


def folder(
    images: Path,
    model: str,
    output: Path,
    page: Path | None = None,
    output_trace: Path | None = None,
    journal: Path | None = None,
    weights: str = "pretrained",
    classes: Path | None = None,
    image_size: int | None = None,
    per_class: int | None = None,
    skip_unreadable: bool = False,
    n_beta: float = 0.0,
    gamma: float | None = None,
    step_size: float | None = None,
    chains: int = 2,
    draws: int | None = None,
    minutes: float = 8.0,
    burn_in: int | None = None,
    batch_size: int = 32,
    eval_batch_size: int = 50,
    device: str = "cpu",
    k: int = 10,
    score: Score = "best",
    predictions: Path | None = None,
    training_log: Path | None = None,
    folds: int | None = None,
    cards: int = 100,
    seed: int = 0,
) -> None:
    """Rank the labels that class folders give to images, by the loss kernel of a model.

    The model's outputs are taken to be the class folders in sorted order, as torchvision's
    ImageFolder numbers them; or the lines of the file ``classes``; or, for 1,000 outputs and
    folders named by wnids, the classes of ImageNet. All images are held in memory, decoded. The
    trace stays, for other rankings and other tools; called again, a run that was killed goes on.

    Args:
        images: folder with one folder of images a class.
        model: torchvision:<name>, timm:<name>, inception_v1, or <file>.py:<function> that returns
            your model and its preprocessing.
        output: the table (.csv), most suspicious first.
        page: also a page to look at and tick (.html), for losskernel mislabel apply.
        output_trace: the loss trace; beside output if not given.
        journal: folder from which a killed run goes on; beside output if not given.
        weights: file of weights (.safetensors, or a torch state dict), or "pretrained": those that
            torchvision or timm download, or that your function brings.
        classes: text file with the class folder of each output of the model, one a line.
        image_size: side of the square input in pixels; the model's own if not given.
        per_class: most images of a class; all if not given.
        skip_unreadable: leave out images that cannot be decoded, instead of stopping at the first.
        n_beta: inverse temperature; above 0 adds the gradient of the loss, which costs a backward
            pass a step.
        gamma: localization, one over the variance of a weight. Without it a pilot chooses it, and
            the step size, so that the mean loss rises by 0.1 nats.
        step_size: of SGLD, for n_beta above 0; goes with gamma.
        chains: independent chains.
        draws: losses recorded a chain; more for a less noisy ranking. If not given, 100 for n_beta
            above 0, and of the Gaussian as many as fit into the minutes, 10 to 200 in all.
        minutes: that pilot and draws may take together, where the draws are not given. The pilot,
            at most 16 times the losses of 64 images under 6 perturbations, and 10 draws in all are
            made however long they take; gamma and draws, given, are quicker.
        burn_in: first steps of a chain, not recorded, for n_beta above 0; 20 if not given.
        batch_size: images a gradient step, for n_beta above 0.
        eval_batch_size: images a forward pass when losses are recorded.
        device: cpu or cuda.
        k: inputs that are listed as nearest, and as opposed, and vote.
        score: as for rank; best.
        predictions: as for rank.
        training_log: as for rank.
        folds: predict each image by a new last layer (a logistic regression on the features before
            it) that did not see it, in so many parts, for want of predictions; they are written
            beside output.
        cards: suspects on the page.
        seed: of the noise, and of the folds.
    """
    output_trace = output_trace or output.with_suffix(".nc")
    journal = journal or output.with_suffix(".journal")
    if len({path.resolve() for path in (output, output_trace, journal)}) < 3:
        raise ConfigError(
            f"output: the table {output}, the trace {output_trace} and the journal {journal} are "
            "three things; name the table .csv, or give output_trace and journal"
        )
    for path in (output_trace, journal / "settings.json"):
        check_writable(path)
    if gamma is None and step_size is not None:
        raise ConfigError("step_size: give gamma too, or neither and a pilot chooses them")
    probe = None if gamma is None else Probe(n_beta, gamma, step_size)
    begun = _begun(journal)  # a run that goes on keeps its probe and its draws
    if probe is None and begun is not None:
        probe = begun.probe
        if probe.n_beta != n_beta:
            raise ConfigError(
                f"n_beta = {n_beta:g}: {journal} holds a run with n_beta = {probe.n_beta:g}; go on "
                "with that, or choose another journal"
            )
        log.info("going on with %s: gamma = %.4g, %d draws", journal, probe.gamma, begun.draws)
    usable_device(device)  # told before images are read
    classifier = load_classifier(model, weights, image_size, seed)
    shown = ClassFolders(images, classifier.preprocess, per_class=per_class)
    outputs = _outputs(classifier.model, shown.first(skip_unreadable))
    shown.number(_class_names(outputs, shown.classes, images, classes))
    data = load_images(shown, skip_unreadable)
    _check_neighbors(k, shown)
    options = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "device": device}
    if folds is not None:
        predictions = output.with_suffix(".predictions.csv")
        write_csv(_out_of_fold(classifier.model, data, shown, folds, seed), predictions)
    started = time.monotonic()
    if probe is None:
        log.info("pilot: choosing how far the weights may move")
        pilot = propose_probe(classifier.model, data, n_beta, RISE, seed=seed, **PILOT, **options)
        log.info("pilot: %s", pilot.found)
        probe = pilot.probe
    known = 0 if begun is None else begun.draws
    if draws is None and not probe.direct:
        draws = max(100, known)
    elif draws is None:
        left = 60 * minutes - (time.monotonic() - started)
        seconds = _seconds_a_draw(classifier.model, data[0], eval_batch_size, device)
        total = min(max(int(left / seconds), FEWEST_DRAWS), MOST_DRAWS)
        draws = max(-(-total // chains), known)
        told = seconds * (draws - known) * chains / 60
        log.info("%d x %d draws of %d images: %.1f minutes", chains, draws, len(shown), told)
        if total == FEWEST_DRAWS and 60 * told > max(left, 0):
            log.info("more than the minutes given: these are the fewest; --draws can ask for fewer")
    trace = sample_losses(
        classifier.model,
        data,
        probe,
        chains=chains,
        draws=draws,
        burn_in=(0 if probe.direct else 20) if burn_in is None else burn_in,
        seed=seed,
        journal=journal,
        input_coords={"label": shown.folders, "class": shown.labels, "name": shown.names},
        **options,
    )
    trace.dataset.attrs |= {"model": model, **shown.provenance}
    trace.save(output_trace)
    evidence = {"predictions": predictions, "training_log": training_log}
    rank(output_trace, output, page, images, **evidence, k=k, score=score, cards=cards)


def _out_of_fold(
    model: nn.Module, data: tuple[Tensor, Tensor], images: ClassFolders, folds: int, seed: int
) -> pd.DataFrame:
    """Class probabilities by last layers that were fitted without the image."""
    with needs("mislabel"):
        from sklearn.linear_model import LogisticRegression  # here, as it is slow to import
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

    classes, sizes = np.unique(images.folders, return_counts=True)
    if not 2 <= folds <= sizes.min():
        smallest = classes[sizes.argmin()]
        raise ConfigError(
            f"folds = {folds}: must be from 2 to {sizes.min()}, the images of the class {smallest}"
        )
    blocks = bar(data[0].split(50), "features", unit="block")
    features = penultimate_features(model, blocks).numpy()
    head = make_pipeline(StandardScaler(), LogisticRegression(C=HEAD, max_iter=1000))
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    log.info("fitting %d last layers", folds)
    found = cross_val_predict(head, features, images.folders, cv=parts, method="predict_proba")
    table = pd.DataFrame(found, columns=classes)
    table.insert(0, "name", images.names)
    return table


def _begun(journal: Path) -> JournalHead | None:
    """The journal of a run that was killed, None if there are no draws in it."""
    try:
        return JournalHead.read(journal)
    except TraceError:
        return None


@torch.inference_mode()
def _seconds_a_draw(model: nn.Module, inputs: Tensor, block: int, device: str) -> float:
    """Time that the losses of all inputs take, measured on two blocks of them."""
    model, some = model.to(device), inputs[:block].to(device)
    model(some)  # what is prepared at the first use is no part of it
    started = time.perf_counter()
    for _ in range(2):
        model(some)[0, 0].item()  # waits for a GPU
    return (time.perf_counter() - started) / 2 * len(inputs) / len(some)


@torch.inference_mode()
def _outputs(model: nn.Module, example: Tensor) -> int:
    """Number of a model's outputs."""
    output = model(example[None])
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise ConfigError("model: must return logits, one row an image; wrap it so that it does")
    return output.shape[1]


def _check_neighbors(k: int, images: ClassFolders) -> None:
    """Whether every image has ``k`` others of another label, that is, may be opposed to so many."""
    fewest = len(images) - int(np.bincount(images.labels).max())
    if fewest == 0:
        raise ConfigError(
            f"{images.folder}: all images are of the class {images.folders[0]}; a wrong label "
            "shows against other classes, so give at least two"
        )
    if not 1 <= k <= fewest:
        raise ConfigError(
            f"k = {k}: some image has only {fewest} others of another label; give --k from 1 to "
            f"{fewest}, or more images"
        )


def _class_names(outputs: int, found: list[str], images: Path, classes: Path | None) -> list[str]:
    """Class folders in the order of the model's outputs; see :func:`folder`."""
    if classes is not None:
        names = [line.strip() for line in classes.read_text().splitlines() if line.strip()]
        if len(names) != outputs or len(set(names)) < len(names):
            raise ConfigError(
                f"{classes}: {len(names)} names, {len(set(names))} of them different, for the "
                f"{outputs} outputs of the model; give one a line, in the order of the outputs"
            )
        return names
    if len(found) == outputs:
        return found
    if outputs == 1000 and set(found) <= set(imagenet_wnids()):
        return imagenet_wnids()
    raise ConfigError(
        f"{images}: has {len(found)} class folders, the model {outputs} outputs; give weights of a "
        "model trained on these classes, or as classes a file with the name of the folder of each "
        "output, one a line"
    )
