"""Images in class folders, the layout of torchvision's ImageFolder; of ImageNet, named by wnids."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from losskernel.errors import DataError
from losskernel.progress import bar

EXTENSIONS = {".jpeg", ".jpg", ".png"}
WNID = re.compile(r"n\d{8}")


def imagenet_wnids() -> list[str]:
    """The 1,000 wnids of ILSVRC-2012 in class order (they are sorted)."""
    from timm.data import ImageNetInfo  # here, as all of timm comes with it, for seconds

    return list(ImageNetInfo("imagenet-1k").label_names())


def class_folders(folder: str | Path) -> list[str]:
    """Names of the class folders in an image folder, sorted.

    Raises:
        DataError: the image folder is missing.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such image folder; correct the path")
    return sorted(path.name for path in Path(folder).iterdir() if path.is_dir())


class ClassFolders(Dataset):
    """Images below ``folder/<class>/``, in sorted order, with their class index.

    Args:
        folder: the image folder.
        preprocess: turns an RGB :class:`PIL.Image.Image` into a tensor ``(channel, height,
            width)``.
        classes: names of the class folders in the order of the model's outputs; by default the
            folders there are, sorted, as in :class:`torchvision.datasets.ImageFolder`.
        per_class: at most this many images a class, the first by name; all if not given.

    Attributes:
        classes: names in the order of the class indices.
        folders, labels, names: of every image its class folder, class index and path below
            ``folder``, ``(n,)`` each.

    Items are ``(tensor, class index)``.

    Raises:
        DataError: the folder is missing or has no images, or a class folder is not one of
            ``classes``; on access, an image cannot be decoded.
    """

    def __init__(
        self,
        folder: str | Path,
        preprocess: Callable[[Image.Image], Tensor],
        classes: list[str] | None = None,
        per_class: int | None = None,
    ):
        self.folder, self.preprocess = Path(folder), preprocess
        found = class_folders(self.folder)
        self.classes = list(classes or found)
        index = {name: i for i, name in enumerate(self.classes)}
        self.paths: list[Path] = []
        for name in found:
            self._check(name)
            if name not in index:
                raise DataError(
                    f"{self.folder / name}: {name} is not one of the model's "
                    f"{len(index)} classes; move it out"
                )
            images = (p for p in (self.folder / name).rglob("*") if p.suffix.lower() in EXTENSIONS)
            self.paths += sorted(images)[:per_class]
        if not self.paths:
            raise DataError(
                f"{folder}: holds no images; expected {self._layout} "
                f"(extensions {', '.join(sorted(EXTENSIONS))})"
            )
        self.folders = np.array([p.relative_to(self.folder).parts[0] for p in self.paths])
        self.labels = np.array([index[name] for name in self.folders])
        self.names = np.array([p.relative_to(self.folder).as_posix() for p in self.paths])

    _layout = "<class>/<name>.jpg"

    def _check(self, name: str) -> None:
        """Refuse a class folder by its name."""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        path = self.paths[item]
        try:
            with Image.open(path) as image:
                image = image.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise DataError(
                f"{path}: cannot be decoded ({error}); replace it, or leave such images out by "
                "skip_unreadable"
            ) from error
        return self.preprocess(image), int(self.labels[item])

    def drop(self, unreadable: list[int]) -> None:
        """Remove items by index."""
        keep = np.setdiff1d(np.arange(len(self)), unreadable)
        self.paths = [self.paths[i] for i in keep]
        self.folders, self.labels, self.names = (
            array[keep] for array in (self.folders, self.labels, self.names)
        )

    def draw(self, count: int | None, rng: np.random.Generator) -> None:
        """Keep ``count`` items drawn at random; all if there are no more, or for None."""
        if count and len(self) > count:
            kept = rng.choice(len(self), count, replace=False)
            self.drop(np.setdiff1d(np.arange(len(self)), kept).tolist())


class WnidImages(ClassFolders):
    """:class:`ClassFolders` named by wnids, by default in the ILSVRC-2012 order of classes.

    Args and errors as there; also a DataError for a class folder that is not named by a wnid.
    """

    def __init__(
        self,
        folder: str | Path,
        preprocess: Callable[[Image.Image], Tensor],
        classes: list[str] | None = None,
        per_class: int | None = None,
    ):
        super().__init__(folder, preprocess, classes or imagenet_wnids(), per_class)

    _layout = "<wnid>/<name>.JPEG"

    def _check(self, name: str) -> None:
        if not WNID.fullmatch(name):
            raise DataError(
                f"{self.folder / name}: not named by a wnid such as n01440764; "
                "move it out or rename it"
            )

    @property
    def wnids(self) -> np.ndarray:
        """Of every image, ``(n,)``."""
        return self.folders


def load_images(
    images: ClassFolders, skip_unreadable: bool = False, progress: bool = True
) -> tuple[Tensor, Tensor]:
    """All images in memory: inputs ``(n, channel, height, width)`` float32, class indices ``(n,)``.

    Args:
        images: with ``skip_unreadable`` it loses the images that cannot be decoded.
        skip_unreadable: leave out such images instead of stopping at the first.
        progress: show a progress bar.

    Raises:
        DataError: an image cannot be decoded, or none can.
    """
    tensors, unreadable = [], []
    for item in bar(range(len(images)), "images", unit="image", show=progress):
        try:
            tensors.append(images[item][0])
        except DataError:
            if not skip_unreadable:
                raise
            unreadable.append(item)
    images.drop(unreadable)
    if not tensors:
        raise DataError(f"{images.folder}: none of its images can be decoded")
    # Channels last is what the CPU's and the GPU's convolutions are fastest with.
    inputs = torch.stack(tensors).contiguous(memory_format=torch.channels_last)
    return inputs, torch.from_numpy(images.labels)
