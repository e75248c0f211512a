"""One HTML file that holds all it needs: text, data, pictures and scripts.

What comes from a user (names of files and classes) reaches a page only as data, which its script
writes as text; nothing of it is ever parsed as HTML. A content security policy in each page makes
the browser refuse whatever would be loaded from elsewhere.
"""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from losskernel.data.images import decode
from losskernel.errors import DataError
from losskernel.files import atomic_path
from losskernel.progress import bar

POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline' 'unsafe-eval'"  # Bokeh compiles its callbacks
)


def write_page(name: str, title: str, output: str | Path, **parts: str) -> None:
    """Fill the templates ``page.html`` and ``<name>.html`` and write the page, atomically.

    Args:
        name: of the template of what is below the title; ``<name>.js`` is its script.
        title: any text.
        output: the HTML file.
        parts: what stands for ``{{part}}`` in the template, already safe as HTML:
            :func:`embedded`, :func:`packed`.
    """

    def read(file: str) -> str:
        return (files(__package__) / file).read_text(encoding="utf-8")

    parts |= {
        "title": html.escape(title),
        "policy": html.escape(POLICY),
        "style": read("page.css"),
        "script": read("page.js") + "\n" + read(f"{name}.js"),
    }
    template = read("page.html").replace("{{body}}", read(f"{name}.html"))
    # In one pass, so that braces in what is filled in stay as they are.
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    with atomic_path(output) as temporary:
        temporary.write_text(text, encoding="utf-8")


def embedded(content: object) -> str:
    """JSON for a ``<script type="application/json">``, which no text in it can end early."""
    return json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")


def compressed(content: bytes) -> str:
    """Bytes as text for a page: gzip, then base64. ``unpacked`` in page.js reads it."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def packed(content: dict) -> str:
    """JSON with NumPy arrays in it, compressed, for ``unpackedData`` in page.js.

    An array becomes ``{"array": type, "at": byte, "length": entries}`` and a typed array there.
    """
    arrays: list[bytes] = []
    position = 0

    def reference(array: np.ndarray) -> dict:
        nonlocal position
        array = np.ascontiguousarray(array)
        kind = {"f": "Float", "i": "Int", "u": "Uint"}[array.dtype.kind]
        found = {"array": f"{kind}{8 * array.itemsize}Array", "at": position, "length": array.size}
        arrays.append(array.tobytes() + bytes(-array.nbytes % 8))  # typed arrays must be aligned
        position += len(arrays[-1])
        return found

    header = json.dumps(content, ensure_ascii=False, default=reference).encode()
    header += b" " * (-len(header) % 8)
    return compressed(len(header).to_bytes(8, "little") + header + b"".join(arrays))


def thumbnails(folder: str | Path, names: Sequence[str], side: int) -> list[str]:
    """Small copies of images as base64 of JPEG, in the order of ``names``.

    Args:
        folder: the image folder.
        names: paths below it.
        side: longest side in pixels.

    Raises:
        DataError: a name leads out of the folder, or an image cannot be read.
    """
    folder, found = Path(folder), []
    for name in bar(names, "thumbnails", unit="image"):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{name}: lies outside of {folder}; give the folder of the trace")
        small = _small(folder / path, side)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=75, optimize=True)
        found.append(base64.b64encode(buffer.getvalue()).decode())
    return found


def _small(path: Path, side: int) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.format == "JPEG":
                image.draft("RGB", (2 * side, 2 * side))  # decodes no more than is needed
                small = image.convert("RGB")
            else:
                small = decode(path.read_bytes())
    except (OSError, SyntaxError, DataError) as error:
        raise DataError(
            f"{path}: cannot be read as an image ({error}); give the folder that the inputs of the "
            "trace came from"
        ) from error
    small.thumbnail((side, side))
    return small
