import json
from contextlib import closing

import numpy as np
import pytest
import torch

from losskernel.errors import LossKernelError, TraceError
from losskernel.sampling.journal import Journal, journal_losses

SETTINGS = {
    "chain_ids": '{"ids": [4, 7]}',
    "seed": 3,
    "probe": '{"gamma": 1}',
    "loss_bound": float("inf"),
}


def losses(draw):
    return np.arange(6, dtype=np.float32).reshape(2, 3) + 100 * draw


def of_draws(count):
    return np.stack([losses(draw) for draw in range(count)], axis=1)


def opened(folder):
    """The journal, closed when the block ends."""
    return closing(Journal(folder, SETTINGS, chains=2, inputs=3))


def write(folder, draws, start=0):
    with opened(folder) as journal:
        for draw in range(start, draws):
            batch = np.array([draw, np.nan])
            journal.append(losses(draw), batch, torch.full((2, 4), float(draw)), np.array([-1, 5]))


def test_what_was_written_is_read_back(tmp_path):
    write(tmp_path / "run", 4)
    with opened(tmp_path / "run") as journal:
        assert journal.draws == 4
        assert torch.equal(journal.weights, torch.full((2, 4), 3.0))
        assert journal.diverged.tolist() == [-1, 5]
        found, batch = journal.read(4)
        assert np.array_equal(found, of_draws(4)) and found.shape == (2, 4, 3)
        assert batch[0].tolist() == [0, 1, 2, 3] and np.isnan(batch[1]).all()
        assert journal.read(2)[0].shape == (2, 2, 3)


@pytest.mark.parametrize("torn", [1, 24, 25, 47])
def test_rows_past_the_last_state_are_cut_off(tmp_path, torn):
    """A kill after part of a draw's row, or after rows whose state was not replaced."""
    write(tmp_path, 3)
    with open(tmp_path / "losses.f32", "ab") as file:
        file.write(bytes(range(torn)))
    with open(tmp_path / "batch_losses.f64", "ab") as file:
        file.write(b"torn")
    write(tmp_path, 5, start=3)
    with opened(tmp_path) as journal:
        assert np.array_equal(journal.read(5)[0], of_draws(5))


@pytest.mark.parametrize("name", ["settings.json", "state.safetensors", "losses.f32"])
def test_damage_is_named(tmp_path, name):
    write(tmp_path, 2)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(TraceError, match=f"{name}: .*delete the folder") as caught:
        Journal(tmp_path, SETTINGS, 2, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("room", [60, 400])
def test_a_full_disk_is_one_line_and_the_run_continues_from_the_last_draw(
    tmp_path, full_disk, room
):
    write(tmp_path, 2)
    with pytest.raises(LossKernelError, match="cannot be written.*free disk space") as caught:
        with full_disk(room):
            write(tmp_path, 20, start=2)
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    with opened(tmp_path) as journal:
        done = journal.draws
    assert 2 <= done < 20
    write(tmp_path, 20, start=done)
    with opened(tmp_path) as journal:
        assert np.array_equal(journal.read(20)[0], of_draws(20))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LossKernelError, match="file: the journal cannot be written"):
        Journal(tmp_path / "file", SETTINGS, 2, 3)


def test_a_second_writer_is_refused_until_the_first_closes(tmp_path):
    first = Journal(tmp_path, SETTINGS, 2, 3)
    with pytest.raises(TraceError, match="another process writes to it"):
        Journal(tmp_path, SETTINGS, 2, 3)
    first.close()
    Journal(tmp_path, SETTINGS, 2, 3).close()


def test_what_a_kill_during_the_state_left_is_removed(tmp_path):
    write(tmp_path, 2)
    leftover = tmp_path / ".state.12345.safetensors"
    leftover.write_bytes(b"half")
    with opened(tmp_path) as journal:
        assert not leftover.exists() and journal.draws == 2


def test_a_journal_from_before_times_were_kept_continues(tmp_path):
    write(tmp_path, 2)
    (tmp_path / "seconds.f64").unlink()
    write(tmp_path, 3, start=2)
    with opened(tmp_path) as journal:
        assert journal.draws == 3 and np.isnan(journal.seconds(3)).all()
    assert (tmp_path / "seconds.f64").stat().st_size == 8 * 3


def append(journal, draws):
    for draw in range(journal.draws, draws):
        journal.append(losses(draw), np.zeros(2), torch.zeros(2, 4), np.array([-1, -1]))


@pytest.fixture
def journal(tmp_path):
    with opened(tmp_path) as found:
        yield found


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_draws_so_far_of_a_journal_in_use(tmp_path, journal):
    for draws in (1, 2, 5):
        append(journal, draws)
        before = contents(tmp_path)
        found = journal_losses(tmp_path)
        assert np.array_equal(found, of_draws(draws))
        assert contents(tmp_path) == before


def test_a_row_without_its_state_is_not_read_and_a_missing_one_is_told(tmp_path, journal):
    append(journal, 3)
    complete = (tmp_path / "losses.f32").read_bytes()
    for further in (b"torn", losses(3).tobytes()):
        (tmp_path / "losses.f32").write_bytes(complete + further)
        assert np.array_equal(journal_losses(tmp_path), of_draws(3))
    (tmp_path / "losses.f32").write_bytes(complete[:-1])
    with pytest.raises(TraceError, match="shorter than its state"):
        journal_losses(tmp_path)


def test_what_is_no_journal_or_has_no_draw_is_named(tmp_path, journal):
    with pytest.raises(TraceError, match="no complete draw yet"):
        journal_losses(tmp_path)
    with pytest.raises(TraceError, match="nowhere: not the journal of a sampling run"):
        journal_losses(tmp_path / "nowhere")
    (tmp_path / "settings.json").write_text(json.dumps({"seed": 1}))
    with pytest.raises(TraceError, match="not the journal"):
        journal_losses(tmp_path)


def test_a_damaged_state_is_named(tmp_path, journal):
    append(journal, 2)
    (tmp_path / "state.safetensors").write_bytes(b"no tensors")
    with pytest.raises(TraceError, match="unreadable as a journal"):
        journal_losses(tmp_path)
