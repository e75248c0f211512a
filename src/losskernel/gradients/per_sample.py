"""The loss gradient of every single input at the trained weights, on disk where memory is short.

A folder holds the gradients of one model and one set of inputs: ``index.json`` (names and layout of
the parameters, hashes), ``gradients.f16`` or ``.f32`` (one row an input) and ``norms.f64``. A row
is scaled to a root mean square of 1, whatever the size of the loss, so that 16 bits hold it: no
entry overflows, and each is within 2^-11 of itself. Rows are appended, a norm after its row, so
that a run that is killed loses the row in flight and continues with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from losskernel.errors import ConfigError, DataError, LossKernelError, TraceError
from losskernel.files import locked, write_json
from losskernel.gradients.sketch import Whole
from losskernel.gradients.sources import GradientSource, make_source
from losskernel.progress import bar
from losskernel.sampling.ambient import own_torch_settings
from losskernel.sampling.engines import LossPerInput
from losskernel.sampling.fingerprints import loss_fingerprint
from losskernel.sampling.inputs import Inputs, state_fingerprint
from losskernel.sampling.parameters import select_among, select_parameters
from losskernel.sampling.sample import Data, cross_entropy
from losskernel.trace import behave_alike

DTYPES = {"float16": "gradients.f16", "float32": "gradients.f32"}
_BLOCK_BYTES = 2**28  # of a block of columns in float32, and of gradients computed at once
# A row of root mean square 1 has entries up to the square root of its length; float16 ends there.
_LARGEST_NORM = 2.0**15
_TINY = 1e-30  # a norm


@dataclass(frozen=True)
class Gradients:
    """Per-sample gradients ``g_i`` on disk.

    Attributes:
        folder: where they are.
        names: the parameters, in the order of the columns.
        shapes, strides: of each parameter. Its columns are its elements in memory order, as in
            :class:`losskernel.sampling.parameters.FlatLayout`.
        dtype: of the stored rows, ``"float16"`` or ``"float32"``.
        norms: Euclidean norm of each input's gradient, ``(input,)`` float64, in units of the loss
            over units of a weight.
        weights_sha256, inputs_sha256: fingerprints of the model's state and of the inputs.
        loss: fingerprint of the loss function; None for
            :func:`losskernel.sampling.sample.cross_entropy`.
        behavior: what model and loss compute, from
            :func:`losskernel.sampling.checks.check_losses`; None in folders from before it was
            kept.
    """

    folder: Path
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    dtype: str
    norms: np.ndarray
    weights_sha256: str
    inputs_sha256: str
    loss: str | None = None
    behavior: str | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Gradients:
        """Open gradients that are complete.

        Raises:
            TraceError: there are none, they are damaged, or the run that makes them did not finish.
        """
        folder = Path(folder)
        index = _read_index(folder)
        if index is None:
            raise TraceError(f"{folder}: holds no gradients; compute them or correct the path")
        inputs = index.pop("inputs")
        layout = {key: tuple(map(tuple, index.pop(key))) for key in ("shapes", "strides")}
        names = tuple(index.pop("names"))
        found = cls(folder, names, **layout, norms=_read_norms(folder), **index)
        size = found._file.stat().st_size if found._file.exists() else 0
        if len(found.norms) != inputs or size != inputs * found.size * found._itemsize:
            complete = min(len(found.norms), size // (found.size * found._itemsize))
            raise TraceError(
                f"{folder}: holds {complete} of {inputs} gradients; compute them again to go on"
            )
        return found

    def __len__(self) -> int:
        return len(self.norms)

    @property
    def sizes(self) -> list[int]:
        """Number of columns of each parameter."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def size(self) -> int:
        """Number of parameters, the columns of a row."""
        return sum(self.sizes)

    @property
    def scale(self) -> np.ndarray:
        """What a stored row is multiplied with to be the gradient, ``(input,)`` float64."""
        return self.norms / _stored_norm(self.size)

    @property
    def rows(self) -> np.ndarray:
        """The stored rows, ``(input, parameter)``, mapped from the file; see :attr:`scale`."""
        return np.memmap(self._file, self.dtype, "r", shape=(len(self), self.size))

    def columns(self, parameters: str | Sequence[str] = "all") -> list[slice]:
        """Columns of some parameters, as few slices as possible.

        Args:
            parameters: names as in :func:`losskernel.sampling.parameters.select_parameters`.

        Raises:
            ConfigError: they select nothing.
        """
        chosen = set(select_among(self.names, parameters))
        spans: list[slice] = []
        stop = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            start, stop = stop, stop + size
            if name not in chosen:
                continue
            if spans and spans[-1].stop == start:
                start = spans.pop().start
            spans.append(slice(start, stop))
        return spans

    def blocks(
        self, parameters: str | Sequence[str] = "all", block: int | None = None, beside: int = 0
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """The stored rows, some columns at a time: the slice and ``(input, column)`` float32.

        Args:
            parameters: which columns; see :meth:`columns`.
            block: columns at once; by default what 0.25 GB holds.
            beside: further rows that the caller holds beside a block, which make it smaller.
        """
        if block is not None and block < 1:
            raise ConfigError(f"block = {block} must be at least 1 column")
        block = block or max(1, _BLOCK_BYTES // (4 * (len(self) + beside)))
        for span in self.columns(parameters):
            for start in range(span.start, span.stop, block):
                part = slice(start, min(start + block, span.stop))
                # Mapped anew for each block: what was read before does not stay in memory.
                yield part, self.rows[:, part].astype(np.float32)

    @property
    def _file(self) -> Path:
        return self.folder / DTYPES[self.dtype]

    @property
    def _itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize


@own_torch_settings()
def per_sample_gradients(
    model: nn.Module,
    data: Data,
    folder: str | Path,
    *,
    loss: LossPerInput = cross_entropy,
    parameters: str | Sequence[str] = "trainable",
    engine: str = "auto",
    dtype: str = "float16",
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Gradients:
    """Gradient of each input's loss at the model's weights, into ``folder``.

    The model is copied and the copy put in evaluation mode; the caller's is not changed. Call again
    after a kill to continue; complete gradients are not computed a second time.

    Args:
        model: the trained network; called as ``model(inputs)`` with a batch of one. To go with the
            displacements of a sampling run, it must have the memory format it had there.
        data: ``(inputs, targets)`` tensors or a map-style data set of such pairs.
        folder: where the gradients are kept: ``inputs x parameters x 2`` bytes.
        loss: ``loss(output, target)`` returning one value per input.
        parameters: which parameters; see :func:`losskernel.sampling.parameters.select_parameters`.
        engine: ``"layers"``, ``"batched"``, ``"sequential"`` or ``"auto"``; see
            :func:`losskernel.gradients.sources.make_source`.
        dtype: of the stored rows, ``"float16"`` or ``"float32"``.
        device: where to compute.
        progress: show a progress bar.

    Raises:
        ConfigError: the type is unknown or ``parameters`` selects nothing.
        DataError: the data are empty, a gradient is not finite, or the losses fail
            :func:`losskernel.sampling.checks.check_losses`.
        TraceError: the folder holds gradients of another model, of other inputs or of another loss,
            or another process writes to it.
        LossKernelError: the folder cannot be written to.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: '{dtype}' is not one of {', '.join(DTYPES)}")
    folder, inputs = Path(folder), Inputs(data, device)
    names = select_parameters(model, parameters)
    source, block, behavior = _source(engine, model, loss, names, inputs, device)
    index = {
        "names": names,
        "shapes": [list(shape) for shape in source.layout.shapes],
        "strides": [list(stride) for stride in source.layout.strides],
        "dtype": dtype,
        "inputs": len(inputs),
        "weights_sha256": state_fingerprint(model),
        "inputs_sha256": inputs.fingerprint(),
        "loss": None if loss is cross_entropy else loss_fingerprint(loss),
        "behavior": behavior,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(locked(folder))
            done = _prepare(folder, index, source.layout.size)
            rows = stack.enter_context(open(folder / DTYPES[dtype], "ab", buffering=0))
            norms = stack.enter_context(open(folder / "norms.f64", "ab", buffering=0))
            shown = stack.enter_context(
                bar(None, "gradients", total=len(inputs), initial=done, show=progress)
            )
            for values in _gradients(source, block, inputs, done):
                stored, length = _scaled(values, dtype)
                finite = np.isfinite(length)
                if not finite.all():
                    raise DataError(
                        f"data: the gradient of input {done + np.argmin(finite)} is not finite; "
                        "check the weights, the input and its preprocessing"
                    )
                # Not ndarray.tofile, which reports a full disk without its reason.
                _write(rows, stored)
                _write(norms, length)
                done += len(length)
                shown.update(len(length))
    except OSError as error:
        raise LossKernelError(
            f"{folder}: the gradients cannot be written ({error.strerror or error}); free disk "
            "space or choose another place, then run again to continue"
        ) from error
    return Gradients.load(folder)


@own_torch_settings()
def gradient_norms(
    model: nn.Module,
    data: Data,
    *,
    loss: LossPerInput = cross_entropy,
    parameters: str | Sequence[str] = "trainable",
    engine: str = "auto",
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Euclidean norm of each input's loss gradient, ``(input,)`` float64; nothing is stored.

    The same numbers as :attr:`Gradients.norms`. Arguments as for :func:`per_sample_gradients`.
    """
    inputs = Inputs(data, device)
    names = select_parameters(model, parameters)
    source, block, _ = _source(engine, model, loss, names, inputs, device)
    blocks = [_norms(values).cpu().numpy() for values in _gradients(source, block, inputs, 0)]
    return np.concatenate(blocks)


def _source(
    engine: str, model: nn.Module, loss: LossPerInput, names: list[str], inputs: Inputs, device
) -> tuple[GradientSource, int, str]:
    """As :func:`make_source`, for whole gradients."""
    # A row and what becomes of it: scaled, and as it is stored.
    row = 12 * sum(p.numel() for name, p in model.named_parameters() if name in set(names))
    return make_source(engine, model, loss, names, inputs, device, loss is cross_entropy, row)


def _gradients(source: GradientSource, block: int, inputs: Inputs, start: int) -> Iterator[Tensor]:
    """Gradients ``(some inputs, parameter)`` float32 of the inputs from ``start`` on, in order."""
    if source.kind == "sequential":
        block = 1  # a kill then loses one
    whole = Whole(source.layout)
    # Blocks begin where they would without a kill: the rounding of a row depends on its block.
    for first in range(start - start % block, len(inputs) if start < len(inputs) else 0, block):
        part = np.arange(first, min(first + block, len(inputs)))
        out = torch.zeros(len(part), whole.width, device=source.center.device)
        source.block(source.center, *inputs.take(part), whole, out)
        yield out[max(0, start - first) :]


def _scaled(values: Tensor, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows as they are stored, and their norms; a zero gradient stays zero."""
    norms = _norms(values)
    factor = torch.where(norms > 0, _stored_norm(values.shape[1]) / norms, 0)
    tiny = (norms > 0) & (norms < _TINY)
    if tiny.any():  # their factor has no float32: a part of it first, a power of 2, which is exact
        part = torch.where(tiny, 2.0**64, 1.0)
        values, factor = values * part[:, None].float(), factor / part
    stored = (values * factor[:, None].float()).to(getattr(torch, dtype))
    return stored.cpu().numpy(), norms.cpu().numpy()


def _norms(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values, dim=1, dtype=torch.float64)


def _stored_norm(parameters: int) -> float:
    return min(math.sqrt(parameters), _LARGEST_NORM)


def _write(file, data: np.ndarray) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


def _prepare(folder: Path, index: dict, parameters: int) -> int:
    """Start a folder, or cut an unfinished one to its complete rows; how many there are."""
    found = _read_index(folder)
    if found is None:
        write_json(index, folder / "index.json")
        found = index
    for key, value in index.items():
        if key != "behavior" and found.get(key) != value:
            told = f" ({found.get(key)}, not {value})" if not isinstance(value, list) else ""
            raise TraceError(
                f"{folder}: holds gradients with other {key}{told}; "
                "delete the folder or choose another"
            )
    if not behave_alike(index["behavior"], found.get("behavior")):
        raise TraceError(
            f"{folder}: holds gradients of a model or a loss that computes other numbers from the "
            "same weights; delete the folder or choose another"
        )
    rows, norms = folder / DTYPES[index["dtype"]], folder / "norms.f64"
    row_bytes = parameters * np.dtype(index["dtype"]).itemsize
    sizes = [(path.stat().st_size if path.exists() else 0) for path in (rows, norms)]
    done = min(sizes[0] // row_bytes, sizes[1] // 8)
    for path, size in ((rows, done * row_bytes), (norms, done * 8)):
        if path.exists():
            with open(path, "r+b") as file:
                file.truncate(size)
    return done


def _read_index(folder: Path) -> dict | None:
    path = folder / "index.json"
    if not path.exists():
        return None
    try:
        index = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: unreadable; delete the folder to start over") from error
    expected = {"names", "shapes", "strides", "dtype", "inputs", "weights_sha256", "inputs_sha256"}
    # Earlier versions did not keep the loss and what it computes.
    if (
        not isinstance(index, dict)
        or set(index) - {"loss", "behavior"} != expected
        or index["dtype"] not in DTYPES
    ):
        raise TraceError(f"{path}: not an index of gradients; delete the folder to start over")
    return index


def _read_norms(folder: Path) -> np.ndarray:
    path = folder / "norms.f64"
    if not path.exists():
        return np.empty(0)
    return np.fromfile(path, np.float64)  # whole numbers only: a cut one is left out
