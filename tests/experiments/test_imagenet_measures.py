"""Parts of the semantic statistics and of the jackknife, against values worked out by hand."""

import numpy as np
import pytest

from losskernel.errors import DataError
from losskernel.experiments.imagenet.kernels import left_out
from losskernel.experiments.imagenet.measures import distances, table
from losskernel.kernel.estimate import Draws


def draws(chains, number):
    losses = np.arange(chains * number * 2.0).reshape(chains, number, 2)
    return Draws(losses, -losses, np.eye(2))


def test_the_jackknife_leaves_out_stretches_of_time_in_all_chains():
    whole = draws(2, 5)
    first, second, third = left_out(whole, 3)
    for part, kept in ((first, [2, 3, 4]), (second, [0, 1, 4]), (third, [0, 1, 2, 3])):
        np.testing.assert_array_equal(part.losses, whole.losses[:, kept])
        np.testing.assert_array_equal(part.linear, -part.losses)


def test_the_jackknife_leaves_out_chains_where_there_are_enough():
    whole = draws(3, 4)
    parts = left_out(whole, 3)
    assert len(parts) == 3
    np.testing.assert_array_equal(parts[1].losses, whole.losses[[0, 2]])
    np.testing.assert_array_equal(parts[1].linear, whole.linear[[0, 2]])


def test_more_stretches_than_draws_are_refused():
    with pytest.raises(DataError, match="jackknife_blocks = 9: 4 draws a chain"):
        left_out(draws(2, 4), 9)


def test_distances_keep_the_order_of_a_kernel_that_is_not_normalized():
    similarity = np.array([[9.0, 4.0, -1.0], [4.0, 2.0, 1.0], [-1.0, 1.0, 3.0]])
    np.testing.assert_array_equal(distances(similarity), 9 - similarity)
    r = np.array([[1, 0.5], [0.5, 1]])
    np.testing.assert_allclose(distances(r), [[0, 1], [1, 0]])


def test_a_row_a_statistic_with_what_is_known_of_it():
    key, other = ("lift", 3, 10), ("cka_features", None, None)
    rows = table("R", {key: 2.0, other: 0.5}, {key: 0.1}, {key: 0.8}, {key: 1.2})
    assert rows.columns.tolist() == [
        "kernel",
        "statistic",
        "depth",
        "k",
        "value",
        "standard_error",
        "null_low",
        "null_high",
    ]
    assert rows.iloc[0].tolist() == ["R", "lift", 3, 10, 2.0, 0.1, 0.8, 1.2]
    assert rows.iloc[1][["standard_error", "null_low", "null_high"]].isna().all()
