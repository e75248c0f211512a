r"""The loss kernel to first order in the displacement of the weights: exact as gamma grows.

With ``l_i(w) = l_i(w*) + a_i + r_i``, ``a_i = g_i . (w - w*)`` the *linear part* of a loss and
``g_i`` its gradient at the trained weights, the kernel of the linear parts depends on the Gram
matrix of the gradients alone (:func:`losskernel.kernel.control_variate.limit_kernel`), and the
remainder vanishes against it as the localization gamma grows. So the limit is a check on the
sampler, and the linear parts are a control variate (Glasserman 2003, *Monte Carlo Methods in
Financial Engineering*, Section 4.1): known in every draw (:func:`linear_part`) and known in
distribution, they take their own sampling noise out of the kernel
(:func:`losskernel.kernel.control_variate.control_variate_kernel`).

The displacements are those of the draws (``sample_losses(..., displacements=True)``). Their
covariance is known exactly only for ``n_beta = 0``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from losskernel.errors import TraceError
from losskernel.gradients.per_sample import Gradients
from losskernel.progress import bar
from losskernel.sampling.journal import DISPLACEMENTS, JournalHead
from losskernel.sampling.parameters import layout_fingerprint


def gram(
    gradients: Gradients,
    parameters: str | Sequence[str] = "all",
    block: int | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Inner products of the gradients over some parameters, ``(input, input)`` float64.

    Products are float32 within a block of columns; blocks are added in float64. Matrices of
    disjoint groups of parameters add up to that of their union.

    Args:
        gradients: from :func:`losskernel.gradients.per_sample.per_sample_gradients`.
        parameters: names as in :func:`losskernel.sampling.parameters.select_parameters`, for a
            group of layers alone.
        block: columns at once; by default what 0.25 GB holds.
        progress: show a progress bar.
    """
    result = np.zeros((len(gradients), len(gradients)))
    total = sum(span.stop - span.start for span in gradients.columns(parameters))
    with bar(None, "Gram matrix", total=total, unit="parameter", show=progress) as shown:
        for part, rows in gradients.blocks(parameters, block):
            result += rows @ rows.T
            shown.update(part.stop - part.start)
    return result * np.outer(gradients.scale, gradients.scale)


def linear_part(
    gradients: Gradients,
    displacements: str | Path | Sequence[str | Path],
    draws: int | None = None,
    block: int | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Linear parts ``g_i (w - w*)`` at every stored draw, ``(chain, draw, input)`` float64.

    The gradients are read once, whatever the number of draws; products are float32 within a block
    of columns, and blocks are added in float64. Both factors are float16 on disk, each value within
    2^-11 of itself, which leaves an error of some 1e-4 of a linear part's standard deviation.

    Args:
        gradients: of the same model and parameters, for the inputs of interest.
        displacements: the journal folders of one or more runs of
            ``sample_losses(..., displacements=True)``. Their chains follow each other; those that
            diverged by the last draw are left out, as in :attr:`losskernel.LossTrace.losses`.
        draws: how many of each; by default as many as the shortest run holds.
        block: columns at once; by default what 0.25 GB holds.
        progress: show a progress bar.

    Raises:
        TraceError: a folder holds no displacements, or those of another model or of other
            parameters, or they are incomplete; or the folders differ in their probe.
    """
    folders = [displacements] if isinstance(displacements, (str, Path)) else displacements
    if not folders:
        raise TraceError("no displacements; give at least one journal")
    runs = [_Run.read(Path(folder)) for folder in folders]
    fewest = min(runs, key=lambda run: run.draws)
    if draws is not None and not 1 <= draws <= fewest.draws:
        raise TraceError(f"{fewest.folder}: holds {fewest.draws} draws, not the {draws} asked for")
    draws = fewest.draws if draws is None else draws
    for run in runs:
        run.check(gradients)
        if run.probe != runs[0].probe:
            raise TraceError(
                f"{run.folder}: displacements with {run.probe}, but {runs[0].folder} with "
                f"{runs[0].probe}; join only draws of one probe distribution"
            )
    healthy = [run.healthy(draws) for run in runs]
    scales = [np.full(kept.sum(), 1 / run.scale) for run, kept in zip(runs, healthy, strict=True)]
    result = np.zeros((sum(len(scale) for scale in scales), draws, len(gradients)))
    total = gradients.size
    with bar(None, "linear part", total=total, unit="parameter", show=progress) as shown:
        for part, rows in gradients.blocks(block=block, beside=result.shape[0] * draws):
            chain = 0
            for run, kept in zip(runs, healthy, strict=True):
                stored = run.displacements(gradients.size)  # mapped anew: see Gradients.blocks
                columns = stored[:draws, kept, part].astype(np.float32)
                products = columns.reshape(-1, columns.shape[-1]) @ rows.T
                chains = columns.shape[1]
                result[chain : chain + chains] += products.reshape(draws, chains, -1).swapaxes(0, 1)
                chain += chains
            shown.update(part.stop - part.start)
    return result * np.concatenate(scales)[:, None, None] * gradients.scale


class _Run(JournalHead):
    """A journal whose displacements are read."""

    @property
    def scale(self) -> float:
        """What displacements are multiplied with before they are stored."""
        return (self.probe.gamma or 1.0) ** 0.5

    def healthy(self, draws: int) -> np.ndarray:
        """Which chains did not diverge within so many draws, ``(chain,)``."""
        return (self.diverged < 0) | (self.diverged >= draws)

    def check(self, gradients: Gradients) -> None:
        """Raise a TraceError unless complete displacements that fit the gradients are stored."""
        names = json.loads(self.settings["parameters"])["names"]
        for key, here, there in (
            ("weights", self.settings["weights_sha256"], gradients.weights_sha256),
            ("parameters", _brief(names), _brief(gradients.names)),
            ("loss", self.settings.get("loss"), gradients.loss),
            (
                "memory format",
                self.settings["parameters_layout"],
                layout_fingerprint(gradients.shapes, gradients.strides),
            ),
        ):
            if here != there:
                raise TraceError(
                    f"{self.folder}: displacements of other {key} ({here}) than the gradients "
                    f"({there} in {gradients.folder}); use the same model and parameters"
                )
        path = self.folder / DISPLACEMENTS
        if not path.exists():
            raise TraceError(f"{path}: missing; sample with displacements=True")
        shape = (self.draws, len(self.diverged), gradients.size)
        expected, found = 2 * math.prod(shape), path.stat().st_size
        if found < expected:
            raise TraceError(
                f"{path}: {found} bytes, too short for {shape[0]} draws x {shape[1]} chains x "
                f"{shape[2]} parameters ({expected}); sample again"
            )

    def displacements(self, parameters: int) -> np.ndarray:
        """Stored displacements, ``(draw, chain, parameter)``, mapped from the file."""
        shape = (self.draws, len(self.diverged), parameters)
        return np.memmap(self.folder / DISPLACEMENTS, np.float16, "r", shape=shape)


def _brief(names: Sequence[str]) -> str:
    """Names in a few words that differ if they do."""
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    return f"{len(names)} from '{names[0]}' on, {digest}"
