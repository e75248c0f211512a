"""Experiment 2: the loss kernel of an image classifier against the WordNet hierarchy.

Section 4.2 of the paper. Each function is one rule of ``workflow/rules/imagenet.smk``. What needs
images (:func:`kernel`, :func:`features`, :func:`evaluate`) writes intermediates without a pixel in
them; :mod:`losskernel.experiments.imagenet.analyze` reads those.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from losskernel.data.images import WnidImages, imagenet_wnids, load_images
from losskernel.data.listing import write_manifest
from losskernel.data.textures import textures
from losskernel.files import atomic_path, write_json, write_npz
from losskernel.gradients.covariance import gradient_covariance
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.kernel.stored import StoredKernel
from losskernel.models.features import penultimate_features
from losskernel.models.loader import Classifier, load_classifier
from losskernel.progress import bar
from losskernel.sampling.inputs import Inputs, state_fingerprint
from losskernel.sampling.sample import cross_entropy
from losskernel.seeds import numpy_generator
from losskernel.semantics.wordnet import Hierarchy
from losskernel.trace import provenance


def load(
    settings: dict, manifest: Path | None = None
) -> tuple[Classifier, WnidImages, tuple[Tensor, Tensor]]:
    """The classifier, the images that the settings choose, and their pixels and labels."""
    classifier = load_classifier(
        settings["model"],
        settings["weights"],
        settings["image_size"],
        settings["seed"],
        fit_outputs=False,  # wnids stand for ImageNet's 1,000 classes
    )
    images = WnidImages(
        settings["image_folder"],
        classifier.preprocess,
        per_class=settings["per_class"],
        manifest=manifest,
    )
    images.draw(settings["max_inputs"], numpy_generator(settings["seed"], "order"))
    return classifier, images, load_images(images, settings["skip_unreadable"])


def manifest(images: Path, output: Path) -> None:
    """Name, size and hash of every file of the image folder, as CSV.

    What is computed from the images is computed from those of the manifest, or not at all: an image
    that was replaced since is refused.
    """
    write_manifest(images, output)


def generate(settings: dict, output: Path) -> None:
    """Class folders of random textures, for a run without photographs."""
    for wnid, number, picture in textures(**settings):
        with atomic_path(output / wnid / f"{wnid}_{number}.png") as temporary:
            picture.save(temporary)


def kernel(
    settings: dict,
    gamma: float,
    pairs: int,
    groups: int,
    journal: Path,
    output: Path,
    manifest: Path | None = None,
) -> None:
    """The kernel at one localization, from gradients at pairs of draws; resumable.

    Gaussian probe around the published weights, all of them; the same normal draws at every gamma.
    """
    classifier, images, data = load(settings, manifest)
    found = gradient_covariance(
        classifier.model,
        data,
        gamma=gamma,
        pairs=pairs,
        groups=groups,
        width=settings["width"],
        seed=settings["seed"],
        journal=journal,
        device=settings["device"],
    )
    known = probed_by(settings, classifier, images, data)
    coordinates = {"label": images.labels, "wnid": images.wnids, "name": images.names}
    StoredKernel.of(found, coordinates, known).save(output)


def probed_by(
    settings: dict, classifier: Classifier, images: WnidImages, data: tuple[Tensor, Tensor]
) -> dict:
    """What a stored kernel tells of the model and the images that it is of."""
    return {
        "model": settings["model"],
        "weights": Path(settings["weights"]).name,
        "image_size": settings["image_size"] or 0,
        "seed": settings["seed"],
        "weights_sha256": state_fingerprint(classifier.model),
        "inputs_sha256": Inputs(data).fingerprint(),
        **images.provenance,
        **provenance(),
    }


def gradients(settings: dict, output: Path, manifest: Path | None = None) -> None:
    """Loss gradient of every image at the published weights: 2 bytes an image and parameter."""
    classifier, _, data = load(settings, manifest)
    per_sample_gradients(classifier.model, data, output, device=settings["device"])


def features(settings: dict, output: Path, manifest: Path | None = None) -> None:
    """Penultimate features of the same images: the baseline kernel is their cosine.

    Captured at the input of the model's last linear layer, whichever model it is.
    """
    classifier, images, data = load(settings, manifest)
    inputs = data[0]
    blocks = bar(inputs.split(50), "features", unit="block")
    found = penultimate_features(classifier.model, blocks)
    write_npz(
        output,
        features=found.numpy().astype(np.float16),
        name=images.names,
        inputs_sha256=Inputs(data).fingerprint(),
        **images.provenance,
    )


@torch.inference_mode()
def evaluate(settings: dict, output: Path, manifest: Path | None = None) -> None:
    """Accuracy and mean cross-entropy of the model on the images, before any perturbation."""
    classifier, images, (inputs, labels) = load(settings, manifest)
    blocks = bar(inputs.split(50), "evaluate", unit="block")
    logits = torch.cat([classifier.model(block) for block in blocks])
    top5 = logits.topk(5).indices
    result = {
        **images.provenance,
        "model": settings["model"],
        "image_size": settings["image_size"],
        "images": len(images),
        "top1": (top5[:, 0] == labels).float().mean().item(),
        "top5": (top5 == labels[:, None]).any(1).float().mean().item(),
        "cross_entropy": cross_entropy(logits, labels).mean().item(),
        "weights_sha256": state_fingerprint(classifier.model),
    }
    write_json(result, output, indent=1)


def hierarchy(output: Path, nltk_data: Path | None = None) -> None:
    """The WordNet hierarchy above the 1,000 ILSVRC classes, as a small file."""
    Hierarchy.from_wnids(imagenet_wnids(), nltk_data or os.environ.get("NLTK_DATA")).to_file(output)
