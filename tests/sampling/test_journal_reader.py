import json

import numpy as np
import pytest
import torch

from losskernel.errors import TraceError
from losskernel.sampling.journal import Journal
from losskernel.sampling.journal_reader import journal_losses

SETTINGS = {
    "chain_ids": '{"ids": [4, 7]}',
    "seed": 1,
    "probe": '{"n_beta": 1, "gamma": 1, "step_size": 0.1}',
}
LOSSES = np.random.default_rng(0).standard_normal((5, 2, 6)).astype(np.float32)


def append(journal, draws):
    for losses in LOSSES[journal.draws : draws]:
        journal.append(losses, np.zeros(2), torch.zeros(2, 9), np.array([-1, -1]))


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path, SETTINGS, chains=2, inputs=6)
    yield opened
    opened.close()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_draws_so_far_of_a_journal_in_use(tmp_path, journal):
    for draws in (1, 2, 5):
        append(journal, draws)
        before = contents(tmp_path)
        found = journal_losses(tmp_path)
        assert np.array_equal(found, LOSSES[:draws].swapaxes(0, 1))
        assert contents(tmp_path) == before
    assert np.array_equal(journal_losses(tmp_path, start=3), LOSSES[3:].swapaxes(0, 1))
    assert journal_losses(tmp_path, start=5).shape == journal_losses(tmp_path, start=9).shape
    assert journal_losses(tmp_path, start=5).shape == (2, 0, 6)


@pytest.mark.parametrize("draws", [1, 2, 4])
def test_a_draw_whose_state_is_not_yet_written_is_left_out(tmp_path, journal, draws):
    append(journal, draws)
    with open(tmp_path / "losses.f32", "ab") as losses:
        losses.write(LOSSES[draws].tobytes())
    with open(tmp_path / "batch_losses.f64", "ab") as batch_losses:
        batch_losses.write(bytes(16))
    assert np.array_equal(journal_losses(tmp_path), LOSSES[:draws].swapaxes(0, 1))


def test_a_torn_row_is_not_read_and_a_missing_one_is_told(tmp_path, journal):
    append(journal, 3)
    complete = (tmp_path / "losses.f32").read_bytes()
    (tmp_path / "losses.f32").write_bytes(complete + b"torn")
    assert np.array_equal(journal_losses(tmp_path), LOSSES[:3].swapaxes(0, 1))
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
