"""The statistics of the kernel of 10,000 images, on inputs whose structure is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from losskernel.experiments.scale import analyze, sample
from losskernel.gradients.rows import HALVES
from losskernel.kernel.covariance import slices
from losskernel.semantics.lift import lift
from losskernel.semantics.wordnet import Hierarchy

REFERENCE = Path(__file__).parents[2] / "results/reference"
TREE = Hierarchy.from_file(REFERENCE / "imagenet/hierarchy.json")
DEPTH = TREE.lowest_common_hypernym_depth
LABELS = np.repeat(np.arange(0, 1000, 25), 6)


def graph(rng, k=5):
    others = [np.flatnonzero(LABELS != label) for label in LABELS]
    return np.array([rng.choice(choice, k, replace=False) for choice in others])


def test_lift_without_some_classes():
    edges, depths = graph(np.random.default_rng(0)), np.arange(1, 8)
    everyone = np.ones(len(LABELS), bool)
    whole = analyze._lift_among(edges, DEPTH, depths, LABELS, everyone)
    np.testing.assert_allclose(whole, lift(edges, DEPTH, depths, LABELS))
    # What the left-out classes have to do with each other does not matter.
    chosen = ~np.isin(LABELS, np.unique(LABELS)[:10])
    moved = edges.copy()
    moved[~chosen] = np.flatnonzero(~chosen)[0]
    part, same = (analyze._lift_among(at, DEPTH, depths, LABELS, chosen) for at in (edges, moved))
    np.testing.assert_array_equal(part, same)
    assert not np.allclose(part, whole)


def within(rng, noise, classes=60, size=12):
    """Images whose R within a class is the cosine of their features, and noise."""
    features = rng.standard_normal((classes, size, 8))
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    above = np.triu_indices(size, 1)
    r = (features @ features.swapaxes(1, 2))[:, *above]
    halves = [r + noise * rng.standard_normal(r.shape) for _ in range(2)]
    return {
        "within": np.array([sum(halves) / 2, *halves]),
        "features": features.reshape(-1, 8),
        "colors": rng.standard_normal((classes * size, 3)),
        "initial_losses": rng.exponential(size=classes * size),
    }


@pytest.mark.parametrize("noise", [0.01, 0.4])
def test_likeness_within_classes(noise):
    data = within(np.random.default_rng(1), noise)
    table = analyze._within(data, {"permutations": 99, "seed": 0}).set_index("likeness")
    features, color = table.loc["features"], table.loc["color"]
    assert features.value > features.null_high
    # R is that cosine but for noise, and corrected for it again, within its error.
    assert features.corrected == pytest.approx(1, abs=0.05)
    assert (features.value > 0.99) == (noise < 0.1)
    assert abs(color.value) < 4 * color.error_classes
    bound = 4 / np.sqrt(60 * 66)  # of a mean over that many pairs without likeness
    assert -bound < color.null_low < 0 < color.null_high < bound


def test_parts_of_the_variance_of_r_between_classes():
    """Of matrices that are made of these parts, with noise of its own in either half."""
    rng, classes, size = np.random.default_rng(3), 40, 6
    labels = np.repeat(np.arange(classes), size)
    parts = {"share_classes": 0.3, "share_image_and_class": 0.2, "share_images": 0.5}
    normal = rng.standard_normal
    of_classes = normal((classes, classes))[labels][:, labels]
    of_image = normal((len(labels), classes))[:, labels]
    r = np.sqrt(0.15) * of_classes + np.sqrt(0.1) * of_image + np.sqrt(0.25) * normal([240] * 2)
    r += r.T  # which doubles the variance of each part
    noise = [0.5 * normal(r.shape) for _ in range(2)]
    halves = [0.1 + r + part + part.T for part in noise]
    found = sample._between(Rows(*halves), labels)
    told = analyze._shares_with_errors({"label": labels, **found}, {"seed": 0, "class_groups": 20})
    for name, share in parts.items():
        assert abs(told[name] - share) < 4 * told[f"{name}_error"] < 0.2
    assert sum(told[name] for name in parts) == pytest.approx(1)
    first = halves[0][:size, size : 2 * size]
    assert found["sums"][0, 0, 1] == pytest.approx(first.sum(), rel=1e-5)


class Rows:
    """Two halves of a kernel, some rows at a time."""

    def __init__(self, *halves):
        self.matrices = dict(zip(HALVES, np.float32(halves), strict=True))

    def correlation(self, part, of):
        return self.matrices[of][part]

    def blocks(self, of):
        for part in slices(len(self.matrices[of]), 100):
            yield part, self.correlation(part, of)


def test_a_likeness_held_fixed_takes_away_what_comes_through_it():
    rng = np.random.default_rng(2)
    x, z = analyze._ranks(rng.standard_normal((40, 60))), rng.standard_normal((40, 60))
    through = analyze._ranks(x + 0.3 * z / np.sqrt(60))  # what x is seen through
    r = analyze._ranks(through + 0.3 * rng.standard_normal((40, 60)) / np.sqrt(60))
    ranks = {"x": x, "through": through}
    plain = analyze._correlation(r, ranks, "x", None)
    held = analyze._correlation(r, ranks, "x", "through")
    assert plain.mean() > 0.8
    assert abs(held.mean()) < 4 * held.std(ddof=1) / np.sqrt(40)


def test_rows_of_the_claims(tmp_path):
    facts = {"inputs": 10, "pairs": 4, "width": 8, "gamma": 2.0, "rise": 0.3, "cpu_seconds": 5}
    facts |= {"memory_gb": 1.5, "share_classes": 0.2, "share_classes_error": 0.01}
    facts |= {"share_image_and_class": 0.3, "share_images": 0.5}
    table = pd.DataFrame({"rise": 0.3, "fact": list(facts), "value": list(facts.values())})
    table.to_csv(tmp_path / "facts.csv", index=False)
    pd.DataFrame(
        [(0.3, 9, 2.0, 0.1, 1.9, 1.8, 1.2), (1.0, 9, 7.0, 0.1, 1.9, 1.8, 1.2)],
        columns=["rise", "depth", "lift", "error_classes", "half_0", "half_1", "null_high"],
    ).to_csv(tmp_path / "lifts.csv", index=False)
    pd.DataFrame(
        [(0.3, name, 0.4, 0.02, 0.1, 0.5) for name in analyze.LIKENESSES],
        columns=["rise", "likeness", "value", "error_classes", "null_high", "corrected"],
    ).to_csv(tmp_path / "within.csv", index=False)
    settings = {"headline": 0.3, "claim_depth": 9, "claim_neighbors": 10, "training_seed": 2}
    files = [tmp_path / f"{name}.csv" for name in ("lifts", "within", "facts", "claims")]
    analyze.claims(*files[:3], settings, files[3])
    rows = pd.read_csv(files[3]).set_index("id")
    assert rows.reproduced.to_dict() == {
        "scale.inputs": 10,
        "scale.seconds": 5,
        "scale.memory_gb": 1.5,
        "scale.lift": 2.0,
        "scale.within_class": 0.4,
    }
    assert rows["null"].dropna().to_dict() == {"scale.lift": 1.2, "scale.within_class": 0.1}
