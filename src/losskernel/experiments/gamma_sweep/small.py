"""The localization sweep of small networks: the last checkpoints of the development experiment.

Kernels come from gradients at pairs of draws, as in
:mod:`losskernel.experiments.development.sample`, and are analyzed by
:func:`losskernel.experiments.gamma_sweep.analyze.analyze`, a table a network.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from losskernel.data.tiny_imagenet import load_tiny_imagenet
from losskernel.experiments.development.sample import Probed, kernel, limit_gram, probed
from losskernel.experiments.gamma_sweep.analyze import looks, table_of_looks
from losskernel.files import write_csv, write_npz


def sample(
    settings: dict,
    archive: Path,
    folder: Path,
    network: str,
    number: int,
    journal: Path,
    output: Path,
) -> None:
    """The kernel of a network at gamma number ``number``; resumable through ``journal``."""
    known = {"network": network, "step": settings["step"]}
    gamma = settings["gammas"][number]
    kernel(settings, _problem(settings, archive, folder), gamma, journal, output, known)


def limit(settings: dict, archive: Path, folder: Path, output: Path, output_colors: Path) -> None:
    """Gram matrix of the gradients of the same inputs, and a table of their colors and textures."""
    problem = _problem(settings, archive, folder)
    gram = limit_gram(problem.model, problem.data, output.parent)
    write_npz(output, gram=gram)
    pictures = problem.data[0].permute(0, 2, 3, 1).numpy()
    rows = [looks(Image.fromarray(pixels)) for pixels in pictures]
    table = table_of_looks(problem.coordinates["name"], rows)
    write_csv(table.round(2), output_colors)


def _problem(settings: dict, archive: Path, folder: Path) -> Probed:
    per_class = settings["probe_per_class"]
    validation = load_tiny_imagenet(archive, "val", per_class, settings["image_size"])
    return probed(settings, archive, folder, settings["step"], validation)
