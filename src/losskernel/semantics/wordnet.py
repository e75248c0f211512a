"""The WordNet hierarchy above the classes.

Depth. WordNet's nouns form a directed acyclic graph, not a tree: 304 of the 1,000 ILSVRC classes
have more than one path to the root. The *depth* of a synset is here the number of steps on its
*longest* hypernym path from the root, ``entity.n.01``, which has depth 0 (NLTK's ``max_depth``).
The longest path and not the shortest, because a synset is then always deeper than each of its
hypernyms, so that "the deepest common hypernym" is also a lowest one and a class is the only
lowest common hypernym of itself. The *lowest common hypernym* (LCH) of two classes is their
deepest common ancestor; a class counts as its own ancestor.

Only `Hierarchy.from_wnids` reads WordNet; everything else is arithmetic on its result.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from losskernel.errors import DataError, needs
from losskernel.files import atomic_path

WORDNET_VERSION = "3.0"  # ImageNet's wnids are noun offsets of this version and of no other

COARSE_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    # group                        hypernyms; the first group that matches a class wins
    ("dogs", ("dog.n.01",)),
    ("other mammals", ("mammal.n.01",)),
    ("birds", ("bird.n.01",)),
    ("reptiles and amphibians", ("reptile.n.01", "amphibian.n.03")),
    ("fish", ("fish.n.01",)),
    ("invertebrates", ("invertebrate.n.01",)),
    (
        "plants, fungi and food",
        ("plant.n.02", "plant_part.n.01", "fungus.n.01", "food.n.01", "food.n.02"),
    ),
    ("clothing", ("clothing.n.01", "footwear.n.01", "footwear.n.02")),
    ("musical instruments", ("musical_instrument.n.01",)),
    ("vehicles", ("vehicle.n.01", "public_transport.n.01")),
    ("structures and furniture", ("structure.n.01", "furniture.n.01")),
    ("devices and tools", ("device.n.01", "implement.n.01", "equipment.n.01")),
    ("other artifacts", ("artifact.n.01",)),
)
_REMEDY = (
    "run `python -m nltk.downloader wordnet`, or set NLTK_DATA to the folder that holds "
    "corpora/wordnet.zip"
)
OTHER_GROUP = "other"  # landscapes, people and the few abstractions


@dataclass(frozen=True)
class Hierarchy:
    """The part of a hypernym graph that lies above a set of C classes.

    Attributes:
        wnids: class identifiers, length C, in the order of every matrix below.
        names: human-readable class names, length C, unique.
        classes: synset name of each class (``tench.n.01``), length C.
        hypernyms: for each synset that is a class or above one, its direct hypernyms; the root
            has none.

    Raises:
        DataError: on construction, if lengths differ, a class occurs twice, a synset is missing
            from ``hypernyms``, or the graph has a cycle or other than one root.
    """

    wnids: tuple[str, ...]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    hypernyms: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        if not len(self.wnids) == len(self.names) == len(self.classes) > 0:
            raise DataError(
                f"hierarchy has {len(self.wnids)} wnids, {len(self.names)} names and "
                f"{len(self.classes)} classes; give one of each for every class, at least one"
            )
        for field in ("wnids", "names", "classes"):
            repeated = [value for value, n in Counter(getattr(self, field)).items() if n > 1]
            if repeated:
                raise DataError(
                    f"hierarchy {field} lists {repeated[0]!r} more than once; list each class once"
                )
        mentioned = {h for parents in self.hypernyms.values() for h in parents} | set(self.classes)
        missing = sorted(mentioned - self.hypernyms.keys())
        if missing:
            raise DataError(
                f"hierarchy hypernyms lacks synset {missing[0]!r}; add it with its own hypernyms"
            )
        roots = sorted(name for name, parents in self.hypernyms.items() if not parents)
        if len(roots) != 1:
            raise DataError(
                f"hierarchy has {len(roots)} roots ({', '.join(roots[:3])}); one is needed, "
                "so that any two classes have a common hypernym"
            )
        self._depth_of  # noqa: B018  (raises on a cycle)

    @classmethod
    def from_wnids(
        cls, wnids: Sequence[str], nltk_data: str | os.PathLike[str] | None = None
    ) -> Hierarchy:
        """Read the hierarchy above ``wnids`` from WordNet 3.0 through NLTK.

        Args:
            wnids: C distinct ImageNet identifiers, ``n`` and an eight-digit noun offset.
            nltk_data: folder that holds ``corpora/wordnet.zip`` (or it unpacked); by default NLTK's
                own search path, which begins with the environment variable ``NLTK_DATA``.

        Raises:
            DataError: a value is not a wnid, not a noun synset of WordNet 3.0, or repeated; there
                is no WordNet corpus, or one of another version.
        """
        wnids = tuple(wnids)
        for wnid in wnids:
            if not re.fullmatch("n[0-9]{8}", str(wnid)):
                raise DataError(
                    f"class name {wnid!r} is not a wnid; name classes (image folders) by wnid, "
                    "'n' and eight digits such as n01440764, to place them in WordNet"
                )
        with _wordnet(None if nltk_data is None else os.fspath(nltk_data)) as wordnet:
            synsets = [_synset(wordnet, wnid) for wnid in wnids]
            hypernyms: dict[str, tuple[str, ...]] = {}
            pending = list(synsets)
            while pending:
                synset = pending.pop()
                if synset.name() not in hypernyms:
                    above = _direct_hypernyms(synset)
                    hypernyms[synset.name()] = tuple(sorted(parent.name() for parent in above))
                    pending += above
        return cls(
            wnids=wnids,
            names=_distinct_names(synsets),
            classes=tuple(synset.name() for synset in synsets),
            hypernyms=dict(sorted(hypernyms.items())),
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Hierarchy:
        """Read a hierarchy that `to_file` wrote; needs no WordNet.

        Raises:
            DataError: there is no such file, or it is not a hierarchy.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(
                wnids=tuple(content["wnids"]),
                names=tuple(content["names"]),
                classes=tuple(content["classes"]),
                hypernyms={name: tuple(above) for name, above in content["hypernyms"].items()},
            )
        except OSError as error:
            raise DataError(
                f"{os.fspath(path)}: hierarchy cannot be read ({error.strerror}); "
                "make it with Hierarchy.to_file"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, DataError) as error:
            raise DataError(
                f"{os.fspath(path)}: not a hierarchy ({type(error).__name__}: {error}); "
                "make it again with Hierarchy.to_file"
            ) from error

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Write the hierarchy as JSON; ``path`` holds the whole of it or is left as it was.

        Raises:
            LossKernelError: the file cannot be written.
        """
        content = {
            "wordnet": WORDNET_VERSION,
            "wnids": self.wnids,
            "names": self.names,
            "classes": self.classes,
            "hypernyms": self.hypernyms,
        }
        with atomic_path(path) as partial:
            partial.write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")

    @cached_property
    def _depth_of(self) -> dict[str, int]:
        depth: dict[str, int] = {}
        pending = set(self.hypernyms)
        while pending:
            ready = {name for name in pending if all(h in depth for h in self.hypernyms[name])}
            if not ready:
                raise DataError(
                    f"hierarchy hypernyms has a cycle through or above {min(pending)!r}; "
                    "a hypernym graph has none"
                )
            for name in ready:
                depth[name] = max((depth[h] + 1 for h in self.hypernyms[name]), default=0)
            pending -= ready
        return depth

    @cached_property
    def synsets(self) -> tuple[str, ...]:
        """All S synset names, root first, each after its hypernyms (by depth, then name)."""
        return tuple(sorted(self.hypernyms, key=lambda name: (self._depth_of[name], name)))

    @cached_property
    def synset_depth(self) -> NDArray[np.int64]:
        """(S,) depth of each of `synsets`, in steps from the root."""
        return _frozen(np.array([self._depth_of[name] for name in self.synsets]))

    @cached_property
    def class_depth(self) -> NDArray[np.int64]:
        """(C,) depth of each class, in steps from the root."""
        return _frozen(np.array([self._depth_of[name] for name in self.classes]))

    @cached_property
    def hypernym_paths(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """For each class all its paths of synset names from the root to the class itself."""
        paths: dict[str, tuple[tuple[str, ...], ...]] = {}
        for name in self.synsets:
            above = [path for h in self.hypernyms[name] for path in paths[h]]
            paths[name] = tuple((*path, name) for path in above) or ((name,),)
        return tuple(paths[name] for name in self.classes)

    @cached_property
    def ancestors(self) -> tuple[frozenset[str], ...]:
        """For each class the names of its hypernyms at any distance, itself included."""
        names = np.array(self.synsets, dtype=object)
        return tuple(frozenset(names[row]) for row in np.isfinite(self._steps_up))

    @cached_property
    def _steps_up(self) -> NDArray[np.float64]:
        """(C, S) fewest steps from a class up to a synset, infinite if it is no ancestor."""
        index = {name: s for s, name in enumerate(self.synsets)}
        steps = np.full((len(self.classes), len(self.synsets)), np.inf)
        steps[np.arange(len(self.classes)), [index[name] for name in self.classes]] = 0
        for s in reversed(range(len(self.synsets))):  # a synset is complete before its hypernyms
            for hypernym in self.hypernyms[self.synsets[s]]:
                above = index[hypernym]
                steps[:, above] = np.minimum(steps[:, above], steps[:, s] + 1)
        return _frozen(steps)

    @cached_property
    def lowest_common_hypernym_depth(self) -> NDArray[np.int64]:
        """(C, C) depth of the lowest common hypernym, in steps from the root; see the module.

        The diagonal holds `class_depth`.
        """
        depth = np.zeros((len(self.classes),) * 2, dtype=np.int64)
        for s, synset_depth in enumerate(self.synset_depth):  # ascending: deeper ones overwrite
            below = np.flatnonzero(np.isfinite(self._steps_up[:, s]))
            depth[np.ix_(below, below)] = synset_depth
        return _frozen(depth)

    @cached_property
    def path_similarity(self) -> NDArray[np.float64]:
        """(C, C) of 1/(1 + length of the shortest path over a common hypernym), in (0, 1].

        The edge-counting measure of Rada et al. 1989; equal to NLTK's ``path_similarity``.
        """
        shortest = np.full((len(self.classes),) * 2, np.inf)
        for s in range(len(self.synsets)):
            below = np.flatnonzero(np.isfinite(self._steps_up[:, s]))
            steps = self._steps_up[below, s]
            block = np.ix_(below, below)
            shortest[block] = np.minimum(shortest[block], steps[:, None] + steps[None, :])
        return _frozen(1.0 / (1.0 + shortest))

    @cached_property
    def wu_palmer(self) -> NDArray[np.float64]:
        """(C, C) Wu-Palmer similarity 2 N(lch(a, b)) / (N(a) + N(b)), in (0, 1].

        N = depth + 1 is the number of synsets on the longest path from the root (after Wu and
        Palmer 1994, who define it on a tree). NLTK's ``wup_similarity`` mixes shortest and longest
        paths; the two agree for classes with one hypernym path.
        """
        synsets = self.class_depth + 1
        common = self.lowest_common_hypernym_depth + 1
        return _frozen(2.0 * common / (synsets[:, None] + synsets[None, :]))


def subtree_members(hierarchy: Hierarchy, hypernym: str) -> NDArray[np.int64]:
    """Indices of the classes that are ``hypernym`` or lie under it, ascending.

    Args:
        hypernym: a synset name (``dog.n.01``) or, where only one synset of the hierarchy bears
            it, the bare word (``dog``).

    Raises:
        DataError: the hierarchy has no such synset, or several.
    """
    matches = [
        name for name in hierarchy.synsets if hypernym in (name, name.rsplit(".", maxsplit=2)[0])
    ]
    if not matches:
        close = difflib.get_close_matches(hypernym, hierarchy.synsets, n=3)
        hint = f"the nearest are {', '.join(close)}" if close else "see Hierarchy.synsets"
        raise DataError(f"hypernym {hypernym!r} is not in the hierarchy; {hint}")
    if len(matches) > 1:
        raise DataError(f"hypernym {hypernym!r} is ambiguous; choose one of {', '.join(matches)}")
    return np.flatnonzero([matches[0] in ancestors for ancestors in hierarchy.ancestors])


def groups_at_depth(hierarchy: Hierarchy, depth: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The partition of the classes by their hypernym at one depth.

    Taken on the tree in which each synset keeps its deepest hypernym, as in `hierarchy_order`: a
    path of it has one synset at every depth, and a class one path. A class that is not as deep is a
    group of its own.

    Args:
        depth: in steps from the root, at least 0.

    Returns:
        (C,) group of each class, and the synset name of each group, sorted.

    Raises:
        DataError: the depth is negative.
    """
    if depth < 0:
        raise DataError(f"depth is {depth}; the root has depth 0, and nothing lies above it")
    names = []
    for name in hierarchy.classes:
        while hierarchy._depth_of[name] > depth:
            name = _deepest_hypernym(hierarchy, name)
        names.append(name)
    present, groups = np.unique(names, return_inverse=True)
    return groups, tuple(present.tolist())


def lowest_common_hypernym(hierarchy: Hierarchy, first: int, second: int) -> str:
    """Synset name of the lowest common hypernym of two classes, the first by name among equals."""
    common = hierarchy.ancestors[first] & hierarchy.ancestors[second]
    return min(common, key=lambda name: (-hierarchy._depth_of[name], name))


def _deepest_hypernym(hierarchy: Hierarchy, name: str) -> str:
    """The deepest direct hypernym of a synset, the first by name among equals."""
    return min(hierarchy.hypernyms[name], key=lambda h: (-hierarchy._depth_of[h], h))


def coarse_groups(hierarchy: Hierarchy) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Sort the classes into the groups of `COARSE_GROUPS`, for coloring.

    Returns:
        (C,) group index of each class, and the group names (a last one for classes of no group).
    """
    groups = np.full(len(hierarchy.classes), len(COARSE_GROUPS))
    for c, ancestors in enumerate(hierarchy.ancestors):
        for group, (_, hypernyms) in enumerate(COARSE_GROUPS):
            if not ancestors.isdisjoint(hypernyms):
                groups[c] = group
                break
    return groups, (*(name for name, _ in COARSE_GROUPS), OTHER_GROUP)


def hierarchy_order(hierarchy: Hierarchy) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Order of the classes in a depth-first walk of the hierarchy, and their place in it.

    For the walk each synset keeps one hypernym, its deepest (the first by name among equals), so
    that the graph is a tree; the subtrees of a synset are visited in the order of the smallest
    wnid in each, a class before what lies under it. Classes of one subtree of that tree are
    contiguous.

    Returns:
        (C,) permutation: class ``permutation[r]`` comes at rank r; and (C,) position of each class
        in [0, 1], rank/(C - 1) (0 for a single class).
    """
    smallest = {name: "" for name in hierarchy.synsets}
    smallest.update(zip(hierarchy.classes, hierarchy.wnids, strict=True))
    children: dict[str, list[str]] = {name: [] for name in hierarchy.synsets}
    for name in reversed(hierarchy.synsets):  # hyponyms before hypernyms
        below = [wnid for child in children[name] if (wnid := smallest[child])]
        smallest[name] = min([wnid for wnid in (smallest[name], *below) if wnid], default="")
        children[name].sort(key=smallest.__getitem__)
        if hierarchy.hypernyms[name]:
            children[_deepest_hypernym(hierarchy, name)].append(name)
    class_index = {name: c for c, name in enumerate(hierarchy.classes)}
    order: list[int] = []
    pending = [hierarchy.synsets[0]]
    while pending:
        name = pending.pop()
        if name in class_index:
            order.append(class_index[name])
        pending += reversed(children[name])
    permutation = np.array(order)
    position = np.empty(len(order))
    position[permutation] = np.arange(len(order)) / max(len(order) - 1, 1)
    return permutation, position


def _frozen(array: NDArray) -> NDArray:
    """The array, read-only: a cached property hands the same one to every caller."""
    array.flags.writeable = False
    return array


@contextmanager
def _wordnet(nltk_data: str | None) -> Iterator:
    """NLTK's WordNet reader for as long as ``nltk_data`` is on NLTK's path."""
    with needs("vision"):
        import nltk.data  # here, as only this function needs NLTK and it is slow to import

    search_path = list(nltk.data.path)
    if nltk_data is not None:
        # NLTK reads archives only below folders on its path: find(..., paths=...) is not enough.
        nltk.data.path[:] = [nltk_data]
    try:
        yield _wordnet_reader(tuple(nltk.data.path))
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError, AssertionError) as error:
        said = str(error) or type(error).__name__
        raise DataError(
            f"the WordNet corpus in {os.pathsep.join(nltk.data.path)} is damaged ({said}); remove "
            f"corpora/wordnet.zip and {_REMEDY}"
        ) from error
    finally:
        nltk.data.path[:] = search_path


@lru_cache(maxsize=1)
def _wordnet_reader(search_path: tuple[str, ...]):
    """WordNet from NLTK's current path, which is ``search_path``; cached, as it takes seconds."""
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    root = None
    for resource in ("corpora/wordnet/", "corpora/wordnet.zip/wordnet/"):
        try:
            root = nltk.data.find(resource)
            break
        except LookupError:
            continue
    if root is None:
        raise DataError(f"no WordNet corpus in {os.pathsep.join(search_path)}; {_REMEDY}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The multilingual functions are not available")
        reader = WordNetCorpusReader(root, None)
    if reader.get_version() != WORDNET_VERSION:
        raise DataError(
            f"{root} is WordNet {reader.get_version()}, wnids need {WORDNET_VERSION}; {_REMEDY}"
        )
    return reader


def _synset(wordnet, wnid: str):
    """The synset of a wnid."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No WordNet synset found")
        synset = wordnet.synset_from_pos_and_offset("n", int(wnid[1:]))
    if synset is None:
        raise DataError(
            f"wnid {wnid!r} is no noun of WordNet {WORDNET_VERSION}; "
            "correct the class (folder) name"
        )
    return synset


def _direct_hypernyms(synset) -> list:
    return synset.hypernyms() + synset.instance_hypernyms()


def _distinct_names(synsets: Sequence) -> tuple[str, ...]:
    """First lemma of each synset; where several share one, a hypernym's follows in parentheses."""
    names = [_readable(synset) for synset in synsets]
    shared = Counter(names)
    names = [
        f"{name} ({_readable(_direct_hypernyms(synset)[0])})" if shared[name] > 1 else name
        for name, synset in zip(names, synsets, strict=True)
    ]
    shared = Counter(names)  # same word, same hypernym: WordNet's own name tells them apart
    return tuple(
        synset.name() if shared[name] > 1 else name
        for name, synset in zip(names, synsets, strict=True)
    )


def _readable(synset) -> str:
    return synset.lemma_names()[0].replace("_", " ")
