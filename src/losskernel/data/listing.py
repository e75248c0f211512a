"""Which files an image folder holds, and their manifest. Without PyTorch, so that rules can ask."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from losskernel.errors import DataError
from losskernel.files import atomic_path
from losskernel.progress import bar

COLUMNS = ("name", "bytes", "sha256")


def class_folders(folder: str | Path) -> list[str]:
    """Names of the class folders in an image folder, sorted; hidden ones (``.name``) are none.

    Raises:
        DataError: the image folder is missing, or a link in it leads nowhere.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such image folder; correct the path")
    found = [path for path in Path(folder).iterdir() if not path.name.startswith(".")]
    for path in found:
        if path.is_symlink() and not path.exists():
            raise DataError(f"{path}: a link that leads nowhere; mend it, or remove it")
    return sorted(path.name for path in found if path.is_dir())


def visible_files(folder: str | Path) -> list[Path]:
    """Files below a folder, sorted, also behind links; without hidden files and folders.

    A link to a folder that it lies in is not followed.

    Raises:
        DataError: a name is not UTF-8, so that no trace or table could hold it.
    """
    files = sorted(_below(Path(folder), ()))
    for path in files:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            shown = str(path).encode("utf-8", "backslashreplace").decode()
            raise DataError(
                f"{shown}: the name is not UTF-8, and could not be saved; rename the file or folder"
            ) from error
    return files


def write_manifest(folder: str | Path, output: str | Path) -> None:
    """Write name, size and hash (SHA-256) of every visible file of an image folder, as CSV.

    Raises:
        DataError: the folder is missing, or a name cannot be saved.
        LossKernelError: the file cannot be written.
    """
    class_folders(folder)  # refuses what is no image folder
    with atomic_path(output) as temporary, open(temporary, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for path in bar(visible_files(folder), "manifest", unit="file"):
            content = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            rows.writerow([name, len(content), hashlib.sha256(content).hexdigest()])


@dataclass(frozen=True)
class Manifest:
    """What :func:`write_manifest` wrote.

    Attributes:
        path: of the file.
        hashes: SHA-256 of every file by its name.
        sha256: of the manifest itself, its first 16 hex digits.
    """

    path: Path
    hashes: dict[str, str]
    sha256: str

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Raises a DataError for another file."""
        content = Path(path).read_bytes()
        rows = list(csv.reader(io.StringIO(content.decode(errors="replace"), newline="")))
        if not rows or rows[0] != list(COLUMNS) or any(len(row) != len(COLUMNS) for row in rows):
            raise DataError(f"{path}: not the manifest of an image folder; make it anew")
        hashes = {name: digest for name, _, digest in rows[1:]}
        return cls(Path(path), hashes, hashlib.sha256(content).hexdigest()[:16])

    def check(self, name: str, content: bytes) -> None:
        """Raises a DataError if a file is not as it was when the manifest was written."""
        if self.hashes.get(name) != hashlib.sha256(content).hexdigest():
            changed = "has changed since" if name in self.hashes else "is not in"
            raise DataError(
                f"{name}: {changed} the manifest {self.path}; make the manifest anew, and what was "
                "computed from the images before"
            )


def _below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    here = folder.resolve()
    if here in above:
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _below(path, (*above, here))
        else:
            yield path
