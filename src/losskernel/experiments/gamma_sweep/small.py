"""The localization sweep where draws are cheap: the small network of the development experiment.

Its final checkpoint, sampled as :mod:`losskernel.experiments.development.sample` does but at
several
gammas, with a step size that falls as gamma rises: a weight that the loss does not feel forgets as
fast at each. The traces are analyzed by :func:`losskernel.experiments.gamma_sweep.analyze`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from losskernel.commands.limit import gram as write_gram
from losskernel.data.images import imagenet_wnids
from losskernel.data.tiny_imagenet import load_tiny_imagenet
from losskernel.experiments.development.sample import Probed, probed
from losskernel.files import write_csv
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.sampling.probe import Probe
from losskernel.sampling.sample import sample_losses
from losskernel.semantics.color import mean_color


def sample(
    settings: dict, archive: Path, folder: Path, number: int, journal: Path, output: Path
) -> None:
    """The trace of gamma number ``number``; chains of different gammas have different noise."""
    problem = _problem(settings, archive, folder)
    # Numbers of the hierarchy's classes, as in the other traces that are compared with it.
    place = {wnid: label for label, wnid in enumerate(imagenet_wnids())}
    wnids = problem.coordinates["wnid"].tolist()
    coordinates = problem.coordinates | {"label": np.array([place[wnid] for wnid in wnids])}
    gamma, sampling = settings["gammas"][number], dict(settings["sampling"])
    chains = sampling.pop("chains")
    trace = sample_losses(
        problem.model,
        problem.data,
        Probe(settings["n_beta"], gamma, settings["relaxation"] / gamma),
        probe_data=problem.probe_data,
        seed=settings["seed"],
        chain_ids=range(number * chains, (number + 1) * chains),
        journal=journal,
        input_coords=coordinates,
        **sampling,
    )
    trace.dataset.attrs |= {"training_seed": settings["training_seed"], "step": settings["step"]}
    trace.save(output)


def limit(settings: dict, archive: Path, folder: Path, output: Path, output_colors: Path) -> None:
    """Gram matrix of the gradients of the same inputs, and a table of their mean colors."""
    problem = _problem(settings, archive, folder)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        gradients = per_sample_gradients(
            problem.model, problem.probe_data, Path(scratch) / "gradients", engine="sequential"
        )
        write_gram(gradients.folder, output)
    pictures = problem.probe_data[0].permute(0, 2, 3, 1).numpy()
    table = pd.DataFrame(
        [mean_color(Image.fromarray(pixels)) for pixels in pictures], columns=["L", "a", "b"]
    )
    table.insert(0, "name", problem.coordinates["name"])
    write_csv(table.round(2), output_colors)


def _problem(settings: dict, archive: Path, folder: Path) -> Probed:
    validation = load_tiny_imagenet(archive, "val", image_size=settings["image_size"])
    return probed(settings, archive, folder, settings["step"], validation)
