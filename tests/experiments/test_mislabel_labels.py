import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from losskernel import Probe, sample_losses
from losskernel.errors import ConfigError, DataError
from losskernel.experiments.mislabel.labels import (
    MarginRecorder,
    SeveralLabels,
    detection,
    flip_labels,
    margins,
    wrong_labels,
)


def test_flipped_labels_are_as_many_as_asked_for_and_all_wrong():
    labels = np.arange(1000) % 5
    given, flipped = flip_labels(labels, 0.123, 5, np.random.default_rng(0))
    assert flipped.sum() == 123
    np.testing.assert_array_equal(given != labels, flipped)
    # Each of the 4 wrong labels is as likely: 30.75 expected, standard deviation 4.8.
    offsets = np.bincount((given - labels)[flipped] % 5, minlength=5)[1:]
    assert offsets.min() > 0 and np.abs(offsets - 30.75).max() < 5 * 4.8
    assert not flip_labels(labels, 0, 5, np.random.default_rng(0))[1].any()


def test_a_share_or_a_number_of_classes_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="share = 1.2"):
        flip_labels([0, 1], 1.2, 2, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="classes = 1"):
        flip_labels([0, 0], 0.5, 1, np.random.default_rng(0))


def test_wrong_labels_are_distinct_and_all_as_likely():
    labels = np.arange(3000) % 6
    wrong = wrong_labels(labels, 3, 6, np.random.default_rng(0))
    assert wrong.shape == (3000, 3)
    assert all(len({own, *others}) == 4 for own, others in zip(labels, wrong, strict=True))
    # 600 in expectation of each offset at each place, standard deviation 22.
    counts = [np.bincount(column, minlength=6) for column in ((wrong - labels[:, None]) % 6).T]
    assert np.abs(np.array(counts)[:, 1:] - 600).max() < 5 * 22
    every = wrong_labels([0, 1], 5, 6, np.random.default_rng(0))
    assert sorted(every[1]) == [0, 2, 3, 4, 5]
    with pytest.raises(ConfigError, match="6 wrong labels an input: must be from 1 to 5"):
        wrong_labels(labels, 6, 6, np.random.default_rng(0))


def test_detection_is_the_share_of_pairs_in_order_and_of_hits_above_the_cut():
    rng = np.random.default_rng(1)
    scores, flipped = rng.integers(0, 40, 60) * 1.0, rng.random(60) < 0.3
    pairs = list(itertools.product(scores[flipped], scores[~flipped]))
    expected = np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs])
    assert detection(scores, flipped).auc == pytest.approx(expected)
    distinct = scores + 0.001 * np.arange(60)
    top = np.argsort(-distinct)[: flipped.sum()]
    assert detection(distinct, flipped).precision == pytest.approx(flipped[top].mean())


def test_a_score_without_information_finds_what_chance_finds():
    flipped = np.array([True] * 3 + [False] * 9)
    found = detection(np.ones(12), flipped)
    assert (found.auc, found.precision) == (0.5, 0.25)
    half_tied = detection([3, 2, 1, 2, *[0] * 8], flipped)  # 3 above the cut at 2 are two wrong
    assert half_tied.precision == pytest.approx(2 / 3)


def test_detection_refuses_what_has_no_answer():
    with pytest.raises(DataError, match="1 scores are not finite"):
        detection([1, np.nan], [True, False])
    with pytest.raises(DataError, match="2 of 2 labels are wrong"):
        detection([1, 2], [True, True])
    with pytest.raises(DataError, match="do not fit"):
        detection([1, 2], [True])


def test_margin_is_the_label_over_the_best_other():
    logits = torch.tensor([[3.0, 1, 2], [0, 5, 9], [1, 1, 1]])
    assert margins(logits, torch.tensor([0, 1, 2])).tolist() == [1, -4, 0]


def test_margins_are_recorded_at_whole_evaluations_only():
    torch.manual_seed(0)
    model, inputs, labels = nn.Linear(3, 4), torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])
    with MarginRecorder(model, labels) as recorder:
        model.train()(inputs)
        model.eval()(inputs[:3])
        with pytest.raises(DataError, match="no evaluation of all 5 inputs"):
            _ = recorder.area
        first = margins(model(inputs), labels)
        with torch.no_grad():
            model.weight *= 3
        second = margins(model(inputs), labels)
    model(inputs)  # after the block nothing is recorded
    assert recorder.evaluations == 2
    np.testing.assert_allclose(recorder.area, (first + second).detach() / 2, rtol=1e-6)


class Counted(nn.Linear):
    """A linear model that keeps the size of the batches that it sees."""

    def __init__(self):
        super().__init__(3, 4)
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        return super().forward(x)


def test_labels_of_an_input_share_one_forward_pass():
    torch.manual_seed(0)
    model, inputs = Counted(), torch.randn(5, 3)
    shown, labels = SeveralLabels(model, inputs, 4), torch.arange(4).repeat(5)
    losses = cross_entropy(shown(shown.pairs[4:16]), labels[4:16], reduction="none")
    assert model.seen == [3]
    expected = -model(inputs).log_softmax(1)[1:4].flatten()
    torch.testing.assert_close(losses, expected)
    for some in (slice(0, 3), slice(None, 16, 4)):  # not all labels of an input, or not in a row
        torch.testing.assert_close(shown(shown.pairs[some]), model(inputs)[shown.pairs[some] // 4])
    assert model.seen == [3, 5, 3, 5, 4, 5]


@pytest.mark.parametrize("engine", ["batched", "sequential"])
def test_a_trace_of_pairs_is_that_of_the_repeated_inputs(engine):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
    data = torch.randn(6, 3), torch.arange(6) % 4
    # Some labels of each input, in any order: the gradients see those of the data alone.
    chosen = torch.as_tensor(wrong_labels(data[1], 2, 4, np.random.default_rng(0)))
    every = torch.cat([chosen, data[1][:, None]], 1).flatten()
    shown = SeveralLabels(model, data[0], 3)
    options = {"chains": 2, "draws": 5, "engine": engine, "progress": False}
    probe = Probe(n_beta=10, gamma=100, step_size=1e-3)
    trace = sample_losses(shown, data, probe, probe_data=(shown.pairs, every), **options)
    repeated = data[0].repeat_interleave(3, 0), every
    expected = sample_losses(model, data, probe, probe_data=repeated, **options)
    # The same weights; logits, sums of 8 products of order 1, differ by some 10 roundings of 2^-24.
    np.testing.assert_allclose(trace.losses, expected.losses, rtol=0, atol=1e-5)
