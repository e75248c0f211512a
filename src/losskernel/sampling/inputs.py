"""Reading inputs and targets in blocks, from tensors in memory or from a torch data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from losskernel.errors import ConfigError, DataError


class Inputs:
    """A fixed, ordered collection of (input, target) pairs.

    What it delivers is the receiver's own: a model or a loss that works in place changes a copy.

    Args:
        data: a pair of tensors ``(inputs, targets)`` with equal first dimension, kept on the
            device, or a map-style data set of pairs, read as it is needed.
        device: where batches are delivered.
        workers: loader processes for a data set; tensors need none.

    Raises:
        DataError: lengths differ, there are no inputs, or the data set has no length.
        ConfigError: the device is not there.
    """

    def __init__(
        self,
        data: tuple[Tensor, Tensor] | Dataset,
        device: torch.device | str = "cpu",
        workers: int = 0,
    ):
        self.device = usable_device(device)
        self.workers = workers
        self._tensors: tuple[Tensor, Tensor] | None = None
        if isinstance(data, (tuple, list)):
            inputs, targets = (torch.as_tensor(part) for part in data)
            if len(inputs) != len(targets):
                raise DataError(f"data: {len(inputs)} inputs but {len(targets)} targets")
            self._tensors = (inputs.to(self.device), targets.to(self.device))
            self._length = len(inputs)
        else:
            if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
                raise DataError(
                    "data: needs a length and indexing; pass tensors or a map-style Dataset, "
                    f"not {type(data).__name__} (for a DataLoader, pass its .dataset)"
                )
            self._dataset = data
            self._length = len(data)
        if self._length == 0:
            raise DataError("data: no inputs; give at least one")

    def __len__(self) -> int:
        return self._length

    @property
    def in_memory(self) -> bool:
        """Whether reading is slicing a tensor, which several threads may do at once."""
        return self._tensors is not None

    @property
    def targets(self) -> Tensor:
        """All targets; of data in memory."""
        return self._tensors[1]

    def check_finite(self, numbers: Sequence[int] | None = None) -> None:
        """Refuse data in memory that hold NaN or an infinite number; see also :meth:`fingerprint`.

        Args:
            numbers: of the inputs where they were taken from, for the message.

        Raises:
            DataError: naming the first such input.
        """
        for kind, part in zip(("input", "target"), self._tensors or (), strict=False):
            finite = torch.isfinite(part).flatten(1).all(1) if part.ndim > 1 else part.isfinite()
            if not finite.all():
                place = int(torch.argmin(finite.int()))
                raise _not_finite(kind, place if numbers is None else numbers[place])

    def take(self, indices: np.ndarray) -> tuple[Any, Any]:
        """Inputs and targets at ``indices``, on the device."""
        if self._tensors is not None:
            index = torch.as_tensor(indices, device=self.device)
            return self._tensors[0][index], self._tensors[1][index]
        return self._send(default_collate([self._dataset[int(i)] for i in indices]))

    def blocks(self, size: int) -> Iterator[tuple[Any, Any]]:
        """All pairs in order, at most ``size`` at a time."""
        if self._tensors is not None:
            for start in range(0, self._length, size):
                yield tuple(part[start : start + size].clone() for part in self._tensors)
            return
        # From pinned memory a GPU copies while it computes.
        loader = DataLoader(
            self._dataset,
            batch_size=size,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        for batch in loader:
            yield self._send(batch)

    def fingerprint(self, targets_only: bool = False) -> str:
        """SHA-256 over all inputs and targets in order, however many are read at once.

        Raises a DataError where an input or a target is not finite.

        Args:
            targets_only: the targets of at most 256 evenly spaced pairs: of a data set that is too
                large to read, and whose inputs may be augmented at random.
        """
        if targets_only:
            chosen = np.unique(np.linspace(0, len(self) - 1, 256).round().astype(int))
            found = [leaf for i in chosen for leaf in leaves(self.take([i])[1])]
            return fingerprint([len(self), *found])
        return fingerprint(self._leaves_checked())

    def _leaves_checked(self) -> Iterator[Any]:
        pairs = (pair for block in self.blocks(64) for pair in zip(*map(_rows, block), strict=True))
        for number, pair in enumerate(pairs):
            for kind, part in zip(("input", "target"), pair, strict=True):
                for leaf in leaves(part):
                    # Infinity is as it should be in a mask beside an input.
                    if isinstance(leaf, Tensor) and (
                        leaf.isnan().any() or (leaf is part and leaf.isinf().any())
                    ):
                        raise _not_finite(kind, number)
                    yield leaf

    def _send(self, batch: Sequence) -> tuple[Any, Any]:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise DataError("data: each item must be a pair (input, target)")
        return tuple(self._sent(part) for part in batch)

    def _sent(self, part: Any) -> Any:
        return map_tensors(lambda tensor: tensor.to(self.device, non_blocking=True), part)


def _not_finite(kind: str, number: int) -> DataError:
    return DataError(
        f"data: {kind} {number} holds NaN or an infinite number; mend it or leave it out"
    )


def map_tensors(function: Callable, *parts: Any) -> Any:
    """Batches of one structure with ``function`` of their tensors, place by place.

    What holds no tensor, such as text, is taken from the first.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return function(*parts)
    if isinstance(first, Mapping):
        return {key: map_tensors(function, *(part[key] for part in parts)) for key in first}
    if _holds_parts(first):
        return [map_tensors(function, *values) for values in zip(*parts, strict=True)]
    return first


def usable_device(device: torch.device | str) -> torch.device:
    """The device, if tensors can be put there.

    Raises:
        ConfigError: there is no such device, or PyTorch cannot use it.
    """
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:  # the latter of PyTorch without CUDA
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"device: '{device}' cannot be used here ({said}); give cpu, or install a PyTorch and "
            "a driver that find it"
        ) from error


def leaves(part: Any) -> list[Any]:
    """What a batch of inputs or targets holds: a tensor, or those in dictionaries and tuples."""
    if isinstance(part, Mapping):
        return [leaf for value in part.values() for leaf in leaves(value)]
    if _holds_parts(part):
        return [leaf for value in part for leaf in leaves(value)]
    return [part]


def _holds_parts(batch: Any) -> bool:
    """Whether it is a tuple or list of parts, such as tensors, and not of one text an input."""
    return isinstance(batch, (tuple, list)) and not any(isinstance(v, str) for v in batch)


def _rows(part: Any) -> Iterator[Any]:
    """The inputs, or targets, of a batch one by one."""
    if isinstance(part, Mapping):
        part = list(part.values())
    if _holds_parts(part):
        return zip(*map(_rows, part), strict=True)
    return iter(part)


def state_fingerprint(model: nn.Module) -> str:
    """Fingerprint of a model's parameters and persistent buffers."""
    return fingerprint([*model.state_dict().values()])


def fingerprint(parts: Iterable[Any]) -> str:
    """SHA-256 over the shapes, types and bytes of tensors, in order; first 16 hex digits.

    What is no tensor counts by its ``repr``.
    """
    digest = hashlib.sha256()
    for part in parts:
        if not isinstance(part, Tensor):
            digest.update(repr(part).encode())
            continue
        tensor = part.detach().cpu().contiguous()
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
