"""Images in class folders, the layout of torchvision's ImageFolder; of ImageNet, named by wnids."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from losskernel.data.listing import Manifest, class_folders, visible_files
from losskernel.errors import ConfigError, DataError, needs
from losskernel.progress import bar

WNID = re.compile(r"n\d{8}")
# Formats of Pillow that are no pictures of their own: data, containers, and drawings that another
# program has to render.
_NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
_NAMED = 5  # files that a message names; it counts the others
log = logging.getLogger(__name__)


def _readable() -> frozenset[str]:
    Image.init()
    formats = set(Image.OPEN) - _NO_PICTURES
    return frozenset(s for s, kind in Image.registered_extensions().items() if kind in formats)


EXTENSIONS = _readable()  # of the files that Pillow reads as pictures


def imagenet_wnids() -> list[str]:
    """The 1,000 wnids of ILSVRC-2012 in class order (they are sorted)."""
    with needs("vision"):
        from timm.data import ImageNetInfo  # here, as all of timm comes with it, for seconds

    return list(ImageNetInfo("imagenet-1k").label_names())


def decode(content: bytes) -> Image.Image:
    """The picture in a file's bytes as RGB of 8 bits a channel.

    Gray values of 9 to 16 bits lose their lowest bits, as Pillow's own reader does with channels of
    16 bits; its conversion would clip them to white instead.

    Raises:
        DataError: it cannot be decoded, or its values have no known white (32 bits, floats).
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith("I;16"):
                bits = image.tag_v2[258][0] if image.format == "TIFF" else 16  # BitsPerSample
            elif image.mode == "I" and image.format in ("PNG", "PPM"):
                bits = 16
            elif image.mode in ("I", "F"):
                raise ValueError(f"values of mode {image.mode} have no known white")
            else:
                return image.convert("RGB")
            return Image.fromarray((np.asarray(image) >> bits - 8).astype(np.uint8)).convert("RGB")
    except UnidentifiedImageError as error:  # its message names the buffer
        raise DataError("cannot be decoded (no kind of picture that Pillow knows)") from error
    except Exception as error:  # Pillow's readers raise many types for damaged files
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot be decoded ({said})") from error


class UnreadableError(DataError):
    """An image that cannot be decoded or preprocessed, which ``skip_unreadable`` leaves out."""


class ClassFolders(Dataset):
    """Images below ``folder/<class>/``, in sorted order, with their class index.

    Args:
        folder: the image folder.
        preprocess: turns an RGB :class:`PIL.Image.Image` into a tensor ``(channel, height,
            width)``.
        classes: names of the class folders in the order of the model's outputs; by default the
            folders there are, sorted, as in :class:`torchvision.datasets.ImageFolder`.
        per_class: at most this many images a class, the first by name; all if not given.
        manifest: file that :func:`losskernel.data.listing.write_manifest` wrote of the folder;
            images must be as it says.

    Attributes:
        classes: names in the order of the class indices.
        folders, labels, names: of every image its class folder, class index and path below
            ``folder``, ``(n,)`` each.
        left_out: what else is in the folder: files that are no pictures by their extension and
            files beside the class folders; after :meth:`read`, images that cannot be decoded.

    Links are followed, hidden files and folders (``.name``) ignored. Items are ``(tensor, class
    index)``.

    Raises:
        DataError: the folder is missing or has no images, a class folder has none or is not one of
            ``classes``, or a name cannot be saved; on access, an image cannot be decoded.
    """

    def __init__(
        self,
        folder: str | Path,
        preprocess: Callable[[Image.Image], Tensor],
        classes: list[str] | None = None,
        per_class: int | None = None,
        manifest: str | Path | None = None,
    ):
        if preprocess is None:
            raise ConfigError(
                "model: comes without what turns an image into its input tensor; let the function "
                "return both, (model, preprocess)"
            )
        self.folder, self.preprocess = Path(folder), preprocess
        self._manifest = None if manifest is None else Manifest.read(manifest)
        found = class_folders(self.folder)
        by_class: dict[str, list[Path]] = {name: [] for name in found}
        self.left_out: list[str] = []
        for path in visible_files(self.folder):
            name, *below = path.relative_to(self.folder).parts
            if below and path.suffix.lower() in EXTENSIONS:
                by_class[name].append(path)
            else:
                self.left_out.append(path.relative_to(self.folder).as_posix())
        if self.left_out:
            log.info("%s: left out, as no images: %s", self.folder, _listed(self.left_out))
        for name in found:
            self._check(name)
        empty = [name for name in found if not by_class[name]]
        if len(empty) == len(found):
            raise DataError(
                f"{folder}: holds no images; expected {self._layout}, of a kind that Pillow reads "
                "(.jpg, .png, .webp, .tif, ...)"
            )
        if empty:
            inside = [name for name in self.left_out if name.split("/")[0] in empty]
            raise DataError(
                f"{folder}: no images in the class folders {_listed(empty)}"
                + (f", only {_listed(inside)}" if inside else "")
                + "; convert what is there to .jpg or .png, or move these folders out"
            )
        self.paths = [path for name in found for path in by_class[name][:per_class]]
        self.folders = np.array([p.relative_to(self.folder).parts[0] for p in self.paths])
        self.names = np.array([p.relative_to(self.folder).as_posix() for p in self.paths])
        self.number(classes or found)

    _layout = "<class>/<name>.jpg"

    def _check(self, name: str) -> None:
        """Refuse a class folder by its name."""

    def number(self, classes: list[str]) -> None:
        """Set the class indices.

        Raises:
            DataError: a class folder is not one of ``classes``.
        """
        self.classes = list(classes)
        index = {name: i for i, name in enumerate(self.classes)}
        for name in self.folders:
            if name not in index:
                raise DataError(
                    f"{self.folder / name}: {name} is not one of the model's {len(index)} classes; "
                    "move it out"
                )
        self.labels = np.array([index[name] for name in self.folders])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        path = self.paths[item]
        content = path.read_bytes()
        if self._manifest is not None:
            self._manifest.check(str(self.names[item]), content)
        try:
            image = decode(content)
        except DataError as error:
            raise UnreadableError(
                f"{path}: {error}; replace it, or leave such images out by skip_unreadable"
            ) from error
        try:
            return self.preprocess(image), int(self.labels[item])
        except (ValueError, RuntimeError, OSError) as error:  # such as a side shorter than a pixel
            said = " ".join(str(error).split())
            raise UnreadableError(
                f"{path}: {image.width} x {image.height} pixels cannot be preprocessed ({said}); "
                "replace it, or leave such images out by skip_unreadable"
            ) from error

    def first(self, skip_unreadable: bool = False) -> Tensor:
        """The first image's tensor, or with ``skip_unreadable`` that of the first readable one."""
        for item in range(len(self)):
            try:
                return self[item][0]
            except UnreadableError:
                if not skip_unreadable:
                    raise
        raise DataError(f"{self.folder}: none of its images can be decoded")

    def read(self, skip_unreadable: bool = False, description: str = "images") -> list[Tensor]:
        """Every image's tensor, in order.

        Args:
            skip_unreadable: leave out images that cannot be decoded, instead of stopping at the
                first: they are no items any more, and named in the log and in ``left_out``.
            description: of the progress bar.

        Raises:
            DataError: an image cannot be decoded, or none can of a class.
        """
        tensors, unreadable = [], []
        for item in bar(range(len(self)), description, unit="image"):
            try:
                tensors.append(self[item][0])
            except UnreadableError:
                if not skip_unreadable:
                    raise
                unreadable.append(item)
        if unreadable:
            names, classes = self.names[unreadable].tolist(), set(self.folders)
            self.drop(unreadable)
            lost = sorted(classes - set(self.folders))
            if lost:
                raise DataError(
                    f"{self.folder}: none of the images can be decoded of {_listed(lost)}; replace "
                    "some, or move these class folders out"
                )
            self.left_out += names
            log.warning("%s: left out, as not readable: %s", self.folder, _listed(names))
        return tensors

    @property
    def provenance(self) -> dict[str, str]:
        """What a trace of these images tells of them: folder, manifest, and what was left out."""
        return {
            "images": self.folder.name,
            "manifest_sha256": "" if self._manifest is None else self._manifest.sha256,
            "left_out": _listed(self.left_out) if self.left_out else "nothing",
        }

    def drop(self, unwanted: list[int]) -> None:
        """Remove items by index."""
        keep = np.setdiff1d(np.arange(len(self)), unwanted)
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
    """:class:`ClassFolders` named by wnids, in the ILSVRC-2012 order of classes.

    Args and errors as there, without ``classes``; also a DataError for a class folder that is not
    named by a wnid.
    """

    def __init__(
        self,
        folder: str | Path,
        preprocess: Callable[[Image.Image], Tensor],
        per_class: int | None = None,
        manifest: str | Path | None = None,
    ):
        super().__init__(folder, preprocess, imagenet_wnids(), per_class, manifest)

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


def load_images(images: ClassFolders, skip_unreadable: bool = False) -> tuple[Tensor, Tensor]:
    """All images in memory: inputs ``(n, channel, height, width)`` float32, class indices ``(n,)``.

    Args:
        images: with ``skip_unreadable`` it loses the images that cannot be decoded.
        skip_unreadable: leave out such images instead of stopping at the first.

    Raises:
        DataError: an image cannot be decoded, or none can of a class; they differ in size.
    """
    tensors = images.read(skip_unreadable)
    for tensor, name in zip(tensors, images.names, strict=True):
        if tensor.shape != tensors[0].shape:
            raise DataError(
                f"{images.folder / name}: becomes {tuple(tensor.shape)}, the first image "
                f"{tuple(tensors[0].shape)}; let the preprocessing bring all images to one size"
            )
    # Channels last is what the CPU's and the GPU's convolutions are fastest with.
    inputs = torch.stack(tensors).contiguous(memory_format=torch.channels_last)
    return inputs, torch.from_numpy(images.labels)


def _listed(names: list[str]) -> str:
    """The first names, and how many there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more} ({len(names)})"
