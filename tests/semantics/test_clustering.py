"""Clusters of a graph and their agreement with groups, against values worked out by hand."""

import numpy as np
import pytest
import scipy.sparse

from losskernel.errors import DataError
from losskernel.semantics.clustering import adjusted_agreement, spectral_clusters

CLUSTERS = [0, 0, 0, 0, 1, 1, 1, 1]
GROUPS = [0, 0, 0, 1, 1, 1, 1, 1]  # one of the first cluster's inputs is in the other group


def entropy(*shares):
    return -sum(share * np.log(share) for share in shares)


def test_mutual_information_by_hand():
    # I = H(clusters) + H(groups) - H(both): both are (0, 0), (0, 1), (1, 1) with 3, 1 and 4 of 8.
    halves, thirds = entropy(1 / 2, 1 / 2), entropy(3 / 8, 5 / 8)
    information = halves + thirds - entropy(3 / 8, 1 / 8, 4 / 8)
    # Clusters of 4 and 4, groups of 3 and 5: the first cluster holds 0 to 3 of the group of 3,
    # hypergeometric with 5, 30, 30 and 5 ways of 70.
    ways = {0: 5, 1: 30, 2: 30, 3: 5}
    expected = 0.0
    for held, number in ways.items():
        cells = [held, 4 - held, 3 - held, 1 + held]
        joint = entropy(*(cell / 8 for cell in cells if cell))
        expected += number / 70 * (halves + thirds - joint)
    adjusted = (information - expected) / ((halves + thirds) / 2 - expected)
    assert adjusted_agreement(CLUSTERS, GROUPS) == pytest.approx(adjusted)


def test_the_same_partition_under_other_names_agrees_fully():
    named = ["b" if c else "a" for c in CLUSTERS]
    assert adjusted_agreement(CLUSTERS, named) == pytest.approx(1)


def test_lengths_must_fit():
    with pytest.raises(DataError, match="one label an input"):
        adjusted_agreement(CLUSTERS, GROUPS[:-1])


def blocks(sizes, across):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    graph = np.where(labels[:, None] == labels, 1.0, across)
    np.fill_diagonal(graph, 0)
    return labels, graph


@pytest.mark.parametrize("across", [0.0, 0.05])
def test_blocks_of_a_graph_are_its_clusters(across):
    labels, graph = blocks([4, 6, 8], across)
    order = np.random.default_rng(0).permutation(len(labels))
    graph = scipy.sparse.csr_matrix(graph[np.ix_(order, order)])
    assert adjusted_agreement(spectral_clusters(graph, 3), labels[order]) == pytest.approx(1)


@pytest.mark.parametrize("clusters", [1, 18])
def test_a_number_of_clusters_out_of_range_is_refused(clusters):
    graph = scipy.sparse.csr_matrix(blocks([4, 6, 8], 0.05)[1])
    with pytest.raises(DataError, match=f"clusters = {clusters} must be from 2 to 17"):
        spectral_clusters(graph, clusters)
