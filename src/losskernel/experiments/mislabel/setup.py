"""What the experiments on wrong labels share: data, trained networks, their probe, tables."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from losskernel.errors import ConfigError, DataError
from losskernel.experiments.mislabel.labels import MarginRecorder
from losskernel.gradients.per_sample import gradient_norms
from losskernel.sampling.pilot import propose_probe
from losskernel.sampling.probe import Probe
from losskernel.sampling.sample import cross_entropy
from losskernel.seeds import numpy_generator, torch_seed
from losskernel.training.train import TrainingSettings, train

PILOT_DRAW = 0  # chooses the probe and is used for nothing else


@dataclass(frozen=True)
class Problem:
    """Training and test inputs with their true labels, classes 0 to ``classes - 1``.

    Attributes:
        inputs: ``(input, ...)`` float32, trained on.
        labels: ``(input,)``.
        test_inputs, test_labels: likewise, to test.
        classes: their number.
    """

    inputs: Tensor
    labels: np.ndarray
    test_inputs: Tensor
    test_labels: Tensor
    classes: int


def digits(inputs: int, seed: int) -> Problem:
    """scikit-learn's 1,797 digits of 8 x 8 pixels in [0, 1]; some to train on, the rest to test.

    Raises:
        ConfigError: there are not that many.
    """
    from sklearn.datasets import load_digits  # here, as it is slow to import

    pixels, labels = load_digits(return_X_y=True)
    if not inputs < len(labels):
        raise ConfigError(f"mislabel.inputs = {inputs}: digits has {len(labels)}, test included")
    order = numpy_generator(seed, "order").permutation(len(labels))
    x, y = torch.as_tensor(pixels[order] / 16, dtype=torch.float32), labels[order]
    return Problem(x[:inputs], y[:inputs], x[inputs:], torch.as_tensor(y[inputs:]), 10)


def stored_features(path: Path) -> Problem:
    """Features of images and their labels, as ``mislabel-memorized features`` writes them.

    Scaled to a mean square of 1 over the training set, so that a learning rate means what it does
    for other inputs of order one.

    Raises:
        DataError: the file holds something else.
    """
    with np.load(path) as stored:
        needed = {"train_features", "train_label", "test_features", "test_label", "wnids"}
        if not needed <= set(stored):
            raise DataError(f"{path}: lacks {sorted(needed - set(stored))[0]}; extract it again")
        train, test = (
            torch.as_tensor(stored[f"{split}_features"], dtype=torch.float32)
            for split in ("train", "test")
        )
        labels, test_labels = stored["train_label"], stored["test_label"]
        classes = len(stored["wnids"])
    scale = train.square().mean().sqrt()
    return Problem(
        train / scale,
        labels.astype(int),
        test / scale,
        torch.as_tensor(test_labels).long(),
        classes,
    )


@dataclass(frozen=True)
class Fit:
    """A trained network.

    Attributes:
        model: it, in evaluation mode.
        seconds: of the training, the recording of margins included.
        margins: the recorder of its training.
    """

    model: nn.Module
    seconds: float
    margins: MarginRecorder


def fit(
    settings: dict, problem: Problem, inputs: Tensor, labels: Tensor, seed: int, share: float = 1.0
) -> Fit:
    """A network trained on ``share`` of the training set, for as many epochs as on all of it.

    ``settings`` has ``hidden_widths`` and ``training``, the arguments of
    :class:`losskernel.training.train.TrainingSettings`.
    """
    training = settings["training"] | {"steps": round(share * settings["training"]["steps"])}
    widths = [problem.inputs[0].numel(), *settings["hidden_widths"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "init"))
        layers: list[nn.Module] = [nn.Flatten()]
        for width, following in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(width, following), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(widths[-1], problem.classes))
    started = time.perf_counter()
    with MarginRecorder(model, labels) as recorder:
        train(model, inputs, labels, TrainingSettings(**training), seed, progress=False)
    return Fit(model, time.perf_counter() - started, recorder)


def chosen_probe(settings: dict, problem: Problem, given: Tensor) -> tuple[Probe, float]:
    """The probe that raises the mean loss of a network of its own as asked for; seconds."""
    data = (problem.inputs, given)
    model = fit(settings, problem, *data, PILOT_DRAW).model
    gradient_norms(model, data)  # what is imported at the first use is no cost of a method
    pilot, seconds = timed(
        propose_probe,
        model,
        data,
        **settings["pilot"],
        batch_size=settings["sampling"]["batch_size"],
        chains=2,
    )
    return pilot.probe, seconds


def timed(function: Callable, *arguments, **options) -> tuple:
    """What the function returns, and the seconds that it took."""
    started = time.perf_counter()
    return function(*arguments, **options), time.perf_counter() - started


@torch.inference_mode()
def losses_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> np.ndarray:
    """Cross-entropy of each input in nats, ``(input,)``."""
    return cross_entropy(model(inputs), labels).numpy()


def drift(losses: np.ndarray) -> float:
    """Change of the mean loss from the first to the second half of the draws."""
    first, second = np.array_split(losses.mean(axis=(0, 2)), 2)
    return float(second.mean() - first.mean())


def stacked(kept: list[tuple[float, np.ndarray, np.ndarray]], shares: list[float]) -> dict:
    """Self-covariances and which labels are wrong, ``(share, draw, input)``, for the figure.

    Args:
        kept: share, self-covariances ``(input,)`` and wrong labels ``(input,)`` of every draw.
        shares: the shares, in order.
    """
    arrays = {"shares": np.array(shares)}
    for name, at in (("self_covariance", 1), ("flipped", 2)):
        by_share = [[row[at] for row in kept if row[0] == share] for share in shares]
        arrays[name] = np.array(by_share)
    return arrays


def mean_and_spread(
    table: pd.DataFrame, keys: list[str], values: list[str] | None = None
) -> pd.DataFrame:
    """Columns ``<value>`` and ``<value>_sd`` over the draws of each group, and ``draws``.

    Of all columns but the keys, or of ``values``.
    """
    values = values or [name for name in table if name not in (*keys, "draw")]
    groups = table.groupby(keys, sort=False)
    means, spreads = groups[values].mean(), groups[values].std(ddof=1)
    result = means.join(spreads.add_suffix("_sd"))
    return result.assign(draws=groups["draw"].nunique()).reset_index()
