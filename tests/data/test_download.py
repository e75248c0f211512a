"""Fetching from a server on the loopback address: whole, cut short, wrong, missing, silent."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from losskernel.data.download import download
from losskernel.errors import ConfigError, DataError, LossKernelError

CONTENT = bytes(range(256)) * 3000  # several pieces
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: 1000 if self.path in ("/truncated", "/silent") else None])
        if self.path == "/silent":  # says that there is more, and sends nothing
            self.server.released.wait()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.released = threading.Event()
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.released.set()
        running.shutdown()


@pytest.mark.parametrize(
    ("path", "checksum", "found"),
    [
        ("/good", MD5, MD5),
        ("/good", SHA256, SHA256),
        ("/good", None, SHA256),
        ("/unsized", MD5, MD5),
    ],
)
def test_a_good_file_arrives_whole_with_its_checksum(server, tmp_path, path, checksum, found):
    output = tmp_path / "folder" / "file.zip"
    assert download(server + path, output, checksum) == found
    assert output.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "checksum", "message"),
    [
        ("/good", "md5:" + "0" * 32, rf"the file has {MD5}, not md5:0+; fetch it again"),
        ("/truncated", MD5, f"ended after 1000 of {len(CONTENT)} bytes; try again"),
        ("/truncated", None, f"ended after 1000 of {len(CONTENT)} bytes; try again"),
        ("/missing", MD5, r"cannot be fetched \(Not Found\)"),
    ],
)
def test_a_bad_file_is_refused_and_nothing_is_left_nor_lost(
    server, tmp_path, path, checksum, message
):
    output = tmp_path / "file.zip"
    output.write_bytes(b"what was there before")
    with pytest.raises(DataError, match=message) as caught:
        download(server + path, output, checksum)
    assert str(caught.value).startswith(server + path) and "\n" not in str(caught.value)
    assert output.read_bytes() == b"what was there before"
    assert list(tmp_path.iterdir()) == [output]


def test_a_server_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be fetched .*refused"):
        download("http://127.0.0.1:9/file.zip", tmp_path / "file.zip")
    assert not list(tmp_path.iterdir())


def test_a_server_that_falls_silent(server, tmp_path):
    with pytest.raises(DataError, match="cannot be fetched .*timed out"):
        download(f"{server}/silent", tmp_path / "file.zip", timeout=0.2)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_as_such(server, tmp_path, full_disk):
    with full_disk(1000), pytest.raises(LossKernelError, match="cannot be written"):
        download(f"{server}/good", tmp_path / "file.zip", MD5)


@pytest.mark.parametrize("checksum", ["d41d8cd9", "sha1:" + "0" * 40, "md5:" + "0" * 64])
def test_a_checksum_of_another_form_is_refused(tmp_path, checksum):
    with pytest.raises(ConfigError, match="checksum = '.*': give md5"):
        download("http://127.0.0.1:9", tmp_path / "file", checksum)
