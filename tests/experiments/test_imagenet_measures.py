"""Parts of the semantic statistics, against values worked out by hand."""

import numpy as np

from losskernel.experiments.imagenet.measures import distances, table


def test_distances_keep_the_order_of_a_kernel_that_is_not_normalized():
    similarity = np.array([[9.0, 4.0, -1.0], [4.0, 2.0, 1.0], [-1.0, 1.0, 3.0]])
    np.testing.assert_array_equal(distances(similarity), 9 - similarity)
    r = np.array([[1, 0.5], [0.5, 1]])
    np.testing.assert_allclose(distances(r), [[0, 1], [1, 0]])


def test_a_row_a_statistic_with_what_is_known_of_it():
    key, other = ("lift", 3, 10), ("ami", 4, 3)
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
