import itertools
import json
import zipfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from losskernel.errors import DataError
from losskernel.semantics.lift import (
    lift,
    lift_by_k,
    mean_pair_depth,
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
    classes = draw(st.lists(st.sampled_from(sorted(hypernyms)), min_size=1, unique=True))
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


def count_paths(hierarchy: Hierarchy, name: str) -> int:
    return sum(count_paths(hierarchy, h) for h in hierarchy.hypernyms[name]) or 1


class TestHierarchy:
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
                nodes = sum(longest_path(hierarchy, hierarchy.classes[c]) + 1 for c in (a, b))
                assert hierarchy.wu_palmer[a, b] == pytest.approx(2 * (depth + 1) / nodes)
            paths = hierarchy.hypernym_paths[a]
            assert len(set(paths)) == len(paths) == count_paths(hierarchy, hierarchy.classes[a])
            assert all(h in hierarchy.hypernyms[s] for p in paths for h, s in itertools.pairwise(p))
            assert {(p[0], p[-1]) for p in paths} == {("s0", hierarchy.classes[a])}
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

    @pytest.mark.parametrize("damage", ["truncate", "key", "list", "cycle", "absent"])
    def test_a_damaged_or_missing_file_is_named(self, tmp_path, damage):
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
        if damage == "absent":
            path.unlink()
        message = r"hierarchy\.json: (not a hierarchy|hierarchy cannot be read)"
        with pytest.raises(DataError, match=message) as caught:
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

    @given(hierarchies())  # of one class too
    def test_a_permutation_and_its_inverse(self, hierarchy):
        permutation, position = hierarchy_order(hierarchy)
        n = len(hierarchy.classes)
        np.testing.assert_array_equal(np.sort(permutation), np.arange(n))
        np.testing.assert_allclose(position[permutation], np.linspace(0, 1, n))

    def test_the_deepest_hypernym_decides(self):
        shuffled = hierarchy_of(dict(DAG.hypernyms), ["cat", "bird", "bat"])
        permutation, _ = hierarchy_order(shuffled)
        assert [shuffled.classes[c] for c in permutation] == ["cat", "bird", "bat"]


class TestLift:
    # pug -> husky, husky -> pug, cat -> saw, saw -> axe, axe -> pug
    GRAPH = np.array([[HUSKY], [PUG], [SAW], [AXE], [PUG]])

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
        found = lift_by_k(graph, depth, np.arange(6), [1, 3], labels)
        for few, row in zip((1, 3), found, strict=True):
            edges = [depth[labels[i], labels[j]] for i in range(n) for j in graph[i, :few]]
            for d, value in enumerate(row):
                base = np.mean([at >= d for at in pairs])
                expected = np.mean([at >= d for at in edges]) / base if base else np.nan
                assert value == pytest.approx(expected, nan_ok=True)
        np.testing.assert_array_equal(lift(graph, depth, np.arange(6), labels), found[1])
        assert mean_pair_depth(depth, labels) == pytest.approx(np.mean(pairs))
        each = depth[np.ix_(labels, labels)]  # without labels every input is a class of its own
        apart = each[~np.eye(n, dtype=bool)]
        assert mean_pair_depth(each) == pytest.approx(apart.mean())
        np.testing.assert_array_equal(
            lift(graph, each, np.arange(6)), lift(graph, each, np.arange(6), np.arange(n))
        )

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
            shuffled_null(self.GRAPH, SMALL_DEPTH, lift, permutations=0, seed=0)


def two_levels(groups: int, size: int) -> np.ndarray:
    """Depth matrix of groups of classes: 1 within a group, 0 across, 2 on the diagonal."""
    group = np.repeat(np.arange(groups), size)
    return (group[:, None] == group).astype(int) + np.eye(groups * size, dtype=int)


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
        assert abs(null.samples.mean() - 1) <= 4 * error
        assert null.quantiles.shape == (2, 1)
        assert null.quantiles[0, 0] < 1 < null.quantiles[1, 0] < observed[0]
        assert null.samples.max() < observed[0]
        few = (
            shuffled_null(self.GRAPH, self.DEPTH, self.lift_at_1, permutations=5, seed=seed).samples
            for seed in (1, 1, 2)
        )
        first, again, other = few
        assert np.array_equal(first, again) and not np.array_equal(first, other)

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

    def test_tiny_imagenet(self, shared_data, nltk_data):
        import nltk.data

        before = list(nltk.data.path)
        with zipfile.ZipFile(shared_data / "tiny-imagenet-200.zip") as archive:
            [member] = [name for name in archive.namelist() if name.endswith("/wnids.txt")]
            wnids = archive.read(member).decode().split()
        assert len(Hierarchy.from_wnids(wnids, nltk_data).names) == 200
        assert nltk.data.path == before

    @pytest.mark.parametrize("wnid", ["n00000001", "n01440765", "n99999999"])
    def test_a_number_that_is_no_noun(self, nltk_data, wnid):
        with pytest.raises(DataError, match=f"{wnid}' is no noun .* correct"):
            Hierarchy.from_wnids(["n01440764", wnid], nltk_data)


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


def test_groups_at_a_depth_are_deepest_hypernyms_there_or_classes_that_end_above():
    for tree, depth, expected in (
        (SMALL, 0, ["thing"] * 5),
        (SMALL, 1, ["animal"] * 3 + ["tool"] * 2),
        (SMALL, 2, ["dog", "dog", "cat", "saw", "axe"]),
        (SMALL, 9, SMALL.classes),
        (DAG, 1, ["flier", "flier", "mammal"]),
    ):
        groups, names = groups_at_depth(tree, depth)
        assert [names[g] for g in groups] == list(expected)
    with pytest.raises(DataError, match="depth is -1"):
        groups_at_depth(DAG, -1)


def test_the_lowest_common_hypernym_by_name():
    assert lowest_common_hypernym(SMALL, PUG, HUSKY) == "dog"
    assert lowest_common_hypernym(SMALL, PUG, CAT) == "animal"
    assert lowest_common_hypernym(SMALL, SAW, CAT) == "thing"
    assert lowest_common_hypernym(SMALL, SAW, SAW) == "saw"
    assert lowest_common_hypernym(DAG, 0, 1) == "winged"


@pytest.mark.parametrize("labels", [None, [0, 0, 1, 2, 3]])
def test_region_lift_is_a_count_over_edges_and_pairs(labels):
    neighbors = np.array([[2, 4], [3, 2], [0, 1], [0, 4], [3, 2]])
    own = np.arange(5) if labels is None else np.array(labels)
    regions = np.stack([own <= 1, own >= 2, own >= 0, own == 3])
    pairs = [(i, j) for i in range(5) for j in range(5) if own[i] != own[j]]
    edges = [(i, j) for i in range(5) for j in neighbors[i]]
    found = region_lift(neighbors, regions.T, labels)
    for region, value in zip(regions[:3], found, strict=False):
        inside = [np.mean([region[j] for i, j in of if region[i]]) for of in (edges, pairs)]
        assert value == pytest.approx(inside[0] / inside[1])
        assert region_lift(neighbors, region, labels) == value
    assert np.isnan(found[3])  # of one class
    with pytest.raises(DataError, match="members has shape"):
        region_lift(neighbors, [True, False])
