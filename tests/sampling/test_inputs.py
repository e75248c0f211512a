import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from losskernel.errors import DataError
from losskernel.sampling.inputs import Inputs, fingerprint, leaves

X, Y = torch.randn(7, 3), torch.arange(7)


class Labeled(Dataset):
    """Items as users write them: a tensor and a Python integer."""

    def __len__(self):
        return 7

    def __getitem__(self, item):
        return X[item], int(Y[item])


class Stream(IterableDataset):
    def __len__(self):
        return 7

    def __iter__(self):
        return iter(Labeled())


@pytest.mark.parametrize(
    "data",
    [
        TensorDataset(X, Y),
        Labeled(),
        [*Labeled()],
        DataLoader(Labeled(), batch_size=2, shuffle=True),
        (X.numpy(), Y.tolist()),
        (list(X), Y),
        (pd.DataFrame(X.numpy()), pd.Series(Y.numpy())),
    ],
    ids=["TensorDataset", "data set", "list", "loader", "arrays", "list of tensors", "table"],
)
def test_a_data_set_reads_like_the_tensors(data):
    tensors, read = Inputs((X, Y)), Inputs(data)
    assert len(read) == len(tensors) == 7
    indices = np.array([5, 0, 3])
    for a, b in zip(tensors.take(indices), read.take(indices), strict=True):
        assert torch.equal(a, b)
    expected, found = list(tensors.blocks(3)), list(read.blocks(3))
    assert [len(y) for _, y in found] == [3, 3, 1]
    for block, other in zip(expected, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(block, other, strict=True))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, Y[:5]), "7 inputs but 5 targets"),
        ((X[:0], Y[:0]), "no inputs"),
        (iter([1, 2]), "map-style Dataset"),
        (Stream(), "map-style Dataset, not Stream"),
        ((X, Y, X), r"not 3 parts; put a mask or a weight beside the target"),
        ((X, ["cat", "dog"] * 3 + ["cat"]), "targets of type list make no tensor.*numbered from 0"),
        (([X[0], X[1, :2]], [0, 1]), "inputs of type list make no tensor.*collate_fn"),
        (({"a": X, "b": X[:5]}, Y), "5 inputs but 7 targets"),
    ],
)
def test_unusable_data(data, message):
    with pytest.raises(DataError, match=message):
        Inputs(data)


def test_items_that_are_not_pairs():
    with pytest.raises(DataError, match="must be a pair"):
        next(Inputs(TensorDataset(X)).blocks(2))
    with pytest.raises(DataError, match="must be a pair"):
        Inputs(TensorDataset(X)).take(np.array([0, 1]))


def test_two_pairs_in_a_list_are_two_items():
    assert len(Inputs([(X[0], 0), (X[1], 1)])) == 2
    assert len(Inputs([X, Y])) == 7


@pytest.mark.parametrize("parts", [{"x": X, "more": X + 1}, (X, X + 1), [X, X + 1]])
def test_inputs_of_several_parts_in_memory(parts):
    inputs = Inputs((parts, Y))
    for x, y in (inputs.take([4, 2]), next(inputs.blocks(2))):
        found = [*x.values()] if isinstance(x, dict) else x
        assert torch.equal(found[0], X[[4, 2]] if y[0] == 4 else X[:2])
        assert torch.equal(found[1], found[0] + 1) and len(y) == 2
    with pytest.raises(DataError, match="input 3 holds NaN"):
        wrong = X.clone()
        wrong[3] = torch.nan
        Inputs(((X, wrong), Y)).check_finite()


def test_inputs_of_various_sizes_by_a_collate_function():
    items = [(X[0, : 1 + i % 3], i) for i in range(7)]

    def padded(batch):
        return pad_sequence([x for x, _ in batch], True), torch.tensor([y for _, y in batch])

    inputs = Inputs(DataLoader(items, collate_fn=padded))
    x, y = inputs.take([0, 2])
    assert x.shape == (2, 3) and y.tolist() == [0, 2] and x[0, 1:].tolist() == [0, 0]
    assert [len(y) for _, y in inputs.blocks(4)] == [4, 3]
    with pytest.raises(DataError, match=r"items do not make a batch.*collate_fn=\.\.\."):
        Inputs(items).take([0, 1])


def test_fingerprint_sees_values_shapes_types_and_order():
    reference = fingerprint([X, Y])
    assert fingerprint([X.clone(), Y.clone()]) == reference
    changed = X.clone()
    changed[3, 1] = torch.nextafter(changed[3, 1], torch.tensor(torch.inf))
    others = [[changed, Y], [X.reshape(3, 7), Y], [X, Y.int()], [Y, X], [X]]
    assert len({fingerprint(tensors) for tensors in others} | {reference}) == 6


def test_fingerprint_ignores_memory_layout():
    images = torch.randn(2, 3, 4, 4)
    assert fingerprint([images]) == fingerprint([images.to(memory_format=torch.channels_last)])


def test_the_fingerprint_of_inputs_is_that_of_the_data_set_and_sees_their_order():
    many = torch.arange(300.0)[:, None] + torch.zeros(4), torch.arange(300)
    reference = Inputs(many).fingerprint()
    assert Inputs(TensorDataset(*many)).fingerprint() == reference
    swapped = [part.roll(1, 0) for part in many]
    assert len({reference, Inputs(swapped).fingerprint(), Inputs(many[:1] * 2).fingerprint()}) == 3


def test_text_counts_by_input():
    class Items(Dataset):
        def __init__(self, words):
            self.words = words

        def __len__(self):
            return len(self.words)

        def __getitem__(self, i):
            return torch.tensor([i]), self.words[i]

    words = ["one", "two", "three"]
    ((x, y),) = Inputs(Items(words)).blocks(3)
    assert list(y) == words and [len(leaf) for leaf in leaves(y)] == [3]
    prints = {Inputs(Items(list(order))).fingerprint() for order in (words, words[::-1])}
    assert len(prints) == 2
    assert Inputs(Items(words)).fingerprint(few=True) not in prints
