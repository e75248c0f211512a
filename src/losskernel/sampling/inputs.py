"""Reading inputs and targets in blocks, from tensors in memory or from a torch data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from losskernel.errors import ConfigError, DataError


class Inputs:
    """A fixed, ordered collection of (input, target) pairs.

    What it delivers is the receiver's own: a model or a loss that works in place changes a copy.

    Args:
        data: a pair of tensors ``(inputs, targets)`` with equal first dimension, kept on the
            device; either may be an array, a table, or a dictionary or list of tensors. Or a list
            or map-style data set of pairs, read as it is needed; in a ``DataLoader``, of which its
            ``dataset`` and ``collate_fn`` alone are used, if items need one.
        device: where batches are delivered.

    Raises:
        DataError: lengths differ, there are no inputs, or the data set has no length.
        ConfigError: the device is not there.
    """

    def __init__(self, data: tuple[Tensor, Tensor] | Dataset, device: torch.device | str = "cpu"):
        self.device = usable_device(device)
        self._tensors: tuple[Any, Any] | None = None
        self._collate = default_collate
        if isinstance(data, DataLoader):
            self._collate, data = data.collate_fn, data.dataset
        if isinstance(data, (tuple, list)) and not _are_pairs(data):
            if len(data) != 2:
                raise _not_pairs(len(data))
            targets = _as_tensors(data[1], "target", None)
            count = len(leaves(targets)[0])
            inputs = _as_tensors(data[0], "input", count)
            for leaf in leaves(inputs) + leaves(targets):
                if len(leaf) != count:
                    raise DataError(f"data: {len(leaf)} inputs but {count} targets")
            self._tensors = tuple(
                map_tensors(lambda t: t.detach().to(self.device), part)
                for part in (inputs, targets)
            )
            self._length = count
        else:
            iterable = isinstance(data, IterableDataset)
            if iterable or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
                raise DataError(
                    "data: needs a length and indexing; pass tensors, a list of pairs or a "
                    f"map-style Dataset, not {type(data).__name__}"
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
        """Refuse data in memory that hold NaN or an infinite number; others are as they are read.

        Args:
            numbers: of the inputs where they were taken from, for the message.

        Raises:
            DataError: naming the first such input.
        """
        if self._tensors is not None:
            _check_finite(self._tensors, range(len(self)) if numbers is None else numbers)

    def take(self, indices: np.ndarray) -> tuple[Any, Any]:
        """Inputs and targets at ``indices``, on the device.

        Raises:
            DataError: one that is not in memory is not finite.
        """
        if self._tensors is not None:
            index = torch.as_tensor(indices, device=self.device)
            return tuple(map_tensors(lambda t: t[index], part) for part in self._tensors)
        batch = self._collated([self._dataset[int(i)] for i in indices])
        _check_finite(batch, indices)
        return self._send(batch)

    def _collated(self, items: list) -> Any:
        try:
            return self._collate(items)
        except (RuntimeError, TypeError) as error:
            if self._collate is not default_collate:
                raise
            raise DataError(
                f"data: items do not make a batch ({str(error).splitlines()[0]}); pass "
                "DataLoader(data, collate_fn=...), which pads them or makes tensors of them"
            ) from error

    def blocks(self, size: int) -> Iterator[tuple[Any, Any]]:
        """All pairs in order, at most ``size`` at a time."""
        if self._tensors is not None:
            for start in range(0, self._length, size):
                stop = start + size
                yield tuple(
                    map_tensors(lambda t, a=start, b=stop: t[a:b].clone(), part)
                    for part in self._tensors
                )
            return
        # From pinned memory a GPU copies while it computes.
        loader = DataLoader(
            self._dataset,
            batch_size=size,
            collate_fn=self._collated,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it draws a number from the caller's
        )
        for batch in loader:
            yield self._send(batch)

    def fingerprint(self, few: bool = False) -> str:
        """SHA-256 over all inputs and targets in order, however many are read at once.

        Raises a DataError where an input or a target is not finite.

        Args:
            few: of at most 256 evenly spaced pairs: for a data set that is too large to read.
        """
        if few:
            chosen = np.unique(np.linspace(0, len(self) - 1, 256).round().astype(int))
            found = (leaf for i in chosen for leaf in leaves(list(self.take([i]))))
            return fingerprint([len(self), *found])
        return fingerprint(self._leaves_checked())

    def _leaves_checked(self) -> Iterator[Any]:
        pairs = (pair for block in self.blocks(64) for pair in zip(*map(_rows, block), strict=True))
        for number, pair in enumerate(pairs):
            for kind, part in zip(("input", "target"), pair, strict=True):
                for leaf in leaves(part):
                    if isinstance(leaf, Tensor) and _is_wrong(leaf, leaf is part).any():
                        raise _not_finite(kind, number)
                    yield leaf

    def _send(self, batch: Sequence) -> tuple[Any, Any]:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise _not_pairs(len(batch) if isinstance(batch, (tuple, list)) else 1)
        return tuple(
            map_tensors(lambda tensor: tensor.to(self.device, non_blocking=True), part)
            for part in batch
        )


def _check_finite(pair: Sequence, numbers: Sequence[int]) -> None:
    """Refuse a batch of inputs and targets of which one is not finite, by its number."""
    for kind, part in zip(("input", "target"), pair, strict=False):
        for leaf in leaves(part):
            if isinstance(leaf, Tensor) and len(leaf) == len(numbers):
                wrong = _is_wrong(leaf, leaf is part)
                wrong = wrong.flatten(1).any(1) if leaf.ndim > 1 else wrong
                if wrong.any():
                    raise _not_finite(kind, int(numbers[int(torch.argmax(wrong.int()))]))


def _is_wrong(tensor: Tensor, alone: bool) -> Tensor:
    """Where it is NaN or, if it is all of an input, infinite: a mask beside one may be that."""
    return ~tensor.isfinite() if alone else tensor.isnan()


def _are_pairs(data: tuple | list) -> bool:
    """Whether it is a list of (input, target) and not the pair of all inputs and all targets."""
    return isinstance(data, list) and all(
        isinstance(item, tuple) and len(item) == 2 for item in data
    )


def _not_pairs(parts: int) -> DataError:
    return DataError(
        f"data: each item must be a pair (input, target), not {parts} parts; put a mask or a "
        "weight beside the target, (input, (target, mask)), and let loss read both"
    )


def _as_tensors(part: Any, kind: str, count: int | None) -> Any:
    """Tensors of arrays, tables and numbers, also in dictionaries and lists of ``count`` rows."""
    if isinstance(part, Tensor):
        return part
    if isinstance(part, Mapping):
        return {key: _as_tensors(value, kind, count) for key, value in part.items()}
    if isinstance(part, (tuple, list)) and part and all(isinstance(v, Tensor) for v in part):
        if isinstance(part, tuple) or all(v.ndim and len(v) == count != len(part) for v in part):
            return list(part)
        part = torch.stack(list(part)) if len({v.shape for v in part}) == 1 else part
    try:
        return torch.as_tensor(part.to_numpy(copy=True) if hasattr(part, "to_numpy") else part)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"data: {kind}s of type {type(part).__name__} make no tensor "
            f"({str(error).splitlines()[0]}); give numbers, classes numbered from 0 on, or a list "
            "of pairs in a DataLoader with a collate_fn that pads them"
        ) from error


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


def hidden_state(model: nn.Module) -> dict[str, str]:
    """Fingerprint of buffers that are not persistent, by its name; empty where there are none."""
    state = model.state_dict(keep_vars=True)
    hidden = [buffer for name, buffer in model.named_buffers() if name not in state]
    return {"buffers_sha256": fingerprint(hidden)} if hidden else {}


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
