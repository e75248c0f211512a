"""Fetching a file whose checksum is known."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from pathlib import Path

from losskernel.errors import ConfigError, DataError
from losskernel.files import atomic_path
from losskernel.progress import bar

_CHECKSUM = re.compile(r"(md5):([0-9a-f]{32})|(sha256):([0-9a-f]{64})")
_PIECE = 2**18  # bytes read at once


def download(url: str, output: str | Path, checksum: str | None = None, timeout: float = 60) -> str:
    """Fetch ``url`` into ``output``, which appears only when all of it is there and right.

    Args:
        url: of the file; ``http``, ``https`` or ``file``.
        output: path of the file.
        checksum: ``md5:<32 hex digits>`` or ``sha256:<64 hex digits>`` that the file must have;
            None accepts what comes, if it is as long as the server said.
        timeout: seconds without a byte after which the server counts as silent.

    Returns:
        The file's checksum, in the kind of ``checksum`` or as ``sha256:...``.

    Raises:
        ConfigError: ``checksum`` has neither form.
        DataError: the server cannot be reached or refuses, sends fewer bytes than it said, or the
            checksum differs.
        LossKernelError: the file cannot be written.
    """
    if checksum is not None and not _CHECKSUM.fullmatch(checksum):
        raise ConfigError(
            f"checksum = '{checksum}': give md5: and 32 or sha256: and 64 hexadecimal digits"
        )
    kind = "sha256" if checksum is None else checksum.partition(":")[0]
    digest, received = hashlib.new(kind, usedforsecurity=False), 0
    with atomic_path(output) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=timeout) as answer:
                length = answer.headers.get("Content-Length")
                total = None if length is None else int(length)
                with (
                    open(temporary, "wb") as file,
                    bar(None, "download", total=total, unit="B") as shown,
                ):
                    while piece := answer.read(_PIECE):
                        file.write(piece)
                        digest.update(piece)
                        received += len(piece)
                        shown.update(len(piece))
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            TimeoutError,
            ConnectionError,
        ) as error:
            # HTTPError, a URLError, says "HTTP Error 404: Not Found" itself.
            raise DataError(
                f"{url}: cannot be fetched ({getattr(error, 'reason', None) or error}); check the "
                "address and the connection, or fetch the file by other means and name its path"
            ) from error
        if total is not None and received < total:
            raise DataError(f"{url}: ended after {received} of {total} bytes; try again")
        found = f"{kind}:{digest.hexdigest()}"
        if checksum is not None and found != checksum:
            raise DataError(
                f"{url}: the file has {found}, not {checksum}; fetch it again, or correct the "
                "checksum if the publisher changed the file"
            )
    return found
