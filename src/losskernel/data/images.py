"""Images in class folders named by WordNet ids, the layout of ImageNet and of torchvision."""

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


class WnidImages(Dataset):
    """Images below ``folder/<wnid>/``, in sorted order, with their class index.

    Args:
        folder: the image folder.
        preprocess: turns an RGB :class:`PIL.Image.Image` into a tensor ``(channel, height,
            width)``.
        classes: wnids in the order of the model's outputs; default the ILSVRC-2012 order.
        per_class: at most this many images a class, the first by name; all if not given.

    Items are ``(tensor, class index)``.

    Raises:
        DataError: the folder is missing or has no images, or a class folder is not named by a wnid
            or not one of ``classes``; on access, an image cannot be decoded.
    """

    def __init__(
        self,
        folder: str | Path,
        preprocess: Callable[[Image.Image], Tensor],
        classes: list[str] | None = None,
        per_class: int | None = None,
    ):
        self.folder, self.preprocess = Path(folder), preprocess
        if not self.folder.is_dir():
            raise DataError(f"{folder}: no such image folder; correct the path in the config")
        index = {wnid: i for i, wnid in enumerate(classes or imagenet_wnids())}
        self.paths: list[Path] = []
        for class_folder in sorted(path for path in self.folder.iterdir() if path.is_dir()):
            if not WNID.fullmatch(class_folder.name):
                raise DataError(
                    f"{class_folder}: not named by a wnid such as n01440764; "
                    "move it out or rename it"
                )
            if class_folder.name not in index:
                raise DataError(
                    f"{class_folder}: {class_folder.name} is not one of the model's "
                    f"{len(index)} classes; move it out"
                )
            images = (p for p in class_folder.rglob("*") if p.suffix.lower() in EXTENSIONS)
            self.paths += sorted(images)[:per_class]
        if not self.paths:
            raise DataError(
                f"{folder}: holds no images; expected <wnid>/<name>.JPEG "
                f"(extensions {', '.join(sorted(EXTENSIONS))})"
            )
        self.wnids = np.array([p.relative_to(self.folder).parts[0] for p in self.paths])
        self.labels = np.array([index[wnid] for wnid in self.wnids])
        self.names = np.array([p.relative_to(self.folder).as_posix() for p in self.paths])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        path = self.paths[item]
        try:
            with Image.open(path) as image:
                image = image.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise DataError(
                f"{path}: cannot be decoded ({error}); replace it, or set skip_unreadable: true"
            ) from error
        return self.preprocess(image), int(self.labels[item])

    def drop(self, unreadable: list[int]) -> None:
        """Remove items by index."""
        keep = np.setdiff1d(np.arange(len(self)), unreadable)
        self.paths = [self.paths[i] for i in keep]
        self.wnids, self.labels, self.names = (
            array[keep] for array in (self.wnids, self.labels, self.names)
        )


def load_images(
    images: WnidImages, skip_unreadable: bool = False, progress: bool = True
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
