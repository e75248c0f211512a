"""Folding gradients of millions of parameters into fewer columns that keep their inner products.

A count sketch (Charikar, Chen and Farach-Colton 2002, "Finding frequent items in data streams";
Weinberger et al. 2009, arXiv:0902.2206, as feature hashing): every parameter gets a random sign and
a column, and a column holds the sum of its parameters' signed values. Inner products of sketches
are unbiased over the signs; their error is that of a random pair of directions in ``width``
dimensions, about ``width ** -0.5`` on a cosine.

Columns are given out in order, round and round, so that adding is adding to a slice. Signs are
products: a weight matrix's entry ``(r, k)`` has the sign ``s_r t_k``, with signs of its own for
every *piece*, the part of a matrix that fits the columns without overlap. Then the signs go into
the two factors of a gradient before they are multiplied, and the matrix product itself adds to the
sketch. Nothing is lost by it: entries that share a column belong to different pieces, so that the
expectation of a product of two or of four signs, all that mean and variance ask for, is what it is
for independent signs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from losskernel.errors import ConfigError
from losskernel.sampling.parameters import FlatLayout
from losskernel.seeds import numpy_generator

DEFAULT_WIDTH = 2**18


@dataclass(frozen=True)
class _Piece:
    """A rectangle of a parameter's matrix and the columns it is added to."""

    rows: slice
    columns: slice
    start: int
    row_signs: Tensor | None  # (row,) float32; None leaves values as they are
    column_signs: Tensor | None


class Fold:
    """Where each parameter's gradient goes among ``width`` columns, and with which signs.

    Args:
        layout: the parameters.
        width: number of columns. With at least as many as there are parameters every one has its
            own column, without a sign: nothing is folded.
        seed: of the signs.
        device: of what is folded.

    Attributes:
        width: number of columns, at most that of parameters.
        dense: whether nothing is folded.

    Raises:
        ConfigError: the width is below 1.
    """

    def __init__(self, layout: FlatLayout, width: int = DEFAULT_WIDTH, seed: int = 0, device="cpu"):
        if width < 1:
            raise ConfigError(f"sketch: width = {width} must be at least 1 column")
        self.dense = layout.size <= width
        self.width = min(width, layout.size)
        self.layout = layout
        self._memory = torch.empty(0)
        generator = numpy_generator(seed, "sketch")
        self._shapes = dict(zip(layout.names, layout.shapes, strict=True))
        self._pieces: dict[str, list[_Piece]] = {}
        position = 0

        def signs(count: int) -> Tensor | None:
            if self.dense:
                return None
            return torch.from_numpy(2.0 * generator.integers(0, 2, count) - 1).float().to(device)

        for name, shape in self._shapes.items():
            rows, columns = _matrix(shape)
            pieces = self._pieces[name] = []
            for left in range(0, columns, self.width):
                across = slice(left, min(left + self.width, columns))
                size = across.stop - across.start
                top = 0
                while top < rows:
                    if position + size > self.width:  # no row fits what is left of this round
                        position = 0
                    down = min((self.width - position) // size, rows - top)
                    pieces.append(
                        _Piece(slice(top, top + down), across, position, signs(down), signs(size))
                    )
                    top += down
                    position += down * size

    def add_product(self, out: Tensor, name: str, left: Tensor, right: Tensor) -> None:
        """Add the gradients ``sum_l left[i, l, row] right[i, l, column]`` of one parameter.

        Args:
            out: ``(input, width)`` float32, contiguous rows; added to in place.
            name: the parameter.
            left: ``(input, position, row)``, in terms of the parameter's matrix: its first axis,
                and the others with the channel (second) axis moved behind them.
            right: ``(input, *positions, *columns)``: of a convolution ``(input, height, width,
                kernel height, kernel width, channel)``, which may be a view that overlaps itself.
        """
        columns = 1 if right.ndim == 3 else 2  # where they begin in the right factor of an input
        positions = left.shape[1]
        for piece in self._pieces[name]:
            for i in range(len(left)):
                a, b = left[i, :, piece.rows], right[i]
                whole = piece.columns.stop - piece.columns.start == b.shape[columns:].numel()
                if not whole:
                    b = b.reshape(positions, -1)[:, piece.columns]
                if piece.row_signs is not None:
                    a = a * piece.row_signs
                    shape = b.shape[columns:] if whole else b.shape[1:]
                    b = torch.mul(b, piece.column_signs.view(shape), out=self._scratch(b))
                b = b.reshape(positions, -1)
                size = (a.shape[1], b.shape[1])
                target = out[i, piece.start : piece.start + size[0] * size[1]]
                target.view(size).addmm_(a.T, b)

    def _scratch(self, like: Tensor) -> Tensor:
        """Memory of the shape of ``like``: fresh memory costs more than what is computed in it."""
        if self._memory.numel() < like.numel():
            self._memory = torch.empty(like.numel(), dtype=like.dtype, device=like.device)
        return self._memory[: like.numel()].view(like.shape)

    def add(self, out: Tensor, name: str, gradients: Tensor) -> None:
        """Add gradients ``(input, *shape)`` of one parameter; otherwise as :meth:`add_product`."""
        matrix = gradients
        if gradients.ndim > 3:
            matrix = gradients.movedim(2, -1)
        matrix = matrix.reshape(len(gradients), *_matrix(self._shapes[name]))
        for piece in self._pieces[name]:
            values = matrix[:, piece.rows, piece.columns]
            if piece.row_signs is not None:
                values = values * piece.row_signs[:, None] * piece.column_signs
            values = values.flatten(1)
            out[:, piece.start : piece.start + values.shape[1]] += values

    def add_rows(self, out: Tensor, rows: Tensor) -> None:
        """Add gradients ``(input, parameter)`` in the order of the layout."""
        rows, start = rows.contiguous(), 0
        for name, shape, stride, size in zip(
            self.layout.names,
            self.layout.shapes,
            self.layout.strides,
            self.layout.sizes,
            strict=True,
        ):
            strides = (rows.shape[1], *stride)
            self.add(out, name, rows.as_strided((len(rows), *shape), strides, start))
            start += size


class Whole:
    """Keeps gradients as they are, a row each in the order of the layout.

    Args:
        layout: the parameters.
    """

    def __init__(self, layout: FlatLayout):
        self.layout, self.width = layout, layout.size
        starts = np.cumsum([0, *layout.sizes[:-1]]).tolist()
        self._places = dict(
            zip(layout.names, zip(layout.shapes, layout.strides, starts, strict=True), strict=True)
        )

    def add_product(self, out: Tensor, name: str, left: Tensor, right: Tensor) -> None:
        """As :meth:`Fold.add_product`."""
        shape = self._places[name][0]
        channel_last = shape[:1] + shape[2:] + shape[1:2]
        for i in range(len(out)):
            matrix = left[i].T @ right[i].reshape(left.shape[1], -1)
            self.add(out[i : i + 1], name, matrix.view(channel_last).movedim(-1, 1)[None])

    def add(self, out: Tensor, name: str, gradients: Tensor) -> None:
        """As :meth:`Fold.add`."""
        shape, stride, start = self._places[name]
        place = out.as_strided(
            (len(out), *shape), (out.stride(0), *stride), out.storage_offset() + start
        )
        place.add_(gradients)

    def add_rows(self, out: Tensor, rows: Tensor) -> None:
        """As :meth:`Fold.add_rows`."""
        out += rows


class Nothing:
    """A fold that keeps no gradients, for the losses alone."""

    width = 0

    def add_product(self, out: Tensor, name: str, left: Tensor, right: Tensor) -> None:
        """Do nothing, as :meth:`add` and :meth:`add_rows` do."""

    def add(self, out: Tensor, name: str, gradients: Tensor) -> None:
        pass

    def add_rows(self, out: Tensor, rows: Tensor) -> None:
        pass


def _matrix(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of a parameter as a matrix; a vector is one row."""
    if len(shape) < 2:
        return 1, shape.numel()
    return shape[0], shape[1:].numel()
