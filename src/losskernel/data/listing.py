"""Which files an image folder holds. Without PyTorch, so that rules can ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from losskernel.errors import DataError


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
