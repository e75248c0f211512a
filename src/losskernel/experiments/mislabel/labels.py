"""Wrong labels: making them, finding them and scoring the finding.

The loss kernel's statistic is the self-covariance of an input's loss under its given label
(:func:`losskernel.kernel.covariance.self_covariance`). Here is what it is measured with and
against; what a kernel says about the right label is :func:`losskernel.kernel.neighbors.vote`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from losskernel.errors import ConfigError, DataError


def flip_labels(
    labels: ArrayLike, share: float, classes: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which some are wrong: symmetric noise of exactly ``round(share n)`` inputs.

    Args:
        labels: true classes 0 to ``classes - 1``, ``(input,)``.
        share: of the inputs whose label is replaced, in [0, 1].
        classes: number of classes, at least 2; a wrong label is one of the others, all as likely.
        rng: draws the inputs and the wrong labels.

    Returns:
        The given labels, and which of them are wrong, both ``(input,)``.

    Raises:
        ConfigError: ``share`` or ``classes`` is out of range.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share = {share} of flipped labels: give a value from 0 to 1")
    if classes < 2:
        raise ConfigError(f"classes = {classes}: a wrong label needs at least 2")
    given = np.array(labels)
    flipped = np.zeros(len(given), bool)
    flipped[rng.choice(len(given), round(share * len(given)), replace=False)] = True
    given[flipped] = (given[flipped] + rng.integers(1, classes, flipped.sum())) % classes
    return given, flipped


def wrong_labels(
    labels: ArrayLike, count: int, classes: int, rng: np.random.Generator
) -> np.ndarray:
    """Some wrong labels of every input, ``(input, count)``, distinct and all as likely.

    ``count`` of each, from 1 to ``classes - 1``; other arguments as for :func:`flip_labels`.

    Raises:
        ConfigError: ``count`` is out of range.
    """
    if not 1 <= count < classes:
        raise ConfigError(f"{count} wrong labels an input: must be from 1 to {classes - 1}")
    labels = np.asarray(labels)
    order = rng.permuted(np.tile(np.arange(1, classes), (len(labels), 1)), axis=1)
    return (labels[:, None] + order[:, :count]) % classes


@dataclass(frozen=True)
class Detection:
    """How well a score finds wrong labels.

    Attributes:
        auc: probability that a wrong label scores above a right one, ties counted half.
        precision: share of wrong labels among as many of the highest scores as there are wrong
            labels (which is also the recall there); of inputs tied at the cut, as many as fit.
    """

    auc: float
    precision: float


def detection(scores: ArrayLike, flipped: ArrayLike) -> Detection:
    """ROC-AUC, and precision at the true share, of scores that should be high for wrong labels.

    Args:
        scores: ``(input,)``, finite.
        flipped: which labels are wrong, ``(input,)`` bool.

    Raises:
        DataError: shapes differ, a score is not finite, or all labels are of one kind.
    """
    from sklearn.metrics import roc_auc_score  # here, as it is slow to import

    scores, flipped = np.asarray(scores, float), np.asarray(flipped, bool)
    if scores.shape != flipped.shape or scores.ndim != 1:
        raise DataError(f"detection: scores {scores.shape} and labels {flipped.shape} do not fit")
    if not np.isfinite(scores).all():
        raise DataError(f"detection: {(~np.isfinite(scores)).sum()} scores are not finite")
    count = int(flipped.sum())
    if count in (0, len(flipped)):
        raise DataError(f"detection: {count} of {len(flipped)} labels are wrong; needs both kinds")
    cut = np.sort(scores)[-count]
    above, tied = scores > cut, scores == cut
    found = flipped[above].sum() + flipped[tied].mean() * (count - above.sum())
    return Detection(float(roc_auc_score(flipped, scores)), float(found / count))


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the label minus the largest other logit, ``(input,)``, of ``(input, class)``."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.amax(1)


class MarginRecorder:
    """Area under the margin (Pleiss et al. 2020, arXiv:2001.10528): the mean margin over training.

    Records whenever the model is evaluated on the whole training set, as
    :func:`losskernel.training.train.train` does every ``evaluate_every`` steps; Pleiss et al. take
    the logits of each epoch's minibatches as they are trained on. ::

        with MarginRecorder(model, labels) as recorder:
            train(model, inputs, labels, settings, seed)
        scores = -recorder.area  # a wrong label has a small margin

    Args:
        model: maps inputs to logits ``(input, class)``.
        labels: given labels of the whole training set, ``(input,)``.
    """

    def __init__(self, model: nn.Module, labels: Tensor):
        self._model, self._labels = model, labels
        self._sum = torch.zeros(len(labels), dtype=torch.float64)
        self.evaluations = 0

    def __enter__(self) -> MarginRecorder:
        self._hook = self._model.register_forward_hook(self._record)
        return self

    def __exit__(self, *_) -> None:
        self._hook.remove()

    def _record(self, model: nn.Module, _, logits: Tensor) -> None:
        if not model.training and len(logits) == len(self._labels):
            self._sum += margins(logits.detach(), self._labels.to(logits.device)).double().cpu()
            self.evaluations += 1

    @property
    def area(self) -> np.ndarray:
        """Mean margin, ``(input,)``, in units of a logit.

        Raises:
            DataError: the model was not evaluated on the whole set.
        """
        if not self.evaluations:
            raise DataError(
                f"area under the margin: no evaluation of all {len(self._labels)} inputs at once; "
                "lower evaluate_every, or evaluate larger batches"
            )
        return (self._sum / self.evaluations).numpy()


class SeveralLabels(nn.Module):
    """A model that shows each input under several labels for one forward pass.

    Made for :func:`losskernel.sampling.sample.sample_losses`: ``probe_data=(model.pairs, labels)``
    with one label a pair, labels of one input side by side, records the loss of every pair from the
    logits of its input. Which labels these are is the caller's choice: all classes, or some of
    each input. Batches of inputs, as they come for the gradient, pass through unchanged. Names of
    parameters begin with ``model.``.

    Args:
        model: maps inputs to logits ``(input, class)``.
        inputs: the probe inputs, ``(input, ...)`` of floating point.
        labels_per_input: labels shown of each. With an ``eval_batch_size`` that is a multiple of it
            they share a forward pass; pairs in another order are evaluated one by one.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, labels_per_input: int):
        super().__init__()
        self.model, self.labels_per_input = model, labels_per_input
        self.register_buffer("inputs", inputs, persistent=False)

    @property
    def pairs(self) -> Tensor:
        """Numbers of the (input, label) pairs, ``(input x label,)``, what the model is called with.

        Pair p is label ``p % labels_per_input`` of input ``p // labels_per_input``.
        """
        return torch.arange(len(self.inputs) * self.labels_per_input, device=self.inputs.device)

    def forward(self, batch: Tensor) -> Tensor:
        """Logits ``(batch, class)`` of inputs, or of pairs by number."""
        if batch.is_floating_point():
            return self.model(batch)
        number = batch // self.labels_per_input
        of_inputs = number[:: self.labels_per_input]
        shared = len(batch) % self.labels_per_input == 0
        if shared and not torch.compiler.is_compiling():
            try:
                shared = bool((number == of_inputs.repeat_interleave(self.labels_per_input)).all())
            except RuntimeError:  # a batch of each chain, on which torch.func cannot branch
                shared = False
        if not shared:  # such as a few pairs that are looked at before the first draw
            return self.model(self.inputs[number])
        return self.model(self.inputs[of_inputs]).repeat_interleave(self.labels_per_input, 0)
