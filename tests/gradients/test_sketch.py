import numpy as np
import pytest
import torch
from torch import nn

from losskernel.gradients.sketch import Fold
from losskernel.sampling.parameters import FlatLayout, select_parameters


def layout():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(50, 20), nn.BatchNorm2d(8))
    return FlatLayout(model, select_parameters(model))


def folded(rows, width, seed):
    fold = Fold(layout(), width, seed)
    out = torch.zeros(len(rows), fold.width)
    fold.add_rows(out, rows)
    return out.double().numpy()


def gradients():
    """Two rows with a cosine of 0.6 and, as behind a ReLU, a mean far from zero."""
    torch.manual_seed(0)
    size = layout().size
    x = torch.randn(2, size) + 1
    x[1] = 0.6 * x[0] + 0.8 * x[1]
    return x


@pytest.mark.parametrize("width", [30, 200])
def test_products_of_sketches_are_unbiased(width):
    rows = gradients()
    exact = (rows.double() @ rows.double().T).numpy()
    found = np.array([s @ s.T for s in (folded(rows, width, seed) for seed in range(400))])
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(0) - exact) < 4 * error)
    # As of independent signs and columns: var(x.y) = (|x|^2 |y|^2 + (x.y)^2 - 2 sum x^2 y^2) / m.
    x, y = rows.double().numpy()
    known = ((x @ x) * (y @ y) + (x @ y) ** 2 - 2 * (x**2 * y**2).sum()) / width
    assert found[:, 0, 1].var() == pytest.approx(known, rel=0.35)


def test_enough_columns_fold_nothing():
    rows = gradients()
    found = folded(rows, 10_000, 0)
    assert found.shape == tuple(rows.shape)
    np.testing.assert_allclose(np.sort(found), np.sort(rows.numpy()))
    np.testing.assert_allclose(found @ found.T, (rows.double() @ rows.double().T).numpy())


def test_the_seed_decides():
    rows = gradients()
    np.testing.assert_array_equal(folded(rows, 100, 3), folded(rows, 100, 3))
    assert not np.array_equal(folded(rows, 100, 3), folded(rows, 100, 4))


def test_products_and_whole_gradients_fold_alike():
    fold = Fold(layout(), 64, 0)
    torch.manual_seed(0)
    for name, shape in (("0.weight", (8, 3, 3, 3)), ("1.weight", (20, 50))):
        left = torch.randn(4, 30, shape[0])
        if len(shape) == 4:
            right = torch.randn(4, 5, 6, 3, 3, 3)  # input, height, width, kernel, channel
            whole = torch.einsum("nlr,nlhwc->nrchw", left, right.flatten(1, 2))
        else:
            right = torch.randn(4, 30, shape[1])
            whole = left.mT @ right
        product, plain = torch.zeros(4, 64), torch.zeros(4, 64)
        fold.add_product(product, name, left, right)
        fold.add(plain, name, whole)
        torch.testing.assert_close(product, plain, rtol=1e-4, atol=1e-4)
