"""Tiny ImageNet: 64 x 64 pixel images of 200 ImageNet classes, from its archive or a folder.

The layout is that of the official archive, whichever number of images it holds ::

    tiny-imagenet-200/wnids.txt                        the classes
    tiny-imagenet-200/train/<wnid>/images/<name>.JPEG
    tiny-imagenet-200/val/images/<name>.JPEG
    tiny-imagenet-200/val/val_annotations.txt          a line an image: name, wnid, box
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from losskernel.data.images import EXTENSIONS, WNID, decode
from losskernel.data.listing import visible_files
from losskernel.errors import DataError
from losskernel.progress import bar

SPLITS = ("train", "val")


@dataclass(frozen=True)
class LabeledImages:
    """Images in memory, ordered by class and then by name.

    Attributes:
        pixels: ``(image, 3, side, side)`` uint8, RGB.
        labels: ``(image,)`` int64, positions in ``wnids``.
        names: ``(image,)`` path of each image within the data set.
        wnids: the classes, sorted.
    """

    pixels: Tensor
    labels: Tensor
    names: np.ndarray
    wnids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def load_tiny_imagenet(
    path: str | Path, split: str, per_class: int | None = None, image_size: int = 64
) -> LabeledImages:
    """Read one split.

    Args:
        path: the zip archive, or a folder that it was extracted to (``tiny-imagenet-200`` or the
            folder around it).
        split: ``train`` or ``val``; the archive's test images have no labels.
        per_class: at most this many images a class, the first in the order of their numbers; all
            if not given.
        image_size: side in pixels to which images are resized, antialiased.

    Raises:
        DataError: there is no such archive or folder, its layout is another, or an image cannot be
            decoded.
    """
    if split not in SPLITS:
        raise DataError(f"split '{split}' is not one of {', '.join(SPLITS)}")
    with _opened(Path(path)) as files:
        wnids = _classes(files)
        listed = _train(files) if split == "train" else _validation(files)
        chosen = _chosen(listed, wnids, per_class, f"{path}, {split}")
        pixels = np.empty((len(chosen), image_size, image_size, 3), np.uint8)
        shown = bar(chosen, "images", unit="image")
        for number, (name, _) in enumerate(shown):
            pixels[number] = _decoded(files, name, image_size)
    position = {wnid: i for i, wnid in enumerate(wnids)}
    return LabeledImages(
        pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        labels=torch.tensor([position[wnid] for _, wnid in chosen]),
        names=np.array([name for name, _ in chosen]),
        wnids=wnids,
    )


class _Files:
    """Files below ``tiny-imagenet-200``, of a zip archive or a folder, by relative path."""

    def __init__(self, source: Path, names: list[str], read):
        self.source, self._read = source, read
        marks = [name for name in names if PurePosixPath(name).name == "wnids.txt"]
        if not marks:
            raise DataError(
                f"{source}: has no wnids.txt; give tiny-imagenet-200.zip or the folder "
                "tiny-imagenet-200 that is in it"
            )
        self._prefix = min(marks, key=len).removesuffix("wnids.txt")
        self.names = [n.removeprefix(self._prefix) for n in names if n.startswith(self._prefix)]

    def read(self, name: str) -> bytes:
        try:
            return self._read(self._prefix + name)
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{self.source}: {self._prefix}{name} cannot be read ({error}); fetch it again"
            ) from error

    def lines(self, name: str) -> list[str]:
        return self.read(name).decode().split("\n")


@contextmanager
def _opened(path: Path) -> Iterator[_Files]:
    if path.is_dir():
        names = [p.relative_to(path).as_posix() for p in visible_files(path)]
        yield _Files(path, names, lambda name: (path / name).read_bytes())
        return
    if not path.is_file():
        raise DataError(
            f"{path}: no such archive or folder; fetch tiny-imagenet-200.zip, or correct the path"
        )
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: not a whole zip archive ({error}); fetch it again") from error
    with archive:
        yield _Files(path, archive.namelist(), archive.read)


def _classes(files: _Files) -> tuple[str, ...]:
    wnids = sorted(line.strip() for line in files.lines("wnids.txt") if line.strip())
    for wnid in wnids:
        if not WNID.fullmatch(wnid):
            raise DataError(f"{files.source}: wnids.txt holds '{wnid}', which is no wnid")
    return tuple(wnids)


def _train(files: _Files) -> list[tuple[str, str]]:
    """Name and wnid of each training image."""
    parts = [(name, PurePosixPath(name)) for name in files.names]
    return [
        (name, path.parts[1])
        for name, path in parts
        if path.match("train/*/images/*")
        and path.suffix.lower() in EXTENSIONS
        and not path.name.startswith(".")  # what a Mac adds to an archive
    ]


def _validation(files: _Files) -> list[tuple[str, str]]:
    rows = [line.split("\t") for line in files.lines("val/val_annotations.txt") if line.strip()]
    if any(len(row) < 2 for row in rows):
        raise DataError(
            f"{files.source}: val/val_annotations.txt has a line without a name and a wnid"
        )
    return [(f"val/images/{row[0]}", row[1].strip()) for row in rows]


def _chosen(
    listed: list[tuple[str, str]], wnids: tuple[str, ...], per_class: int | None, where: str
) -> list[tuple[str, str]]:
    by_class: dict[str, list[str]] = {wnid: [] for wnid in wnids}
    for name, wnid in listed:
        if wnid not in by_class:
            raise DataError(f"{where}: {name} is of class {wnid}, which is not in wnids.txt")
        by_class[wnid].append(name)
    empty = [wnid for wnid, names in by_class.items() if not names]
    if empty or not by_class:
        raise DataError(f"{where}: no images of class {empty[0] if empty else 'any'}")
    # By number, not by letter: val_10 comes after val_9.
    return [
        (name, wnid)
        for wnid, names in by_class.items()
        for name in sorted(names, key=lambda name: (len(name), name))[:per_class]
    ]


def _decoded(files: _Files, name: str, side: int) -> np.ndarray:
    try:
        image = decode(files.read(name))
    except DataError as error:
        raise DataError(f"{files.source}: {name}: {error}; fetch it again") from error
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image)
