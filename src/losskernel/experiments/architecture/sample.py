"""The kernel of a network trained on Tiny ImageNet, on validation images.

One rule of ``workflow/rules/architecture.smk``. Networks are trained, and their checkpoints read,
by :mod:`losskernel.experiments.development.sample`. What is written has no pixel in it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from losskernel.data.augmentation import center_crop
from losskernel.data.tiny_imagenet import load_tiny_imagenet
from losskernel.experiments.development.sample import (
    BLOCK,
    gamma_at_rise,
    kernel,
    measured_accuracy,
    probed,
)
from losskernel.files import atomic_path, write_npz
from losskernel.models.features import penultimate_features
from losskernel.sampling.inputs import Inputs, state_fingerprint


def sample(
    settings: dict,
    archive: Path,
    folder: Path,
    journal: Path,
    output: Path,
    output_features: Path,
    output_accuracy: Path,
) -> None:
    """Kernel, penultimate features and accuracy of a network at its last checkpoint.

    ``output`` is the kernel of the first validation images of each class, at the gamma where the
    mean loss rises by ``settings["rise"]``, batch normalization with frozen statistics. Files are
    as those of ``kernel``, ``features`` and ``evaluate`` in
    :mod:`losskernel.experiments.imagenet.sample`; the accuracy is of all validation images.
    """
    validation = load_tiny_imagenet(archive, "val", image_size=settings["image_size"])
    problem = probed(settings, archive, folder, settings["step"], validation)
    model, data = problem.model, problem.data
    inputs = Inputs(data).fingerprint()
    known = {
        "model": settings["network"].get("model", "inception_small"),
        "step": settings["step"],
        "weights_sha256": state_fingerprint(model),
    }
    gamma = gamma_at_rise(settings, model, data)
    kernel(settings, problem, gamma, journal, output, known | {"inputs_sha256": inputs})
    write_npz(
        output_features,
        features=penultimate_features(model, data[0].split(BLOCK)).numpy().astype(np.float16),
        name=problem.coordinates["name"],
        inputs_sha256=inputs,
    )
    shown = center_crop(validation.pixels, settings["crop"])
    found = measured_accuracy(model, shown, validation.labels)
    with atomic_path(output_accuracy) as temporary:
        temporary.write_text(json.dumps({**known, "images": len(shown), **found}, indent=1))
