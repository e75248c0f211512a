"""A run that is killed ends as if it was not, to the bit; its checkpoints are those asked for."""

import multiprocessing
import os
import signal

import pytest
import torch
from torch import nn

from losskernel.errors import ConfigError, DataError, TraceError
from losskernel.training.checkpoints import LATEST, Checkpoint, checkpoint_path
from losskernel.training.train import TrainingError, TrainingSettings, train

STEPS = 40
CHECKPOINTS = [0, 3, 17, STEPS]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Runs agree to the bit with the same number of threads, which a forked process resets."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network with all that has a state or draws numbers: batch norm and dropout."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(8 * 4, 5),
    )  # fmt: skip
    labels = torch.arange(50) % 5
    inputs = torch.randint(0, 120, (50, 3, 6, 6)) + 30 * labels[:, None, None, None]
    return model, inputs.to(torch.uint8), labels


def augment(batch, generator):
    top, left = torch.randint(3, (2,), generator=generator).tolist()
    return batch[:, :, top : top + 4, left : left + 4].float() / 255


def run(folder, on_step=None, seed=0, settings=None, **options):
    model, inputs, targets = problem()
    if on_step is not None:
        model.register_forward_hook(on_step)
    chosen = {"steps": STEPS, "batch_size": 16, "warmup": 5, "label_smoothing": 0.1}
    settings = TrainingSettings(**chosen | {"evaluate_every": 7} | (settings or {}))
    options = {"augment": augment, "save_every": 6, "checkpoints": CHECKPOINTS} | options
    log = train(model, inputs, targets, settings, seed, folder, progress=False, **options)
    return model, log


def killed(folder, at):
    """Run in this process until step ``at`` computes, then die without any chance to clean up."""
    steps = iter(range(1, STEPS + 1))

    def die(*_):
        if next(steps) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    run(folder, die)


def tensors(state, name=""):
    if isinstance(state, torch.Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from tensors(value, f"{name}.{key}")
    elif isinstance(state, list):
        for number, value in enumerate(state):
            yield from tensors(value, f"{name}.{number}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(folder)


@pytest.mark.parametrize("kills", [(1,), (14,), (9, 9, 6)])
def test_a_killed_run_ends_as_the_whole_one_to_the_bit(whole, tmp_path, kills):
    reference, _, log = whole
    context = multiprocessing.get_context("fork")
    for at in kills:  # steps of each attempt
        process = context.Process(target=killed, args=(tmp_path, at))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    _, resumed = run(tmp_path)
    assert resumed == log
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in reference.iterdir())
    for path in [*(checkpoint_path(reference, step) for step in CHECKPOINTS), reference / LATEST]:
        expected, found = Checkpoint.load(path), Checkpoint.load(tmp_path / path.name)
        assert (found.step, found.log) == (expected.step, expected.log)
        pairs = zip(
            tensors({"model": expected.model, "optimizer": expected.optimizer}),
            tensors({"model": found.model, "optimizer": found.optimizer}),
            strict=True,
        )
        count = 0
        for (name, one), (other_name, other) in pairs:
            assert name == other_name and torch.equal(one, other), (path.name, name)
            count += 1
        moments = 0 if expected.step == 0 else 3 * 6  # AdamW's state of each parameter
        assert count == 9 + moments


def test_a_finished_run_is_not_trained_again(whole):
    folder, model, log = whole

    def refuse(*_):
        raise AssertionError("a step was taken")

    again, history = run(folder, refuse)
    assert history == log
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_checkpoints_are_moments_of_one_run(whole):
    folder, model, log = whole
    initial, _, _ = problem()
    first = Checkpoint.load(checkpoint_path(folder, 0))
    for name, tensor in initial.state_dict().items():
        assert torch.equal(first.model[name], tensor)
    last = Checkpoint.load(checkpoint_path(folder, STEPS))
    for name, tensor in model.state_dict().items():
        assert torch.equal(last.model[name], tensor)
    assert not model.training
    assert [Checkpoint.load(checkpoint_path(folder, step)).step for step in CHECKPOINTS] == (
        CHECKPOINTS
    )
    assert log.step == [7, 14, 21, 28, 35, 40]


def test_it_learns(tmp_path):
    _, log = run(tmp_path, settings={"steps": 150, "learning_rate": 0.01}, checkpoints=[])
    assert log.loss[-1] < 0.8 * log.loss[0] and log.accuracy[-1] > log.accuracy[0] + 0.2


def test_the_seed_decides_batches_augmentation_and_dropout(whole, tmp_path):
    _, _, log = whole
    _, other = run(tmp_path, seed=1)
    assert other.loss != log.loss


def test_the_global_generator_is_left_as_it_was(tmp_path):
    model, inputs, targets = problem()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    settings = TrainingSettings(steps=2, batch_size=8, warmup=0)
    train(model, inputs, targets, settings, 0, tmp_path, [], augment, progress=False)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 3}, "seed"),
        ({"settings": {"weight_decay": 0.3}}, "settings"),
        ({"augment": lambda batch, generator: 2 * augment(batch, generator)}, "augment"),
    ],
)
def test_a_folder_of_another_run_is_refused(whole, change, what):
    with pytest.raises(TraceError, match=f"holds checkpoints of a run with other {what}"):
        run(whole[0], **change)


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / LATEST).write_bytes(b"torn")
    with pytest.raises(TraceError, match="latest.pt: not a checkpoint of a training run"):
        run(tmp_path)
    with pytest.raises(TraceError, match="no such checkpoint; train first"):
        Checkpoint.load(checkpoint_path(tmp_path, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoints": [0, 41]}, "give steps from 0 to 40"),
        ({"save_every": 0}, "save_every = 0"),
        ({"settings": {"stop_loss": 0.1}}, "stop_loss = 0.1: set it to null"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, **change)


def test_no_inputs(tmp_path):
    model, inputs, targets = problem()
    with pytest.raises(DataError, match="50 inputs and 49 targets"):
        train(model, inputs, targets[:-1], TrainingSettings(60), 0, tmp_path, [], progress=False)


def test_a_loss_that_explodes_stops_the_run(tmp_path):
    with pytest.raises(TrainingError, match="at step 1: lower learning_rate"):
        run(tmp_path, augment=lambda batch, _: torch.full((len(batch), 3, 4, 4), torch.inf))
