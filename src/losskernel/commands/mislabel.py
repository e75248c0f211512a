"""Ranking the suspicious labels of a user's own trace or image folder.

The experiments behind it are in :mod:`losskernel.experiments.mislabel.memorized` and
:mod:`losskernel.experiments.mislabel.probe_time`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from losskernel.data.images import ClassFolders, imagenet_wnids, load_images
from losskernel.errors import ConfigError
from losskernel.experiments.mislabel.labels import opposed_inputs, vote
from losskernel.files import check_writable, write_csv
from losskernel.kernel.covariance import nearest_neighbors, self_covariance
from losskernel.models.loader import load_classifier
from losskernel.sampling.inputs import usable_device
from losskernel.sampling.pilot import propose_probe
from losskernel.sampling.probe import Probe
from losskernel.sampling.sample import sample_losses
from losskernel.trace import LossTrace

Score = Literal["self_covariance", "mean_loss", "initial_loss"]
SCORES = {  # of any trace, high where a label is suspicious
    "self_covariance": lambda trace: self_covariance(trace.losses),
    "mean_loss": lambda trace: trace.losses.mean(axis=(0, 1), dtype=float),
    "initial_loss": lambda trace: trace.initial_loss,
}
RISE = 0.1  # nats: of the mean loss, by which a probe is chosen where none is given
PILOT_INPUTS = 128
log = logging.getLogger(__name__)


def rank(
    trace: Path,
    output: Path,
    k: int = 10,
    label: str = "label",
    score: Score = "self_covariance",
) -> None:
    """Rank the suspicious labels of any saved trace, as CSV, the most suspicious first.

    A row an input: its score, given label, the suggested label and its share of the votes, the
    nearest inputs (largest R), the opposed ones (most negative R, of another label) and their
    labels, and its losses. The suggestion is the vote of the opposed inputs, weighted by -R: a
    wrong label is memorized against the inputs that look alike.

    Args:
        trace: the saved trace (.nc).
        output: the table (.csv).
        k: inputs that are listed as nearest, and as opposed, and vote.
        label: coordinate of the trace with the given labels, under which the losses were taken.
        score: what ranks: self_covariance is the paper's, mean_loss that under the probe,
            initial_loss the one at the trained weights.
    """
    if score not in SCORES:
        raise ConfigError(f"score: '{score}' is not one of {', '.join(SCORES)}")
    loaded = LossTrace.load(trace)
    labels = loaded.coordinate(label)
    names = loaded.dataset["name" if "name" in loaded.dataset.coords else "input"].values
    near, _ = nearest_neighbors(loaded.losses, k)
    opposed, values = opposed_inputs(loaded.losses, labels, k)
    suggested, share = vote(opposed, -values, labels)
    columns = {"name": names, "score": SCORES[score](loaded), "given_label": labels}
    columns |= {"suggested_label": np.where(share > 0, suggested.astype(object), "")}
    columns |= {"share_of_votes": share}
    for kind, indices in (("nearest", near), ("opposed", opposed)):
        columns[kind] = [" | ".join(map(str, names[row])) for row in indices]
        columns[f"{kind}_labels"] = [" | ".join(map(str, labels[row])) for row in indices]
    columns |= {name: SCORES[name](loaded) for name in ("mean_loss", "initial_loss")}
    table = pd.DataFrame(columns).sort_values("score", ascending=False, kind="stable")
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    write_csv(table, output)


def folder(
    images: Path,
    model: str,
    output: Path,
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
    draws: int = 100,
    burn_in: int | None = None,
    batch_size: int = 32,
    eval_batch_size: int = 50,
    device: str = "cpu",
    k: int = 10,
    score: Score = "self_covariance",
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
        draws: losses recorded a chain, after burn-in; more for a less noisy ranking.
        burn_in: first steps of a chain, not recorded, for n_beta above 0; 20 if not given.
        batch_size: images a gradient step, for n_beta above 0.
        eval_batch_size: images a forward pass when losses are recorded.
        device: cpu or cuda.
        k: inputs that are listed as nearest, and as opposed, and vote.
        score: as for rank.
        seed: of the noise.
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
    given = None if gamma is None else Probe(n_beta, gamma, step_size)
    usable_device(device)  # told before images are read
    classifier = load_classifier(model, weights, image_size, seed)
    shown = ClassFolders(images, classifier.preprocess, per_class=per_class)
    outputs = _outputs(classifier.model, shown.first(skip_unreadable))
    shown.number(_class_names(outputs, shown.classes, images, classes))
    data = load_images(shown, skip_unreadable)
    _check_neighbors(k, shown)
    options = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "device": device}
    probe = given
    if probe is None:
        pilot = propose_probe(
            classifier.model, data, n_beta, RISE, most_inputs=PILOT_INPUTS, seed=seed, **options
        )
        log.info("pilot: %s", pilot.words)
        probe = pilot.probe
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
    rank(output_trace, output, k, "label", score)


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
