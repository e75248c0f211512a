import errno
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from losskernel.errors import LossKernelError, TraceError
from losskernel.files import atomic_path, check_writable, locked


def test_replaces_the_file_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".csv"
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_block_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(10_000)),
        lambda path: save_file({"w": torch.zeros(10_000)}, path),
    ],
    ids=["bytes", "safetensors"],
)
def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tmp_path, full_disk, write, old):
    path = tmp_path / "result.safetensors"
    if old:
        path.write_text(old)
    with pytest.raises(LossKernelError) as caught, full_disk(1000), atomic_path(path) as temporary:
        write(temporary)
    message = str(caught.value)
    assert str(path) in message and "free disk space" in message and "\n" not in message
    assert list(tmp_path.iterdir()) == ([path] if old else [])
    assert not old or path.read_text() == old


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LossKernelError, match="cannot be written"):
        with atomic_path(tmp_path / "file" / "below.csv") as temporary:
            temporary.write_text("")


def test_a_folder_has_one_writer_until_the_context_ends(tmp_path):
    with locked(tmp_path):
        with pytest.raises(TraceError, match="another process writes to it; wait for it"):
            locked(tmp_path)
    with locked(tmp_path):
        pass


def test_where_there_are_no_locks_the_user_is_told_to_take_care(tmp_path, monkeypatch, caplog):
    def no_locks(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("losskernel.files.FileLock.acquire", no_locks)
    with locked(tmp_path):
        assert "has no locks; run one process a folder" in caplog.text


def test_writing_files_needs_no_module_that_windows_lacks():
    code = "import sys; sys.modules['fcntl'] = None; import losskernel.files"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file/below.csv", "file is no folder"),
        ("file/deep/below.csv", "file is no folder"),
        ("folder.csv", "it is a folder"),
    ],
)
def test_what_cannot_be_written_is_known_before(tmp_path, name, reason):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LossKernelError, match=rf"cannot be written \(.*{reason}\); choose"):
        check_writable(tmp_path / name)
    for fine in ("new.csv", "a/b/new.csv", "file", "folder of results"):
        check_writable(tmp_path / fine)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_closed_to_us_is_known_before(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write what is read-only
    with pytest.raises(LossKernelError, match="is not writable"):
        check_writable(tmp_path / "new.csv")
