import itertools
import json
import os
import zipfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from losskernel.errors import DataError, LossKernelError
from losskernel.semantics.lift import (
    MirroredRanks,
    lift,
    lift_by_k,
    mean_common_depth,
    mean_pair_depth,
    rank_correlations,
    region_lift,
    shuffled_null,
)
from losskernel.semantics.wordnet import (
    COARSE_GROUPS,
    Hierarchy,
    coarse_groups,
    groups_at_depth,
    hierarchy_order,
    lowest_common_hypernym,
    subtree_members,
)


def hierarchy_of(hypernyms: dict[str, tuple[str, ...]], classes: list[str]) -> Hierarchy:
    wnids = tuple(f"n{i:08d}" for i in range(len(classes)))
    return Hierarchy(wnids, tuple(classes), tuple(classes), hypernyms)


#            thing
#        animal     tool
#     dog      cat    saw  axe
#  pug husky
SMALL = hierarchy_of(
    {
        "thing": (),
        "animal": ("thing",),
        "tool": ("thing",),
        "dog": ("animal",),
        "cat": ("animal",),
        "pug": ("dog",),
        "husky": ("dog",),
        "saw": ("tool",),
        "axe": ("tool",),
    },
    ["pug", "husky", "cat", "saw", "axe"],
)
PUG, HUSKY, CAT, SAW, AXE = range(5)
SMALL_DEPTH = np.array(
    [
        [3, 2, 1, 0, 0],
        [2, 3, 1, 0, 0],
        [1, 1, 2, 0, 0],
        [0, 0, 0, 2, 1],
        [0, 0, 0, 1, 2],
    ]
)

# "bat" has two hypernyms: a short path to the root through mammal, a long one through winged.
DAG = hierarchy_of(
    {
        "thing": (),
        "mammal": ("thing",),
        "flier": ("thing",),
        "winged": ("flier",),
        "bat": ("mammal", "winged"),
        "bird": ("winged",),
        "cat": ("mammal",),
    },
    ["bat", "bird", "cat"],
)


@st.composite
def hierarchies(draw) -> Hierarchy:
    """A random rooted DAG with some of its synsets as classes."""
    n = draw(st.integers(2, 14))
    hypernyms = {"s0": ()}
    for i in range(1, n):
        above = draw(st.sets(st.integers(0, i - 1), min_size=1, max_size=3))
        hypernyms[f"s{i}"] = tuple(f"s{a}" for a in sorted(above))
    classes = draw(st.lists(st.sampled_from(sorted(hypernyms)), min_size=2, unique=True))
    return hierarchy_of(hypernyms, classes)


def steps_up(hierarchy: Hierarchy, name: str) -> dict[str, int]:
    """Fewest steps from a synset to each of its ancestors, breadth first."""
    steps, frontier = {name: 0}, [name]
    while frontier:
        frontier = [h for synset in frontier for h in hierarchy.hypernyms[synset]]
        distance = max(steps.values()) + 1
        frontier = [h for h in dict.fromkeys(frontier) if h not in steps]
        steps.update(dict.fromkeys(frontier, distance))
    return steps


def longest_path(hierarchy: Hierarchy, name: str) -> int:
    return max((1 + longest_path(hierarchy, h) for h in hierarchy.hypernyms[name]), default=0)


def random_neighbors(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """k distinct neighbors of each input, uniform among the others."""
    return np.stack([rng.permutation(np.delete(np.arange(n), i))[:k] for i in range(n)])


class TestHierarchy:
    def test_depths_of_a_tree(self):
        np.testing.assert_array_equal(SMALL.lowest_common_hypernym_depth, SMALL_DEPTH)
        np.testing.assert_array_equal(SMALL.class_depth, [3, 3, 2, 2, 2])

    def test_similarities_of_a_tree(self):
        assert SMALL.path_similarity[PUG, HUSKY] == pytest.approx(1 / 3)
        assert SMALL.path_similarity[PUG, CAT] == pytest.approx(1 / 4)
        assert SMALL.path_similarity[PUG, AXE] == pytest.approx(1 / 6)
        assert SMALL.wu_palmer[PUG, HUSKY] == pytest.approx(2 * 3 / (4 + 4))
        assert SMALL.wu_palmer[PUG, CAT] == pytest.approx(2 * 2 / (4 + 3))
        assert SMALL.wu_palmer[PUG, AXE] == pytest.approx(2 * 1 / (4 + 3))

    def test_longest_path_gives_the_depth_and_shortest_the_path_similarity(self):
        bat, bird, cat = range(3)
        np.testing.assert_array_equal(DAG.class_depth, [3, 3, 2])
        assert DAG.lowest_common_hypernym_depth[bat, bird] == 2
        assert DAG.lowest_common_hypernym_depth[bat, cat] == 1
        assert DAG.path_similarity[bat, cat] == pytest.approx(1 / 3)
        assert DAG.path_similarity[bird, cat] == pytest.approx(1 / 6)
        assert set(DAG.hypernym_paths[bat]) == {
            ("thing", "mammal", "bat"),
            ("thing", "flier", "winged", "bat"),
        }
        assert DAG.ancestors[bat] == {"thing", "mammal", "flier", "winged", "bat"}

    @given(hierarchies())
    def test_matrices_equal_a_search_over_common_ancestors(self, hierarchy):
        up = [steps_up(hierarchy, name) for name in hierarchy.classes]
        for a, above_a in enumerate(up):
            assert hierarchy.ancestors[a] == above_a.keys()
            for b, above_b in enumerate(up):
                common = above_a.keys() & above_b.keys()
                depth = max(longest_path(hierarchy, name) for name in common)
                shortest = min(above_a[name] + above_b[name] for name in common)
                assert hierarchy.lowest_common_hypernym_depth[a, b] == depth
                assert hierarchy.path_similarity[a, b] == pytest.approx(1 / (1 + shortest))

    @given(hierarchies())
    def test_similarities_are_1_on_the_diagonal_only(self, hierarchy):
        identity = np.eye(len(hierarchy.classes), dtype=bool)
        for similarity in (hierarchy.path_similarity, hierarchy.wu_palmer):
            np.testing.assert_array_equal(similarity, similarity.T)
            np.testing.assert_array_equal(similarity == 1, identity)
            assert (similarity > 0).all()

    def test_cached_matrices_cannot_be_written_to(self):
        with pytest.raises(ValueError, match="read-only"):
            SMALL.lowest_common_hypernym_depth[0, 0] = 9

    @pytest.mark.parametrize(
        ("hypernyms", "classes", "message"),
        [
            ({"a": ()}, [], "at least one"),
            ({"a": ()}, ["a", "a"], "'a' more than once"),
            ({"a": (), "b": ("c",)}, ["b"], "lacks synset 'c'"),
            ({"a": ()}, ["b"], "lacks synset 'b'"),
            ({"a": (), "b": ()}, ["b"], "2 roots"),
            ({"a": (), "b": ("c",), "c": ("b",)}, ["b"], "cycle"),
        ],
    )
    def test_a_graph_that_is_no_hierarchy_is_refused(self, hypernyms, classes, message):
        with pytest.raises(DataError, match=message):
            hierarchy_of(hypernyms, classes)

    def test_a_name_for_each_class(self):
        with pytest.raises(DataError, match="2 wnids, 1 names"):
            Hierarchy(("n1", "n2"), ("a",), ("a", "b"), {"a": (), "b": ("a",)})


class TestFile:
    @given(hierarchies())
    @settings(max_examples=20)
    def test_round_trip(self, tmp_path_factory, hierarchy):
        path = tmp_path_factory.mktemp("hierarchy") / "hierarchy.json"
        hierarchy.to_file(path)
        assert Hierarchy.from_file(path) == hierarchy

    def test_a_failed_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "hierarchy.json"
        SMALL.to_file(path)

        def full_disk(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full_disk)
        with pytest.raises(LossKernelError, match="No space left"):
            DAG.to_file(path)
        assert Hierarchy.from_file(path) == SMALL
        assert list(tmp_path.iterdir()) == [path]

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(DataError, match=r"absent\.json: hierarchy cannot be read"):
            Hierarchy.from_file(tmp_path / "absent.json")

    @pytest.mark.parametrize("damage", ["truncate", "key", "list", "cycle"])
    def test_a_damaged_file_is_named(self, tmp_path, damage):
        path = tmp_path / "hierarchy.json"
        SMALL.to_file(path)
        content = json.loads(path.read_text())
        if damage == "key":
            del content["hypernyms"]
        elif damage == "list":
            content = [content]
        elif damage == "cycle":
            content["hypernyms"]["dog"] = ["pug"]
        text = json.dumps(content)
        path.write_text(text[:-20] if damage == "truncate" else text)
        with pytest.raises(DataError, match=r"hierarchy\.json: not a hierarchy") as caught:
            Hierarchy.from_file(path)
        assert "\n" not in str(caught.value)


class TestSelection:
    def test_members_of_a_subtree(self):
        np.testing.assert_array_equal(subtree_members(SMALL, "animal"), [PUG, HUSKY, CAT])
        np.testing.assert_array_equal(subtree_members(SMALL, "cat"), [CAT])
        np.testing.assert_array_equal(subtree_members(SMALL, "thing"), range(5))

    def test_a_bare_word_stands_for_its_only_synset(self):
        hypernyms = {"thing.n.01": (), "dog.n.01": ("thing.n.01",), "dog.n.03": ("thing.n.01",)}
        hierarchy = hierarchy_of(hypernyms, ["dog.n.01", "dog.n.03"])
        np.testing.assert_array_equal(subtree_members(hierarchy, "thing"), [0, 1])
        np.testing.assert_array_equal(subtree_members(hierarchy, "dog.n.03"), [1])
        with pytest.raises(DataError, match=r"ambiguous; choose one of dog\.n\.01, dog\.n\.03"):
            subtree_members(hierarchy, "dog")
        with pytest.raises(DataError, match=r"'dog\.n\.02' is not .* nearest are dog\.n\.0"):
            subtree_members(hierarchy, "dog.n.02")

    def test_first_group_that_matches_wins(self):
        hypernyms = {
            "entity.n.01": (),
            "mammal.n.01": ("entity.n.01",),
            "artifact.n.01": ("entity.n.01",),
            "vehicle.n.01": ("artifact.n.01",),
            "dog.n.01": ("mammal.n.01",),
            "pug.n.01": ("dog.n.01",),
            "cat.n.01": ("mammal.n.01",),
            "car.n.01": ("vehicle.n.01",),
            "rug.n.01": ("artifact.n.01",),
            "cliff.n.01": ("entity.n.01",),
        }
        classes = ["pug.n.01", "cat.n.01", "car.n.01", "rug.n.01", "cliff.n.01"]
        groups, names = coarse_groups(hierarchy_of(hypernyms, classes))
        assert [names[group] for group in groups] == [
            "dogs",
            "other mammals",
            "vehicles",
            "other artifacts",
            "other",
        ]


class TestOrder:
    def test_classes_of_a_subtree_are_contiguous_and_follow_the_smallest_wnid(self):
        shuffled = hierarchy_of(dict(SMALL.hypernyms), ["axe", "pug", "cat", "saw", "husky"])
        permutation, position = hierarchy_order(shuffled)
        # Tools come first as axe has the smallest wnid; within animals, dogs, as pug precedes cat.
        ordered = [shuffled.classes[c] for c in permutation]
        assert ordered == ["axe", "saw", "pug", "husky", "cat"]
        np.testing.assert_allclose(position[permutation], [0, 0.25, 0.5, 0.75, 1])

    @given(hierarchies())
    def test_a_permutation_and_its_inverse(self, hierarchy):
        permutation, position = hierarchy_order(hierarchy)
        n = len(hierarchy.classes)
        np.testing.assert_array_equal(np.sort(permutation), np.arange(n))
        np.testing.assert_allclose(position[permutation], np.linspace(0, 1, n))

    @given(st.data())
    def test_every_subtree_of_a_tree_is_contiguous(self, data):
        n = data.draw(st.integers(2, 14))
        above = [data.draw(st.integers(0, i - 1)) for i in range(1, n)]
        hypernyms = {"s0": (), **{f"s{i + 1}": (f"s{a}",) for i, a in enumerate(above)}}
        classes = data.draw(st.permutations(sorted(hypernyms)))
        hierarchy = hierarchy_of(hypernyms, classes)
        rank = np.argsort(hierarchy_order(hierarchy)[0])
        for name in hypernyms:
            ranks = rank[subtree_members(hierarchy, name)]
            assert np.ptp(ranks) == len(ranks) - 1

    def test_the_deepest_hypernym_decides(self):
        shuffled = hierarchy_of(dict(DAG.hypernyms), ["cat", "bird", "bat"])
        permutation, _ = hierarchy_order(shuffled)
        assert [shuffled.classes[c] for c in permutation] == ["cat", "bird", "bat"]

    def test_one_class(self):
        permutation, position = hierarchy_order(hierarchy_of({"a": ()}, ["a"]))
        assert (permutation.tolist(), position.tolist()) == ([0], [0.0])


class TestLift:
    # pug -> husky, husky -> pug, cat -> saw, saw -> axe, axe -> pug
    GRAPH = np.array([[HUSKY], [PUG], [SAW], [AXE], [PUG]])

    def test_closed_form(self):
        # Of 10 pairs, 4 share a hypernym of depth 1 or more (pug-husky, pug-cat, husky-cat,
        # saw-axe), 1 of depth 2 (pug-husky), none of depth 3. Of 5 edges: 3, 2 and 0.
        found = lift(self.GRAPH, SMALL_DEPTH, [0, 1, 2, 3, 8])
        np.testing.assert_allclose(found[:3], [1, (3 / 5) / (4 / 10), (2 / 5) / (1 / 10)])
        assert np.isnan(found[3:]).all()
        assert mean_common_depth(self.GRAPH, SMALL_DEPTH) == pytest.approx((2 + 2 + 0 + 1 + 0) / 5)
        assert mean_pair_depth(SMALL_DEPTH) == pytest.approx((2 + 1 + 1 + 1) / 10)

    def test_by_number_of_neighbors(self):
        graph = np.column_stack([self.GRAPH, [CAT, CAT, PUG, CAT, SAW]])
        found = lift_by_k(graph, SMALL_DEPTH, [1, 2], [1, 2])
        # The second neighbors add cat, cat, pug and saw at depth 1: 7 of 10 edges; none at 2.
        np.testing.assert_allclose(found, [[1.5, 4.0], [(7 / 10) / 0.4, (2 / 10) / 0.1]])
        np.testing.assert_array_equal(found[1], lift(graph, SMALL_DEPTH, [1, 2]))

    def test_all_other_inputs_as_neighbors_give_1(self):
        graph = np.stack([np.delete(np.arange(5), i) for i in range(5)])
        np.testing.assert_allclose(lift(graph, SMALL_DEPTH, [0, 1, 2]), 1)

    def test_several_inputs_a_class(self):
        # Two pugs, one husky, one saw. Pairs of unequal label: pug-husky 2, pug-saw 2, husky-saw 1.
        labels = np.array([PUG, PUG, HUSKY, SAW])
        graph = np.array([[2], [2], [0], [0]])
        np.testing.assert_allclose(lift(graph, SMALL_DEPTH, [2], labels), (3 / 4) / (2 / 5))
        assert mean_common_depth(graph, SMALL_DEPTH, labels) == pytest.approx(6 / 4)
        assert mean_pair_depth(SMALL_DEPTH, labels) == pytest.approx(2 * 2 / 5)

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=30)
    def test_labels_equal_an_explicit_count_over_pairs(self, seed):
        rng = np.random.default_rng(seed)
        classes, n, k = 6, 18, 3
        depth = rng.integers(0, 5, (classes, classes))
        depth = np.maximum(depth, depth.T)
        labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
        graph = np.stack([rng.permutation(np.flatnonzero(labels != own))[:k] for own in labels])
        pairs = [
            depth[labels[i], labels[j]]
            for i in range(n)
            for j in range(n)
            if labels[i] != labels[j]
        ]
        edges = [depth[labels[i], labels[j]] for i in range(n) for j in graph[i]]
        for d, found in enumerate(lift(graph, depth, np.arange(6), labels)):
            base = np.mean([value >= d for value in pairs])
            if base == 0:
                assert np.isnan(found)
            else:
                assert found == pytest.approx(np.mean([value >= d for value in edges]) / base)

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=30)
    def test_does_not_depend_on_the_order_of_inputs(self, seed):
        rng = np.random.default_rng(seed)
        n = 12
        depth = rng.integers(0, 4, (n, n))
        depth = np.maximum(depth, depth.T)
        graph = random_neighbors(rng, n, 3)
        order = rng.permutation(n)
        rank = np.argsort(order)
        moved = lift(rank[graph[order]], depth[np.ix_(order, order)], [0, 1, 2, 3])
        np.testing.assert_allclose(moved, lift(graph, depth, [0, 1, 2, 3]))

    def test_random_neighbors_give_1(self):
        # Each edge is a uniform pair, so the expected lift is exactly 1; the mean over 400 graphs
        # is within four of its standard errors.
        rng = np.random.default_rng(0)
        depth = rng.integers(0, 6, (40, 40))
        depth = np.maximum(depth, depth.T)
        found = np.array([lift(random_neighbors(rng, 40, 5), depth, [1, 3, 5]) for _ in range(400)])
        error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
        assert (error[1:] > 0).all()
        assert (np.abs(found.mean(axis=0) - 1) <= 4 * error + 1e-12).all()

    @pytest.mark.parametrize(
        ("graph", "depth", "labels", "message"),
        [
            ([[1.0], [0.0]], np.zeros((2, 2), int), None, "integers are needed"),
            ([1, 0], np.zeros((2, 2), int), None, r"\(n, k\)"),
            ([[1], [2]], np.zeros((2, 2), int), None, "indices 0 to 1"),
            ([[1], [-1]], np.zeros((2, 2), int), None, "indices -1 to 1"),
            ([[1], [1]], np.zeros((2, 2), int), None, "input 1 is listed as its own"),
            ([[1], [0]], np.zeros((3, 3), int), None, "3 rows for 2 inputs"),
            ([[1], [0]], np.zeros((2, 3), int), None, "square"),
            ([[1], [0]], np.zeros((2, 2)), None, "float64; depths are integers"),
            ([[1], [0]], np.zeros((2, 2), int), [1, 1], "input 0 has a neighbor of its own label"),
            ([[1], [0]], np.zeros((2, 2), int), [0, 2], "labels holds 0 to 2"),
            ([[1], [0]], np.zeros((2, 2), int), [0], "labels has shape"),
        ],
    )
    def test_input_that_does_not_fit(self, graph, depth, labels, message):
        with pytest.raises(DataError, match=message):
            lift(graph, depth, [0], labels)

    def test_settings_out_of_range(self):
        with pytest.raises(DataError, match="k is 2; the graph allows 1 to 1"):
            lift_by_k(self.GRAPH, SMALL_DEPTH, [1], [1, 2])
        with pytest.raises(DataError, match="list of integers"):
            lift(self.GRAPH, SMALL_DEPTH, [0.5])
        with pytest.raises(DataError, match="permutations is 0"):
            shuffled_null(self.GRAPH, SMALL_DEPTH, mean_common_depth, permutations=0, seed=0)


def two_levels(groups: int, size: int) -> np.ndarray:
    """Depth matrix of groups of classes: 1 within a group, 0 across, 2 on the diagonal."""
    group = np.repeat(np.arange(groups), size)
    return (group[:, None] == group).astype(int) + np.eye(groups * size, dtype=int)


def p_value(null, observed):
    """One-sided, of a value among those of permuted labels."""
    return (1 + (null >= observed).sum(axis=0)) / (1 + len(null))


class TestShuffledNull:
    # Ten groups of six; everyone's neighbors are the next three of the group.
    DEPTH = two_levels(10, 6)
    GRAPH = np.array([[i // 6 * 6 + (i % 6 + s) % 6 for s in (1, 2, 3)] for i in range(60)])

    def lift_at_1(self, neighbors, depth, labels):
        return lift(neighbors, depth, [1], labels)

    def test_centers_on_1_and_the_planted_graph_stands_out(self):
        null = shuffled_null(self.GRAPH, self.DEPTH, self.lift_at_1, permutations=400, seed=1)
        observed = lift(self.GRAPH, self.DEPTH, [1])
        assert observed == pytest.approx(59 / 5)  # every edge against 5 of 59 pairs
        error = null.samples.std(ddof=1) / np.sqrt(400)
        assert abs(null.mean[0] - 1) <= 4 * error
        assert null.quantiles.shape == (2, 1)
        assert null.quantiles[0, 0] < 1 < null.quantiles[1, 0] < observed[0]
        assert p_value(null.samples, observed)[0] == pytest.approx(1 / 401)

    def test_level_of_the_test(self):
        # For random graphs p is uniform on {1/20, ..., 1}, ties aside, which only raise it: each of
        # 200 has p <= 0.1 with probability at most 0.1, and more than 34 do with less than 0.001.
        rng = np.random.default_rng(2)
        hits = 0
        for _ in range(200):
            graph = random_neighbors(rng, 60, 3)
            null = shuffled_null(
                graph, self.DEPTH, self.lift_at_1, permutations=19, seed=int(rng.integers(2**31))
            )
            hits += int(p_value(null.samples, lift(graph, self.DEPTH, [1]))[0] <= 0.1)
        assert 0 < hits <= 34

    def test_seed(self):
        def samples(seed):
            return shuffled_null(
                self.GRAPH, self.DEPTH, self.lift_at_1, permutations=5, seed=seed
            ).samples

        np.testing.assert_array_equal(samples(3), samples(3))
        assert not np.array_equal(samples(3), samples(4))

    def test_classes_are_permuted_as_wholes(self):
        labels = np.repeat(np.arange(5), 4)
        graph = (np.arange(20)[:, None] + [4, 8]) % 20
        seen = []

        def statistic(neighbors, depth, permuted):
            np.testing.assert_array_equal(neighbors, graph)
            seen.append(permuted)
            return lift(neighbors, depth, [1], permuted)  # refuses edges of equal label

        shuffled_null(graph, SMALL_DEPTH, statistic, permutations=20, seed=0, labels=labels)
        for permuted in seen:
            blocks = permuted.reshape(5, 4)
            assert (blocks == blocks[:, :1]).all()
            assert set(blocks[:, 0]) == set(range(5))
        assert any((permuted != labels).any() for permuted in seen)


def symmetric(rng: np.random.Generator, n: int) -> np.ndarray:
    matrix = rng.standard_normal((n, n))
    return matrix + matrix.T


def rank_correlation(first, second, permutations, seed=0):
    """Spearman's rho of two matrices, and that of each relabeling."""
    found, null = rank_correlations([first], [second], permutations=permutations, seed=seed)
    return found[0, 0], null[:, 0, 0]


class TestRankCorrelation:
    def test_equals_spearman_over_pairs(self):
        rng = np.random.default_rng(0)
        first = symmetric(rng, 30)
        second = np.round(first + symmetric(rng, 30))  # with ties
        pairs = np.triu_indices(30, k=1)
        found, _ = rank_correlation(first, second, 3)
        assert found == pytest.approx(spearmanr(first[pairs], second[pairs]).statistic)

    def test_the_diagonal_and_monotone_changes_do_not_matter(self):
        rng = np.random.default_rng(1)
        first, second = symmetric(rng, 12), symmetric(rng, 12)
        changed = np.exp(first)
        np.fill_diagonal(changed, np.nan)
        plain, other = (rank_correlation(m, second, 9) for m in (first, changed))
        assert other[0] == pytest.approx(plain[0])
        np.testing.assert_allclose(other[1], plain[1])

    def test_perfect_agreement(self):
        matrix = symmetric(np.random.default_rng(2), 15)
        found, null = rank_correlation(matrix, matrix, 99)
        assert found == pytest.approx(1)
        assert null.max() < found

    def test_null_relabels_rows_and_columns_together(self):
        rng = np.random.default_rng(5)
        first, second = symmetric(rng, 4), symmetric(rng, 4)
        pairs = np.triu_indices(4, k=1)
        exact = {
            round(spearmanr(first[pairs], second[np.ix_(p, p)][pairs]).statistic, 9)
            for p in map(list, itertools.permutations(range(4)))
        }
        _, null = rank_correlation(first, second, 400)
        # A relabeling is missed by all 400 draws with a probability of (23/24)^400 < 1e-7.
        assert {round(value, 9) + 0.0 for value in null} == exact

    def test_detects_a_weak_relation(self):
        rng = np.random.default_rng(3)
        hierarchy = symmetric(rng, 60)
        found, null = rank_correlation(0.3 * hierarchy + symmetric(rng, 60), hierarchy, 199)
        assert null.max() < found

    def test_level_of_the_test_when_pairs_are_dependent(self):
        # Rank-one similarities of independent node values: pairs share nodes, so that a test that
        # takes pairs as independent rejects far too often. Mantel's has level 1/10 exactly: of 200,
        # between 7 and 37 reject with a probability above 0.999.
        rng = np.random.default_rng(4)
        mantel = pairwise = 0
        pairs = np.triu_indices(15, k=1)
        for _ in range(200):
            a, b = np.exp(rng.standard_normal((2, 15)))
            first, second = np.outer(a, a), np.outer(b, b)
            found, null = rank_correlation(first, second, 19, int(rng.integers(2**31)))
            mantel += p_value(null, found) <= 0.1
            independent = spearmanr(first[pairs], second[pairs], alternative="greater")
            pairwise += independent.pvalue <= 0.1
        assert 7 <= mantel <= 37
        assert pairwise > 37

    @pytest.mark.parametrize(
        ("first", "second", "message"),
        [
            (np.eye(4), symmetric(np.random.default_rng(0), 4), "similarity is 0 for every pair"),
            (np.arange(16.0).reshape(4, 4), np.eye(4), "not finite and symmetric"),
            (np.full((4, 4), np.nan), np.eye(4), "not finite and symmetric"),
            (np.ones((4, 3)), np.eye(4), "n >= 3"),
            (
                symmetric(np.random.default_rng(0), 4),
                symmetric(np.random.default_rng(0), 5),
                "one row an input in both",
            ),
        ],
    )
    def test_matrices_that_do_not_fit(self, first, second, message):
        with pytest.raises(DataError, match=message):
            rank_correlation(first, second, 1)


@pytest.fixture(scope="session")
def imagenet(shared_data, nltk_data) -> Hierarchy:
    wnids = sorted(path.name for path in (shared_data / "imagenet_sample").iterdir())
    return Hierarchy.from_wnids(wnids, nltk_data)


@pytest.fixture
def wordnet(nltk_data, monkeypatch):
    """NLTK's own WordNet object."""
    import nltk.data
    from nltk.corpus import wordnet

    monkeypatch.setattr(nltk.data, "path", [str(nltk_data)])
    wordnet.ensure_loaded()
    return wordnet


@pytest.mark.data
class TestWordNet:
    def test_imagenet(self, imagenet):
        assert len(imagenet.wnids) == 1000
        tench = imagenet.classes.index("tench.n.01")
        assert imagenet.wnids[tench] == "n01440764"
        assert imagenet.names[tench] == "tench"
        assert imagenet.class_depth[tench] == 16
        [path] = imagenet.hypernym_paths[tench]
        assert (len(path), path[0], path[-1]) == (17, "entity.n.01", "tench.n.01")
        assert mean_pair_depth(imagenet.lowest_common_hypernym_depth) == pytest.approx(
            4.18, abs=0.005
        )
        assert sum(len(paths) > 1 for paths in imagenet.hypernym_paths) == 304
        assert len(imagenet.synsets) == 1860

    def test_words_of_two_classes_are_told_apart(self, imagenet):
        assert len(set(imagenet.names)) == 1000
        assert {name for name in imagenet.names if name.startswith(("crane", "maillot"))} == {
            "crane (wading bird)",
            "crane (lifting device)",
            "maillot (tights)",
            "maillot (swimsuit)",
        }

    def test_groups(self, imagenet):
        groups, names = coarse_groups(imagenet)
        counts = Counter(names[group] for group in groups)
        assert set(counts) == {name for name, _ in COARSE_GROUPS} | {"other"}
        assert counts["dogs"] == len(subtree_members(imagenet, "dog")) == 118
        assert counts["dogs"] + counts["other mammals"] == len(subtree_members(imagenet, "mammal"))
        assert counts["birds"] == 59
        assert counts["other"] == 17
        known = {synset for _, hypernyms in COARSE_GROUPS for synset in hypernyms}
        assert known - set(imagenet.synsets) == set()  # no misspelled synset in the table

    def test_dogs_are_neighbors_in_the_order(self, imagenet):
        permutation, position = hierarchy_order(imagenet)
        for name in ("dog", "bird", "snake", "animal"):
            inside = np.zeros(1000, bool)
            inside[subtree_members(imagenet, name)] = True
            ranks = np.flatnonzero(inside[permutation])
            # The walk follows one hypernym of several, so a subtree may lose a few members.
            assert np.median(np.diff(ranks)) == 1
            assert (np.diff(ranks) == 1).mean() > 0.95

    def test_agrees_with_nltk(self, imagenet, wordnet):
        rng = np.random.default_rng(0)
        single = 0
        for a, b in rng.integers(0, 1000, (150, 2)):
            first, second = (wordnet.synset(imagenet.classes[c]) for c in (a, b))
            common = set.intersection(
                *({h for path in s.hypernym_paths() for h in path} for s in (first, second))
            )
            assert imagenet.lowest_common_hypernym_depth[a, b] == max(h.max_depth() for h in common)
            assert imagenet.path_similarity[a, b] == pytest.approx(first.path_similarity(second))
            if len(first.hypernym_paths()) == len(second.hypernym_paths()) == 1:
                single += 1
                assert imagenet.wu_palmer[a, b] == pytest.approx(first.wup_similarity(second))
        assert single > 50

    def test_file_stands_in_for_wordnet(self, imagenet, tmp_path):
        path = tmp_path / "hierarchy.json"
        imagenet.to_file(path)
        again = Hierarchy.from_file(path)
        assert again == imagenet
        np.testing.assert_array_equal(
            again.lowest_common_hypernym_depth, imagenet.lowest_common_hypernym_depth
        )
        assert path.stat().st_size < 200_000

    def test_tiny_imagenet(self, shared_data, nltk_data):
        with zipfile.ZipFile(shared_data / "tiny-imagenet-200.zip") as archive:
            [member] = [name for name in archive.namelist() if name.endswith("/wnids.txt")]
            wnids = archive.read(member).decode().split()
        assert len(Hierarchy.from_wnids(wnids, nltk_data).names) == 200

    @pytest.mark.parametrize("wnid", ["n00000001", "n01440765", "n99999999"])
    def test_a_number_that_is_no_noun(self, nltk_data, wnid):
        with pytest.raises(DataError, match=f"{wnid}' is no noun .* correct"):
            Hierarchy.from_wnids(["n01440764", wnid], nltk_data)

    def test_a_class_given_twice(self, nltk_data):
        with pytest.raises(DataError, match="'n01440764' more than once"):
            Hierarchy.from_wnids(["n01440764", "n01440764"], nltk_data)

    def test_nltk_search_path_is_left_as_it_was(self, nltk_data):
        import nltk.data

        before = list(nltk.data.path)
        Hierarchy.from_wnids(["n01440764"], nltk_data)
        assert nltk.data.path == before


@pytest.mark.parametrize("name", ["tench", "n1440764", "n014407641", "01440764", "n0144076a", ""])
def test_a_name_that_is_no_wnid(name):
    with pytest.raises(DataError, match=f"'{name}' is not a wnid; name classes"):
        Hierarchy.from_wnids(["n01440764", name])


def test_no_wordnet_corpus(tmp_path):
    import nltk.data

    before = list(nltk.data.path)
    with pytest.raises(DataError, match="no WordNet corpus in .* NLTK_DATA") as caught:
        Hierarchy.from_wnids(["n01440764"], tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "nltk.downloader wordnet" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert nltk.data.path == before


@pytest.mark.parametrize("damage", ["empty", "truncated", "overwritten"])
def test_a_damaged_wordnet_corpus_is_one_line(tmp_path, damage):
    path = tmp_path / "corpora" / "wordnet.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("adj", "adv", "noun", "verb"):
            archive.writestr(f"wordnet/data.{name}", "  1 WordNet 3.0\n" * 500)
            archive.writestr(f"wordnet/index.{name}", "  1 a\n" * 500)
            archive.writestr(f"wordnet/{name}.exc", "")
        archive.writestr("wordnet/lexnames", "00\tadj.all\t3\n" * 500)
    content = bytearray(path.read_bytes())
    if damage == "overwritten":
        content[:8000] = bytes(8000)
    path.write_bytes({"empty": b"", "truncated": content[:2000]}.get(damage, content))
    with pytest.raises(
        DataError, match="is damaged .*; remove corpora/wordnet.zip and run"
    ) as caught:
        Hierarchy.from_wnids(["n01440764"], tmp_path)
    assert "\n" not in str(caught.value)


def test_groups_at_a_depth_are_hypernyms_there_or_classes_that_end_above():
    groups, names = groups_at_depth(SMALL, 1)
    assert [names[g] for g in groups] == ["animal"] * 3 + ["tool"] * 2
    groups, names = groups_at_depth(SMALL, 2)
    assert [names[g] for g in groups] == ["dog", "dog", "cat", "saw", "axe"]
    assert set(groups_at_depth(SMALL, 0)[0]) == {0}
    assert len(set(groups_at_depth(SMALL, 9)[0])) == 5


def test_groups_of_a_class_with_two_hypernyms_follow_the_deeper_one():
    groups, names = groups_at_depth(DAG, 1)
    assert [names[g] for g in groups] == ["flier", "flier", "mammal"]
    with pytest.raises(DataError, match="depth is -1"):
        groups_at_depth(DAG, -1)


def test_the_lowest_common_hypernym_by_name():
    assert lowest_common_hypernym(SMALL, PUG, HUSKY) == "dog"
    assert lowest_common_hypernym(SMALL, PUG, CAT) == "animal"
    assert lowest_common_hypernym(SMALL, SAW, CAT) == "thing"
    assert lowest_common_hypernym(SMALL, SAW, SAW) == "saw"
    assert lowest_common_hypernym(DAG, 0, 1) == "winged"


def test_region_lift_by_hand():
    # Region of inputs 0, 1, 2 of 5. Of their 6 edges, 4 stay inside; by chance half of them do:
    # each has 4 others, 2 of them in the region.
    neighbors = np.array([[1, 2], [0, 3], [1, 4], [0, 4], [3, 0]])
    members = np.array([True, True, True, False, False])
    assert region_lift(neighbors, members) == pytest.approx((4 / 6) / (2 / 4))
    # The other region: edges 3 -> 4 and 4 -> 3 of four; by chance one of four others.
    both = np.column_stack([members, ~members])
    np.testing.assert_allclose(region_lift(neighbors, both), [4 / 3, (2 / 4) / (1 / 4)])


def test_region_lift_leaves_out_pairs_of_equal_label():
    # Two inputs of class 0, one each of 1, 2, 3; the region is classes 0 and 1.
    labels = np.array([0, 0, 1, 2, 3])
    members = labels <= 1
    neighbors = np.array([[2], [3], [0], [0], [3]])
    # Ordered pairs of unequal label from the region: 3 + 3 + 4, of them inside 1 + 1 + 2.
    assert region_lift(neighbors, members, labels) == pytest.approx((2 / 3) / (4 / 10))


def test_region_lift_of_one_class_is_undefined_and_of_all_is_one():
    neighbors = np.array([[1], [2], [0]])
    found = region_lift(neighbors, [[True, True], [False, True], [False, True]])
    assert np.isnan(found[0]) and found[1] == 1
    with pytest.raises(DataError, match="members has shape"):
        region_lift(neighbors, [True, False])


def test_rank_correlations_are_those_of_each_pair_of_matrices_under_the_same_relabelings():
    rng = np.random.default_rng(0)
    first, second = ([m + m.T for m in rng.normal(size=(k, 6, 6))] for k in (3, 2))
    found, samples = rank_correlations(first, second, permutations=4, seed=1)
    assert found.shape == (3, 2) and samples.shape == (4, 3, 2)
    pairs = np.triu_indices(6, 1)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            assert found[i, j] == pytest.approx(spearmanr(a[pairs], b[pairs]).statistic)
            np.testing.assert_allclose(samples[:, i, j], rank_correlation(a, b, 4, seed=1)[1])
    assert rank_correlations(first, second)[1].shape == (0, 3, 2)


def test_inputs_of_one_class_trade_places_together():
    """A kernel that knows the classes alone does not follow a hierarchy of them drawn at random.

    Relabeled input by input it seems to: inputs of a class are not independent. Each of the 12
    hierarchies is beyond 97.5 % of a right null with probability 1/40.
    """
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), rng.integers(3, 7, 20))
    within = np.equal.outer(labels, labels)
    beyond = {"inputs": 0, "classes": 0}
    for seed in range(12):
        of_classes = symmetric(rng, 20)[np.ix_(labels, labels)]
        of_classes[within] = of_classes.max() + 1
        noisy = rng.normal(size=within.shape)
        kernel = 10 * within + symmetric(rng, 20)[np.ix_(labels, labels)] + 0.01 * (noisy + noisy.T)
        for name, groups in (("inputs", None), ("classes", labels)):
            ranks = MirroredRanks.of([of_classes], groups)
            found, null = rank_correlations([kernel], ranks, permutations=199, seed=seed)
            beyond[name] += bool(found[0, 0] > np.quantile(null, 0.975))
    assert beyond["inputs"] >= 10
    assert beyond["classes"] <= 3  # more has a probability of 2e-4


def test_groups_of_one_are_no_groups():
    rng = np.random.default_rng(1)
    first, second = symmetric(rng, 9), symmetric(rng, 9)
    plain = rank_correlations([first], [second], permutations=5, seed=2)
    own = MirroredRanks.of([second], rng.permutation(9))
    grouped = rank_correlations([first], own, permutations=5, seed=2)
    assert grouped[0] == pytest.approx(plain[0], abs=1e-12)
    assert len(np.unique(grouped[1])) == 5


def test_ranks_over_groups_are_spearmans_of_the_pairs_between_them():
    rng = np.random.default_rng(3)
    labels = np.array([0, 0, 1, 2, 2, 2])
    second = symmetric(rng, 3)[np.ix_(labels, labels)]
    first = symmetric(rng, 6)
    pairs = np.triu(labels[:, None] != labels, k=1)
    found, null = rank_correlations(
        [first], MirroredRanks.of([second], labels), permutations=30, seed=0
    )
    assert found[0, 0] == pytest.approx(spearmanr(first[pairs], second[pairs])[0])
    assert (np.abs(null) <= 1 + 1e-12).all() and len(np.unique(null.round(9))) > 3
    with pytest.raises(DataError, match="all nodes are of one group"):
        MirroredRanks.of([second], np.zeros(6))
