"""Experiment 5: the loss kernel of an image classifier from initialization to the trained network.

Appendix D.5 of the paper, on Tiny ImageNet. Each function is one rule of
``workflow/rules/development.smk`` that needs images; what they write has no pixel in it, and is all
that :mod:`losskernel.experiments.development.analyze` reads.

The probe is chosen by two rules. ``fixed``: n_beta, gamma and step size are the same at every
checkpoint, as in the paper. ``rise``: gamma is such that Gaussian noise of variance ``1 / gamma``
on the weights raises the mean loss of the probe inputs by a given amount; n_beta and step size
times gamma are those of ``fixed``. Random numbers are the same at every checkpoint.

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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from losskernel.data.augmentation import FromPixels, center_crop, normalized, random_crop_flip
from losskernel.data.download import download as fetch
from losskernel.data.images import imagenet_wnids
from losskernel.data.tiny_imagenet import LabeledImages, load_tiny_imagenet
from losskernel.files import atomic_path
from losskernel.gradients.linear_response import gram, linear_part, write_coupled_displacements
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.models.inception_small import (
    InceptionSmall,
    calibrate_batch_norm,
    fold_batch_norm,
    with_batch_norm,
)
from losskernel.progress import bar
from losskernel.sampling.inputs import usable_device
from losskernel.sampling.pilot import propose_probe
from losskernel.sampling.probe import Probe
from losskernel.sampling.sample import cross_entropy, sample_losses
from losskernel.seeds import numpy_generator, torch_seed
from losskernel.trace import LossTrace
from losskernel.training.checkpoints import Checkpoint, checkpoint_path
from losskernel.training.train import TrainingSettings
from losskernel.training.train import train as train_classifier

RULES = ("fixed", "rise")
BLOCK = 500  # images a forward pass

log = logging.getLogger("losskernel")


def download(settings: dict, output: Path) -> None:
    """Fetch the official archive, 248 MB, and verify its checksum."""
    found = fetch(settings["url"], output, settings["checksum"])
    if settings["checksum"] is None:
        log.warning("no checksum is configured; write checksum: %s to pin this file", found)


def generate(settings: dict, output: Path) -> None:
    """An archive of random textures in the layout of the official one, for a run without data.

    Images of a class share a base color, so that there is something to learn.
    """
    rng = numpy_generator(settings["seed"], "init")
    wnids = np.array(imagenet_wnids())[rng.choice(1000, settings["classes"], replace=False)]
    root, lines = "tiny-imagenet-200", []
    with atomic_path(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(f"{root}/wnids.txt", "\n".join(wnids) + "\n")
        for wnid in wnids:
            color = rng.integers(40, 216, 3)
            for number in range(settings["per_class"]):
                pixels = np.clip(color + rng.normal(0, 40, (64, 64, 3)), 0, 255).astype(np.uint8)
                encoded = io.BytesIO()
                Image.fromarray(pixels).save(encoded, "JPEG")
                archive.writestr(
                    f"{root}/train/{wnid}/images/{wnid}_{number}.JPEG", encoded.getvalue()
                )
                name = f"val_{len(lines)}.JPEG"
                lines.append(f"{name}\t{wnid}\t0\t0\t63\t63")
                archive.writestr(f"{root}/val/images/{name}", encoded.getvalue())
        archive.writestr(f"{root}/val/val_annotations.txt", "\n".join(lines) + "\n")


def _network(settings: dict, classes: int, seed: int) -> nn.Module:
    """The network as it is trained, at the initialization of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "init"))
        model = with_batch_norm(InceptionSmall(classes, **settings["network"]))
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
    output_traces: list[Path],
) -> None:
    """What the analysis needs of one checkpoint: two loss traces, and the rest in one file.

    ``output_traces`` are those of the rules ``fixed`` and ``rise``, resumable through ``journal``.
    ``output`` holds the accuracy on all validation images, the penultimate features of the probe
    inputs, and the Gram matrix of their loss gradients as cosines (lower triangle) and norms. The
    probe inputs are validation images, the first of each class; minibatch gradients come from
    training images, the first of each class.
    """
    validation = load_tiny_imagenet(archive, "val", image_size=settings["image_size"])
    problem = probed(settings, archive, folder, step, validation)
    model, data, probe_data = problem.model, problem.data, problem.probe_data
    shown = center_crop(validation.pixels, settings["crop"])
    accuracy = _accuracy(model, shown, validation.labels)
    coordinates = problem.coordinates
    probes, pilot = _probes(settings, model, probe_data)
    attributes = {"network": network, "step": step} | accuracy
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        gradients = per_sample_gradients(
            model, probe_data, Path(scratch) / "gradients", engine="sequential"
        )
        for rule, path in zip(RULES, output_traces, strict=True):
            trace = sample_losses(
                model,
                data,
                probes[rule],
                probe_data=probe_data,
                seed=settings["sampling_seed"],
                journal=journal / rule,
                input_coords=coordinates,
                **settings["sampling"],
            )
            coupled = Path(scratch) / rule
            write_coupled_displacements(journal / rule, coupled)
            linear = np.full(trace.dataset["loss"].shape, np.nan, np.float32)
            linear[~trace.diverged] = linear_part(gradients, coupled, trace.losses.shape[1])
            trace = LossTrace(trace.dataset.assign(linear=(trace.dataset["loss"].dims, linear)))
            trace.dataset.attrs |= attributes | {"rule": rule}
            trace.save(path)
        matrix = gram(gradients)
    norms = np.sqrt(np.diag(matrix))
    inverse = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    cosine = matrix * np.outer(inverse, inverse)
    with torch.inference_mode():
        features = model.model.features(normalized(probe_data[0])).numpy()
    with atomic_path(output) as temporary:
        np.savez_compressed(
            temporary,
            network=network,
            step=step,
            accuracy=json.dumps(accuracy | pilot),
            features=features.astype(np.float16),
            cosine=cosine[np.tril_indices(len(cosine))].astype(np.float16),
            norms=norms.astype(np.float32),
            weights_sha256=gradients.weights_sha256,
        )


@dataclass(frozen=True)
class Probed:
    """A checkpoint's network, what its gradients come from, and the inputs of its kernel.

    Attributes:
        model: called with pixels.
        data: pixels and labels of training images.
        probe_data: those of validation images.
        coordinates: ``label``, ``wnid`` and ``name`` of the latter.
    """

    model: FromPixels
    data: tuple[Tensor, Tensor]
    probe_data: tuple[Tensor, Tensor]
    coordinates: dict[str, np.ndarray]


def probed(
    settings: dict, archive: Path, folder: Path, step: int, validation: LabeledImages
) -> Probed:
    """What is sampled at a checkpoint: the first images of each class."""
    size, crop = settings["image_size"], settings["crop"]
    train_images = load_tiny_imagenet(archive, "train", settings["gradient_per_class"], size)
    data = (center_crop(train_images.pixels, crop).contiguous(), train_images.labels)
    model = _network_of(settings, folder, step, data[0], len(train_images.wnids))
    names, labels, shown = _first_of_each_class(validation, settings["probe_per_class"])
    coordinates = {
        "label": labels.numpy(),
        "wnid": np.array(validation.wnids)[labels.numpy()],
        "name": names,
    }
    return Probed(model, data, (center_crop(shown, crop).contiguous(), labels), coordinates)


def _network_of(
    settings: dict, folder: Path, step: int, pixels: Tensor, classes: int
) -> FromPixels:
    """The network of a checkpoint, with fresh statistics merged into its convolutions."""
    model = _network(settings, classes, 0)
    model.load_state_dict(Checkpoint.load(checkpoint_path(folder, step)).model)
    size = min(settings["training"]["batch_size"], len(pixels))
    order = torch.from_numpy(numpy_generator(0, "order").permutation(len(pixels)))
    batches = [pixels[at] for at in order.split(size) if len(at) == size]
    calibrate_batch_norm(
        model, (normalized(batch) for batch in batches[: settings["calibration_batches"]])
    )
    return FromPixels(fold_batch_norm(model)).eval()


@torch.inference_mode()
def _accuracy(model: nn.Module, pixels: Tensor, labels: Tensor) -> dict[str, float]:
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


def _probes(
    settings: dict, model: nn.Module, probe_data: tuple[Tensor, Tensor]
) -> tuple[dict[str, Probe], dict[str, float]]:
    """The probe of each rule, and what the pilot of the second found."""
    fixed = Probe(**settings["probe"])
    chosen = settings["pilot"]
    pilot = propose_probe(
        model,
        probe_data,
        rise=chosen["rise"],
        most_inputs=chosen["inputs"],
        directions=chosen["directions"],
        seed=settings["sampling_seed"],
        engine="sequential",
    )
    gamma = pilot.probe.gamma
    rise = Probe(fixed.n_beta, gamma, fixed.step_size * fixed.gamma / gamma)
    found = {"pilot_gamma": gamma, "pilot_rise": pilot.rise, "pilot_rise_error": pilot.rise_error}
    return {"fixed": fixed, "rise": rise}, found
