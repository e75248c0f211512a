"""A kernel on disk, small enough to be tracked: R with its halves and what its errors come from.

Lower triangles below the diagonal, row by row: R in float16, within 5e-4 of itself, and what taking
one half of the pairs, or leaving out a group of them, changes, in steps of 1/127 of the largest
change. Earlier versions wrote the halves in float16.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from losskernel.errors import TraceError
from losskernel.files import write_npz
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.jackknife import jackknife_error


@dataclass(frozen=True)
class StoredKernel:
    """The normalized kernel of ``N(w*, I / gamma)``, from gradients at pairs of draws.

    Attributes:
        r: ``(input, input)``.
        halves: R from either half of the pairs, ``(2, input, input)``.
        left_out: R without one group of pairs in turn, ``(group, input, input)``.
        self_covariance: diagonal of K, ``(input,)``, in units of the loss squared.
        losses: at the draws, ``(draw, input)``, two draws a pair.
        initial_losses: at the trained weights, ``(input,)``.
        coordinates: what is known of the inputs by name, ``(input,)`` each.
        attributes: gamma, pairs, linear share, settings.
    """

    r: NDArray
    halves: NDArray
    left_out: NDArray
    self_covariance: NDArray
    losses: NDArray
    initial_losses: NDArray
    coordinates: dict[str, NDArray] = field(default_factory=dict)
    attributes: dict = field(default_factory=dict)

    @classmethod
    def of(cls, found, coordinates: dict[str, NDArray], attributes: dict) -> StoredKernel:
        """What is kept of a :class:`losskernel.gradients.covariance.GradientCovariance`."""
        known = {
            "gamma": found.gamma,
            "pairs": found.pairs,
            "width": found.width,
            "linear_share": found.linear_share,
            "seconds": float(np.sum(found.seconds)),
        }
        return cls(
            normalize(found.kernel),
            np.array([normalize(half) for half in found.halves]),
            np.array([normalize(part) for part in found.left_out]),
            np.diag(found.kernel).copy(),
            found.losses,
            found.initial_losses,
            coordinates,
            known | attributes,
        )

    def among(self, names: NDArray) -> StoredKernel:
        """The same of some of the inputs, in the order of their names.

        Raises:
            TraceError: an input is not there.
        """
        place = {name: at for at, name in enumerate(self.coordinates["name"].tolist())}
        if missing := sorted(set(names.tolist()) - set(place)):
            raise TraceError(f"{missing[0]} is no input of the kernel; compute it of these inputs")
        at = [place[name] for name in names.tolist()]
        square = np.ix_(at, at)
        return StoredKernel(
            self.r[square],
            np.array([half[square] for half in self.halves]),
            np.array([part[square] for part in self.left_out]),
            self.self_covariance[at],
            self.losses[:, at],
            self.initial_losses[at],
            {name: values[at] for name, values in self.coordinates.items()},
            self.attributes,
        )

    @property
    def gamma(self) -> float:
        return self.attributes["gamma"]

    @property
    def reliability(self) -> tuple[float, float]:
        """Correlation of R between halves, over pairs of inputs, and that of the whole.

        The second by Spearman and Brown, ``2 r / (1 + r)``.
        """
        first, second = (_triangle(half) for half in self.halves)
        half = float(np.corrcoef(first, second)[0, 1])
        return half, 2 * half / (1 + half)

    @property
    def rise(self) -> tuple[float, float]:
        """Rise of the mean loss under the probe, and its standard error over pairs."""
        return rise_over_pairs(self.losses, self.initial_losses)

    def error(self, statistic: Callable[[NDArray], NDArray | float]) -> NDArray | float:
        """Standard error of a statistic of R over draws, by the jackknife over groups of pairs."""
        return jackknife_error([statistic(part) for part in self.left_out])

    def save(self, path: str | Path) -> None:
        """Write, atomically."""
        parts = (*self.halves, *self.left_out)
        changes = np.array([_triangle(part - self.r) for part in parts])
        steps = np.maximum(np.abs(changes).max(axis=1), 1e-12) / 127
        write_npz(
            path,
            triangle=_triangle(self.r).astype(np.float16),
            changes=np.round(changes / steps[:, None]).astype(np.int8),
            steps=steps,
            self_covariance=self.self_covariance,
            losses=self.losses.astype(np.float32),
            initial_losses=self.initial_losses.astype(np.float32),
            attributes=json.dumps(self.attributes, sort_keys=True),
            **{f"input_{name}": values for name, values in self.coordinates.items()},
        )

    @classmethod
    def load(cls, path: str | Path) -> StoredKernel:
        """Read what :meth:`save` wrote.

        Raises:
            TraceError: the file is missing, unreadable, or something else.
        """
        path = Path(path)
        if not path.is_file():
            raise TraceError(f"{path}: no such kernel; compute it first or correct the path")
        try:
            with np.load(path) as stored:
                held = dict(stored)
            r = square(held["triangle"], 1.0)
            changes = held["changes"] * held["steps"][:, None]
            # A step may lead beyond 1 by half of one.
            parts = np.array([np.clip(r + square(change, 0.0), -1, 1) for change in changes])
            halves, left_out = parts[:2], parts[2:]
            if "halves" in held:
                halves, left_out = np.array([square(half, 1.0) for half in held["halves"]]), parts
            return cls(
                r,
                halves,
                left_out,
                held["self_covariance"],
                held["losses"],
                held["initial_losses"],
                {
                    name.removeprefix("input_"): values
                    for name, values in held.items()
                    if name.startswith("input_")
                },
                json.loads(str(held["attributes"])),
            )
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise TraceError(f"{path}: unreadable as a kernel ({error}); make it again") from error


def rise_over_pairs(losses: NDArray, initial_losses: NDArray) -> tuple[float, float]:
    """Rise of the mean loss from ``(draw, input)``, two draws a pair, and its standard error.

    The two draws of a pair depend on each other, so that the error is that of means of pairs.
    """
    by_pair = losses.mean(1, dtype=np.float64).reshape(-1, 2).mean(1)
    rise = by_pair.mean() - initial_losses.mean(dtype=np.float64)
    return float(rise), float(by_pair.std(ddof=1) / np.sqrt(len(by_pair)))


def _triangle(matrix: NDArray) -> NDArray:
    return matrix[np.tril_indices(len(matrix), -1)]


def square(triangle: NDArray, diagonal: float) -> NDArray:
    """The symmetric matrix of a triangle below the diagonal, row by row."""
    inputs = round((1 + np.sqrt(1 + 8 * len(triangle))) / 2)
    if inputs * (inputs - 1) // 2 != len(triangle):
        raise ValueError(f"{len(triangle)} numbers are no triangle")
    square = np.zeros((inputs, inputs))
    square[np.tril_indices(inputs, -1)] = triangle
    square += square.T
    square[np.diag_indices(inputs)] = diagonal
    return square
