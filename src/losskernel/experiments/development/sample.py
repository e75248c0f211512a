"""Experiment 5: the loss kernel of an image classifier from initialization to the trained network.

Appendix D.5 of the paper, on Tiny ImageNet. Each function is one rule of
``workflow/rules/development.smk`` that needs images; what they write has no pixel in it, and is all
that :mod:`losskernel.experiments.development.analyze` reads.

The probe is Gaussian, and its kernel comes from gradients at pairs of draws
(:mod:`losskernel.gradients.covariance`). Gamma is chosen by two rules. ``fixed``: the same at every
checkpoint, as in the paper. ``rise``: such that the mean loss of the probe inputs rises by a given
amount. Random numbers are the same at every checkpoint.

Networks are trained with batch normalization and probed without: at each checkpoint its statistics
are taken anew from training images and merged into the convolutions
(:mod:`losskernel.models.inception_small`).
"""

from __future__ import annotations

import io
import json
import logging
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from losskernel.data.augmentation import FromPixels, center_crop, normalized, random_crop_flip
from losskernel.data.download import download as fetch
from losskernel.data.images import imagenet_wnids
from losskernel.data.textures import textures
from losskernel.data.tiny_imagenet import LabeledImages, load_tiny_imagenet
from losskernel.files import atomic_path, write_npz
from losskernel.gradients.covariance import gradient_covariance
from losskernel.gradients.linear_response import gram
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.stored import StoredKernel
from losskernel.models.inception_small import (
    InceptionSmall,
    calibrate_batch_norm,
    fold_batch_norm,
    with_batch_norm,
)
from losskernel.models.loader import from_timm
from losskernel.progress import bar
from losskernel.sampling.inputs import state_fingerprint, usable_device
from losskernel.sampling.pilot import propose_probe
from losskernel.sampling.sample import cross_entropy
from losskernel.seeds import numpy_generator, torch_seed
from losskernel.trace import provenance
from losskernel.training.checkpoints import Checkpoint, checkpoint_path
from losskernel.training.train import TrainingSettings
from losskernel.training.train import train as train_classifier

RULES = ("fixed", "rise")
BLOCK = 500  # images a forward pass
# What the pilot of the rule ``rise`` looks at.
PILOT_INPUTS, PILOT_DIRECTIONS = 200, 2
SHOWN = 10  # validation images of each class that the accuracy is of

log = logging.getLogger("losskernel")


def download(settings: dict, output: Path) -> None:
    """Fetch the official archive, 248 MB, and verify its checksum."""
    found = fetch(settings["url"], output, settings["checksum"])
    if settings["checksum"] is None:
        log.warning("no checksum is configured; write checksum: %s to pin this file", found)


def generate(settings: dict, output: Path) -> None:
    """An archive of random textures in the layout of the official one, for a run without data."""
    root, wnids, lines = "tiny-imagenet-200", {}, []
    with atomic_path(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for wnid, number, picture in textures(**settings, side=64):
            encoded = io.BytesIO()
            picture.save(encoded, "JPEG")
            archive.writestr(f"{root}/train/{wnid}/images/{wnid}_{number}.JPEG", encoded.getvalue())
            name = f"val_{len(lines)}.JPEG"
            wnids[wnid] = None
            lines.append(f"{name}\t{wnid}\t0\t0\t63\t63")
            archive.writestr(f"{root}/val/images/{name}", encoded.getvalue())
        archive.writestr(f"{root}/wnids.txt", "\n".join(wnids) + "\n")
        archive.writestr(f"{root}/val/val_annotations.txt", "\n".join(lines) + "\n")


def _network(settings: dict, classes: int, seed: int) -> nn.Module:
    """The network as it is trained, at the initialization of a seed.

    ``settings["network"]`` has the options of :class:`InceptionSmall`, or the name, as ``model``,
    and the options of one of timm's.
    """
    options = dict(settings["network"])
    name = options.pop("model", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "init"))
        if name is None:
            model = with_batch_norm(InceptionSmall(classes, **options))
        else:
            model = from_timm(name, num_classes=classes, **options)
    return model.to(memory_format=torch.channels_last)


def train(
    settings: dict, archive: Path, seed: int, folder: Path, output: Path, shuffled: bool = False
) -> None:
    """Train one network, leaving its checkpoints in ``folder``; the history as a table.

    With ``shuffled``, the control: labels of the training images are permuted, and ``steps`` and
    ``checkpoints`` are those of ``settings["shuffled"]``.
    """
    images = load_tiny_imagenet(
        archive, "train", settings["train_per_class"], settings["image_size"]
    )
    labels, training, checkpoints = images.labels, settings["training"], settings["checkpoints"]
    if shuffled:
        rng = numpy_generator(seed, "resample")
        labels = labels[torch.from_numpy(rng.permutation(len(labels)))]
        checkpoints = settings["shuffled"]["checkpoints"]
        training = training | {"steps": settings["shuffled"]["steps"]}
    device = usable_device(settings["device"])
    history = train_classifier(
        _network(settings, len(images.wnids), seed).to(device),
        images.pixels.to(device),
        labels.to(device),
        TrainingSettings(**training),
        seed,
        folder,
        checkpoints,
        augment=lambda batch, generator: normalized(
            random_crop_flip(batch, settings["crop"], generator)
        ),
        save_every=settings["save_every"],
    )
    table = pd.DataFrame({"step": history.step, "loss": history.loss, "accuracy": history.accuracy})
    with atomic_path(output) as temporary:
        table.to_csv(temporary, index=False)


def sample(
    settings: dict,
    archive: Path,
    folder: Path,
    network: str,
    step: int,
    journal: Path,
    output: Path,
    output_kernels: list[Path],
) -> None:
    """What the analysis needs of one checkpoint: two loss kernels, and the rest in one file.

    ``output_kernels`` are those of the rules ``fixed`` and ``rise``, see
    :class:`losskernel.kernel.stored.StoredKernel`, resumable through ``journal``. ``output`` holds
    the accuracy on the first ten validation images of each class, the penultimate features of the
    probe inputs, and the cosines of their loss gradients (lower triangle, without the diagonal).
    The probe inputs are validation images, the first of each class.
    """
    validation = load_tiny_imagenet(archive, "val", SHOWN, settings["image_size"])
    problem = probed(settings, archive, folder, step, validation)
    model, data = problem.model, problem.data
    shown = center_crop(validation.pixels, settings["crop"])
    known = {"network": network, "step": step, "weights_sha256": state_fingerprint(model)}
    output.parent.mkdir(parents=True, exist_ok=True)
    for rule, path in zip(RULES, output_kernels, strict=True):
        gamma = settings["gamma"] if rule == "fixed" else gamma_at_rise(settings, model, data)
        kernel(settings, problem, gamma, journal / rule, path, known | {"rule": rule})
    with torch.inference_mode():
        features = model.model.features(normalized(data[0])).numpy()
    cosine = normalize(limit_gram(model, data, output.parent))
    write_npz(
        output,
        **known,
        accuracy=json.dumps(measured_accuracy(model, shown, validation.labels)),
        features=features.astype(np.float16),
        cosine=cosine[np.tril_indices(len(cosine), -1)].astype(np.float16),
    )


def kernel(
    settings: dict, problem: Probed, gamma: float, journal: Path, output: Path, known: dict
) -> None:
    """The kernel of one network at one localization, from pairs of gradients."""
    found = gradient_covariance(
        problem.model,
        problem.data,
        gamma=gamma,
        pairs=settings["pairs"],
        groups=settings["groups"],
        width=settings["width"],
        seed=settings["sampling_seed"],
        journal=journal,
        device=settings["device"],
    )
    StoredKernel.of(found, problem.coordinates, known | provenance()).save(output)


def limit_gram(model: nn.Module, data: tuple[Tensor, Tensor], scratch: Path) -> np.ndarray:
    """Inner products of the loss gradients at the trained weights, ``(input, input)``."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        return gram(per_sample_gradients(model, data, Path(folder) / "gradients"))


def gamma_at_rise(settings: dict, model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Where the mean loss rises by ``settings["rise"]``, found by a pilot before any kernel."""
    pilot = propose_probe(
        model,
        data,
        rise=settings["rise"],
        most_inputs=PILOT_INPUTS,
        directions=PILOT_DIRECTIONS,
        seed=settings["sampling_seed"],
        device=settings["device"],
        engine="sequential",
    )
    return pilot.probe.gamma


@dataclass(frozen=True)
class Probed:
    """A checkpoint's network and the inputs of its kernel.

    Attributes:
        model: called with pixels.
        data: pixels and labels of validation images.
        coordinates: their ``label``, its place among ImageNet's classes, ``wnid`` and ``name``.
    """

    model: FromPixels
    data: tuple[Tensor, Tensor]
    coordinates: dict[str, np.ndarray]


def probed(
    settings: dict, archive: Path, folder: Path, step: int, validation: LabeledImages
) -> Probed:
    """What is sampled at a checkpoint: the first images of each class."""
    size, crop = settings["image_size"], settings["crop"]
    images = load_tiny_imagenet(archive, "train", settings["calibration_per_class"], size)
    model = _network_of(settings, folder, step, center_crop(images.pixels, crop), images.wnids)
    names, labels, shown = _first_of_each_class(validation, settings["probe_per_class"])
    wnids = np.array(validation.wnids)[labels.numpy()]
    # As in every other kernel that is compared with the hierarchy.
    place = {wnid: label for label, wnid in enumerate(imagenet_wnids())}
    coordinates = {
        "label": np.array([place[wnid] for wnid in wnids.tolist()]),
        "wnid": wnids,
        "name": names,
    }
    return Probed(model, (center_crop(shown, crop).contiguous(), labels), coordinates)


def _network_of(
    settings: dict, folder: Path, step: int, pixels: Tensor, wnids: Sequence[str]
) -> FromPixels:
    """The network of a checkpoint, its batch normalization with fresh statistics, frozen.

    That of :class:`InceptionSmall` is merged into its convolutions.
    """
    model = _network(settings, len(wnids), 0)
    model.load_state_dict(Checkpoint.load(checkpoint_path(folder, step)).model)
    size = min(settings["training"]["batch_size"], len(pixels))
    order = torch.from_numpy(numpy_generator(0, "order").permutation(len(pixels)))
    batches = [pixels[at] for at in order.split(size) if len(at) == size]
    calibrate_batch_norm(model, (normalized(batch) for batch in batches))
    return FromPixels(fold_batch_norm(model)).eval()


@torch.inference_mode()
def measured_accuracy(model: nn.Module, pixels: Tensor, labels: Tensor) -> dict[str, float]:
    """Shares of the images that are classified rightly, and the mean loss in nats."""
    blocks = bar(pixels.split(BLOCK), "evaluate", unit="block")
    logits = torch.cat([model(block) for block in blocks])
    best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    return {
        "top1": best[:, 0].double().mean().item(),
        "top5": best.any(1).double().mean().item(),
        "cross_entropy": cross_entropy(logits, labels).double().mean().item(),
    }


def _first_of_each_class(
    images: LabeledImages, per_class: int
) -> tuple[np.ndarray, Tensor, Tensor]:
    """Names, labels and pixels of the first images of each class."""
    labels = images.labels.numpy()
    number = np.arange(len(labels)) - np.searchsorted(labels, labels)  # images are in class order
    kept = np.flatnonzero(number < per_class)
    return images.names[kept], images.labels[kept], images.pixels[kept]
