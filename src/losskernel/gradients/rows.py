r"""The loss kernel of many inputs from pairs of gradients, in squares of it, on disk.

:func:`losskernel.gradients.covariance.gradient_covariance` holds several matrices of inputs squared
in float64. Here the gradients of all draws are kept instead, folded, and of each square of K one
sum of products is taken. With A_s, B_s and T as there for three nodes (Simpson's rule) and ``V_s =
G(A_s) - G(B_s)``, its estimate from S pairs is ::

    6 gamma K = (5 - 1 / (S - 1)) / (4 S) sum_s U_s U_s^T - 3 / (4 S) sum_s V_s V_s^T
                + T T^T / (4 S^2 - 4 S).

What is read afterwards are rows, so that neighbors, diagonals, reliability and CKA of 10,000 inputs
need little memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from losskernel.errors import DataError, LossKernelError
from losskernel.files import atomic_path
from losskernel.gradients.covariance import _Record, _Run, sampled
from losskernel.kernel.covariance import slices
from losskernel.kernel.neighbors import nearest_of_rows
from losskernel.kernel.stored import rise_over_pairs
from losskernel.progress import bar
from losskernel.sampling.ambient import own_torch_settings
from losskernel.sampling.engines import LossPerInput
from losskernel.sampling.probe import nonnegative
from losskernel.sampling.sample import Data, cross_entropy

DEFAULT_WIDTH = 2**14
_TILE = 1024  # inputs on a side of a square
_ROWS = 500  # of K that are looked at at once
WHOLE, HALVES = "whole", ("half-0", "half-1")


@dataclass(frozen=True)
class KernelRows:
    """K on disk, ``(input, input)`` float32, and from either half of the pairs.

    Attributes:
        folder: where the matrices are, by the names :data:`WHOLE` and :data:`HALVES`.
        gamma, pairs, width, engine: as of
            :class:`losskernel.gradients.covariance.GradientCovariance`.
        losses: at the draws, ``(draw, input)``, A and B of each pair in turn.
        initial_losses: at the trained weights, ``(input,)``.
        seconds: what the gradients of each pair took, ``(pair,)``.
    """

    folder: Path
    gamma: float
    pairs: int
    width: int
    engine: str
    losses: NDArray
    initial_losses: NDArray
    seconds: NDArray

    def __len__(self) -> int:
        return len(self.initial_losses)

    def rows(self, part: slice, of: str = WHOLE) -> NDArray[np.float32]:
        """Some rows of K, ``(row, input)``; nothing of them stays mapped."""
        return np.array(_matrix(self.folder, of, self.pairs, len(self), "r")[part])

    @cached_property
    def _variances(self) -> dict[str, NDArray]:
        return {
            name: np.array(_matrix(self.folder, name, self.pairs, len(self), "r").diagonal())
            for name in (WHOLE, *HALVES)
        }

    def variances(self, of: str = WHOLE) -> NDArray[np.float32]:
        """Self-covariances, the diagonal of K, ``(input,)``."""
        return self._variances[of]

    def correlation(self, part: slice, of: str = WHOLE) -> NDArray[np.float32]:
        """Some rows of R, ``(row, input)``; 0 where a variance is not positive."""
        variance = self.variances(of)
        positive = variance > 0
        inverse = np.where(positive, np.where(positive, variance, 1) ** -0.5, 0)
        rows = self.rows(part, of) * inverse[part, None].astype(np.float32)
        rows *= inverse.astype(np.float32)
        return np.clip(rows, -1, 1, out=rows)

    def blocks(self, of: str = WHOLE) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """All rows of R, some at a time."""
        for part in slices(len(self), _ROWS):
            yield part, self.correlation(part, of)

    def neighbors(
        self, k: int, exclude_labels: ArrayLike | None = None, of: str = WHOLE
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """As :func:`losskernel.kernel.neighbors.neighbors_by_distance` of the distances of R.

        Raises:
            DataError: an input has fewer than ``k`` others to choose from.
        """
        labels = np.arange(len(self)) if exclude_labels is None else np.asarray(exclude_labels)
        fewest = len(self) - int(np.unique(labels, return_counts=True)[1].max())
        if not 1 <= k <= fewest:
            raise DataError(f"neighbors: k = {k} must be from 1 to {fewest}, the eligible inputs")
        found = [
            nearest_of_rows(np.sqrt(2 * (1 - rows)), labels[part], labels, k)
            for part, rows in self.blocks(of)
        ]
        indices, distances = zip(*found, strict=True)
        return np.concatenate(indices), np.concatenate(distances)

    def reliability(self, labels: ArrayLike | None = None) -> tuple[float, float]:
        """Correlation of R between the halves over pairs of inputs, and that of the whole.

        The second by Spearman and Brown, ``2 r / (1 + r)``. With ``labels``, over pairs of unequal
        label.
        """
        labels = np.arange(len(self)) if labels is None else np.asarray(labels)
        moments = np.zeros((3, 3))
        for part, first in self.blocks(HALVES[0]):
            chosen = labels[part, None] != labels
            values = [first[chosen], self.correlation(part, HALVES[1])[chosen]]
            values = np.stack([np.ones(len(values[0])), *values])
            moments += values @ values.T
        moments /= moments[0, 0]
        between = moments[1:, 1:] - np.outer(moments[0, 1:], moments[0, 1:])
        half = float(between[0, 1] / np.sqrt(between[0, 0] * between[1, 1]))
        return half, 2 * half / (1 + half)

    def cka(self, features: ArrayLike) -> float:
        """CKA of R with ``F F^T`` of features ``(input, d)``.

        See :func:`losskernel.kernel.alignment.cka`.
        """
        centered = np.asarray(features, np.float64)
        centered = centered - centered.mean(0)
        square, sums, projected = 0.0, np.empty(len(self)), np.empty_like(centered)
        for part, rows in self.blocks():
            square += float((rows.astype(np.float64) ** 2).sum())
            sums[part] = rows.sum(1, dtype=np.float64)
            projected[part] = rows @ centered
        count = len(self)
        # |HRH|^2 from the sums of rows
        norm = square - 2 * (sums**2).sum() / count + sums.sum() ** 2 / count**2
        other = np.linalg.norm(centered.T @ centered)
        return float((centered * projected).sum() / (np.sqrt(norm) * other))

    @property
    def rise(self) -> tuple[float, float]:
        """Rise of the mean loss under the probe and its standard error over pairs."""
        return rise_over_pairs(self.losses, self.initial_losses)


@own_torch_settings()
def kernel_rows(
    model: nn.Module,
    data: Data,
    *,
    gamma: float,
    journal: str | Path,
    pairs: int = 4,
    loss: LossPerInput = cross_entropy,
    parameters: str | Sequence[str] = "trainable",
    seed: int = 0,
    width: int = DEFAULT_WIDTH,
    engine: str = "auto",
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> KernelRows:
    """The loss kernel of the Gaussian probe where inputs squared do not fit the memory.

    The same estimate as :func:`losskernel.gradients.covariance.gradient_covariance`, with arguments
    and errors as there. What memory and disk it takes is logged before it starts.

    Args:
        journal: folder in which work is saved block by block; call again with the same arguments to
            continue after a kill. It takes ``8 x inputs x width x pairs`` bytes of disk for the
            gradients and ``12 x inputs^2`` for the matrices, and is kept: the result reads it.
        width: columns that a gradient is folded into; a cosine is off by ``width ** -0.5`` or so,
            the same in both halves.
    """
    probe, kept = (nonnegative("gamma", gamma), 0.0, None), partial(_Draws, pairs=pairs)
    design, where = (pairs, 2, 3), (journal, engine, device)
    with sampled(
        kept, model, data, probe, design, loss, parameters, seed, width, where, progress
    ) as (record, run, pairs):
        record.matrices(run, pairs, probe[0], progress)
        losses, seconds = [], []
        for path in record.pairs[:pairs]:
            with np.load(path) as stored:
                losses.append(stored["losses"])
                seconds.append(float(stored["seconds"]))
        return KernelRows(
            record.folder,
            probe[0],
            pairs,
            run.fold.width,
            run.source.kind,
            np.concatenate(losses),
            record.initial_losses,
            np.array(seconds),
        )


class _Draws(_Record):
    """The folder of a kernel on disk: the gradients of all draws, and matrices made of them."""

    def __init__(self, folder: Path, settings: dict, width: int, pairs: int):
        super().__init__(folder, settings | {"kept": "draws"}, width)
        self._pairs = pairs

    def _memory(self) -> int:
        return 4 * 12 * _TILE * self._width + 4 * 12 * _TILE**2 + 24 * _ROWS * self.inputs

    def _disk(self) -> int:
        return 8 * self.inputs * self._width * self._pairs + 12 * self.inputs**2

    def _needs(self, pair: int) -> bool:
        return pair <= len(self.pairs)

    def finish_pair(self, run: _Run, seconds: float) -> None:
        """Keep the gradients as they are."""
        self._complete(seconds)

    def matrices(self, run: _Run, pairs: int, gamma: float, progress: bool) -> None:
        """K of the first pairs, and of their halves, unless they are there."""
        names = (WHOLE, *HALVES)
        if all(_path(self.folder, name, pairs).exists() for name in names):
            return
        if (free := shutil.disk_usage(self.folder).free) < 12 * self.inputs**2:
            raise LossKernelError(
                f"{self.folder}: needs {12 * self.inputs**2 / 1e9:.1f} GB of disk for the kernel "
                f"and has {free / 1e9:.1f}; free some"
            )
        device = run.source.center.device
        everything = np.arange(pairs)
        parts = (everything[0::2], everything[1::2])
        tiles = [
            (rows, columns)
            for rows in slices(self.inputs, _TILE)
            for columns in slices(rows.stop, _TILE)
        ]
        with atomic_path(_path(self.folder, WHOLE, pairs), sync=False) as whole:
            with (
                atomic_path(_path(self.folder, HALVES[0], pairs), sync=False) as first,
                atomic_path(_path(self.folder, HALVES[1], pairs), sync=False) as second,
            ):
                files = (whole, first, second)
                for file in files:
                    with open(file, "wb") as opened:
                        opened.truncate(4 * self.inputs**2)
                for rows, columns in bar(tiles, "products of gradients", show=progress):
                    squares = self._squares(rows, columns, parts, gamma, device)
                    for file, square in zip(files, squares, strict=True):
                        matrix = np.memmap(file, np.float32, "r+", shape=(self.inputs,) * 2)
                        matrix[rows, columns] = square
                        matrix[columns, rows] = square.T

    def _squares(
        self, rows: slice, columns: slice, parts: tuple[NDArray, NDArray], gamma: float, device
    ) -> list[NDArray]:
        """A square of K by all pairs, and by either half."""
        sums, own, apart = [], [], []
        for part in parts:
            total: list = [0, 0]
            both, between = 0, 0
            for pair in part:
                u, v = zip(
                    *(self._factors(pair, of, device) for of in (rows, columns)), strict=True
                )
                both, between = both + u[0] @ u[1].T, between + v[0] @ v[1].T
                total = [a + b for a, b in zip(total, u, strict=True)]
            sums.append(total)
            own.append(both)
            apart.append(between)
        left, right = ([total[side] for total in sums] for side in range(2))
        halves = [a @ b.T for a, b in zip(left, right, strict=True)]
        found = [(sum(own), sum(apart), sum(left) @ sum(right).T, sum(map(len, parts)))]
        found += zip(own, apart, halves, map(len, parts), strict=True)
        return [
            (
                (
                    (5 - 1 / (count - 1)) / (4 * count) * both
                    - 3 / (4 * count) * between
                    + product / (4 * count**2 - 4 * count)
                )
                / (6 * gamma)
            )
            .cpu()
            .numpy()
            for both, between, product, count in found
        ]

    def _factors(self, pair: int, part: slice, device) -> tuple[torch.Tensor, torch.Tensor]:
        """``G(A) + G(B)`` and ``G(A) - G(B)`` of some inputs, ``(input, width)``."""
        a, b = (
            torch.from_numpy(np.array(self._mapped(self._draw(pair, which))[part])).to(device)
            for which in range(2)
        )
        return a + b, a - b


def _path(folder: Path, name: str, pairs: int) -> Path:
    return folder / f"kernel-{name}-{pairs}.f32"


def _matrix(folder: Path, name: str, pairs: int, inputs: int, mode: str) -> np.memmap:
    return np.memmap(_path(folder, name, pairs), np.float32, mode, shape=(inputs, inputs))
