import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from losskernel.errors import DataError
from losskernel.sampling.inputs import Inputs, fingerprint, leaves

X, Y = torch.randn(7, 3), torch.arange(7)


class Labeled(Dataset):
    """Items as users write them: a tensor and a Python integer."""

    def __len__(self):
        return 7

    def __getitem__(self, item):
        return X[item], int(Y[item])


@pytest.mark.parametrize("data", [TensorDataset(X, Y), Labeled()])
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
        (DataLoader(TensorDataset(X, Y)), r"pass its \.dataset"),
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
    assert Inputs(Items(words)).fingerprint(targets_only=True) not in prints
