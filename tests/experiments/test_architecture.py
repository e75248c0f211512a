"""Agreement of networks whose kernels are known, its row in the comparison, and its figure."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from losskernel.data.tiny_imagenet import load_tiny_imagenet
from losskernel.errors import TraceError
from losskernel.experiments.architecture.analyze import DIFFERENCE, KERNELS, OWN, agreement, claims
from losskernel.experiments.architecture.analyze import IMAGES as IMAGE_SETS
from losskernel.experiments.architecture.figures import networks
from losskernel.experiments.architecture.sample import sample
from losskernel.experiments.development.sample import generate, probed, train
from losskernel.experiments.imagenet.analyze import analyze
from losskernel.experiments.imagenet.kernels import FEATURES
from losskernel.kernel.alignment import cka, corrected_cka
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.stored import StoredKernel
from series import stored_kernel

NETWORKS = {
    "resnet": {"model": "resnet18", "channels": [4, 4, 8, 8]},
    "vit": {
        "model": "vit_tiny_patch16_224",
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
    },
}
TRAINING = {
    "image_size": 36,
    "crop": 32,
    "train_per_class": None,
    "device": "cpu",
    "training": {"steps": 6, "batch_size": 8, "learning_rate": 0.003, "warmup": 1},
    "checkpoints": [6],
    "step": 6,
    "save_every": 4,
    "probe_per_class": 2,
    "calibration_per_class": 3,
    "sampling_seed": 0,
    "rise": 0.05,
    "pairs": 4,
    "groups": 4,
    "width": 4096,
}
HIERARCHY = Path(__file__).parents[2] / "results/reference/imagenet/hierarchy.json"
INPUTS, DRAWS, GROUPS = 80, 60, 6
LABELS = np.arange(0, 960, 12)
IMAGES = np.array([f"image_{i}" for i in range(INPUTS)])
NAMES = ["first", "efficientnet_lite0"]
SETTINGS = {
    "gammas": {"first": 3000, "efficientnet_lite0": 6000},
    "claim_neighbors": 5,
    "claim_depth": 6,
    "permutations": 39,
    "seed": 0,
}
ANALYSIS = SETTINGS | {"lift_neighbors": [5], "cluster_depths": [], "map_neighbors": 5}


def stored(latent, gamma, seed, images=IMAGES):
    """The kernel of losses that are linear in random directions: R is known as well."""
    rng = np.random.default_rng(seed)
    losses = rng.standard_normal((DRAWS, latent.shape[1])) @ latent.T + 1.5
    coordinates = {"label": LABELS, "name": images}
    told = {"gamma": gamma, "pairs": DRAWS // 2, "linear_share": 0.5, "inputs_sha256": "x"}
    return stored_kernel(losses, np.zeros(INPUTS), coordinates, told, GROUPS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two networks that share half of what moves their losses, and most of their features."""
    folder = tmp_path_factory.mktemp("architecture")
    rng = np.random.default_rng(0)
    shared, *own = rng.standard_normal((3, INPUTS, 20))
    latents = [np.hstack([shared, part]) for part in own]
    files = {"kernels": [], "features": [], "statistics": [], "headlines": [], "accuracies": []}
    for number, (name, latent) in enumerate(zip(NAMES, latents, strict=True)):
        paths = {key: folder / f"{name}-{key}" for key in files}
        for key, path in paths.items():
            files[key].append(path)
        kernel = stored(latent, SETTINGS["gammas"][name], number)
        kernel.save(paths["kernels"])
        features = np.hstack([shared, 0.3 * own[number]])
        with open(paths["features"], "wb") as file:
            np.savez(file, features=features, name=IMAGES, inputs_sha256="x")
        paths["accuracies"].write_text(json.dumps({"top1": 0.79, "images": INPUTS}))
        analyze(
            [paths["kernels"]],
            paths["features"],
            HIERARCHY,
            ANALYSIS | {"headline": SETTINGS["gammas"][name]},
            folder / "analysis.npz",
            paths["statistics"],
            paths["headlines"],
        )
    agreement(NAMES, files["kernels"], files["features"], SETTINGS, folder / "agreement.csv")
    exact = [normalize(latent @ latent.T) for latent in latents]
    return folder, files, exact


@pytest.fixture(scope="module")
def table(run):
    return pd.read_csv(run[0] / "agreement.csv").set_index(["first", "second", "of"])


def test_agreement_is_that_of_the_kernels_without_noise(run, table):
    _, files, exact = run
    row = table.loc[(*NAMES, KERNELS)]
    truth = corrected_cka((exact[0], exact[0]), (exact[1], exact[1]))
    error = row.error_draws  # on the same images nothing else varies
    assert 0 < error < 0.1 and 0 < row.error_classes < 0.2
    assert row.value == pytest.approx(truth, abs=3 * error)
    seen = [StoredKernel.load(path).r - np.eye(INPUTS) for path in files["kernels"]]
    assert cka(*seen) < truth - 3 * error  # what noise makes of it
    assert row.null_high < 0.2 < row.value


def test_features_have_no_error_of_draws_and_agree_more_where_they_share_more(table):
    features, difference = table.loc[(*NAMES, FEATURES)], table.loc[(*NAMES, DIFFERENCE)]
    assert np.isnan(features.error_draws) and features.error_classes > 0
    kernels = table.loc[(*NAMES, KERNELS)]
    assert difference.value == pytest.approx(features.value - kernels.value)
    assert difference.value > 2 * np.hypot(difference.error_draws, difference.error_classes)
    assert {(name, name, OWN) for name in NAMES} < set(table.index)


def test_pairs_of_equal_label_do_not_count(run, tmp_path):
    """A likeness of images of one class alone is no agreement beyond the classes."""
    folder, files, _ = run
    kernels = []
    for number, path in enumerate(files["kernels"]):
        kernel = StoredKernel.load(path)
        kernel.coordinates["label"] = LABELS // 24
        same = kernel.coordinates["label"][:, None] == kernel.coordinates["label"]
        for matrix in (kernel.r, *kernel.halves, *kernel.left_out):
            matrix[same] = 1
        kernels.append(tmp_path / f"{number}.npz")
        kernel.save(kernels[-1])
    agreement(NAMES, kernels, files["features"], SETTINGS, tmp_path / "agreement.csv")
    before, after = (
        pd.read_csv(path / "agreement.csv").set_index(["first", "second", "of"]).value
        for path in (folder, tmp_path)
    )
    assert after[(*NAMES, KERNELS)] == pytest.approx(before[(*NAMES, KERNELS)], abs=0.1)


def test_kernels_of_other_images_are_refused(run, tmp_path):
    _, files, _ = run
    other = tmp_path / "other.npz"
    stored(np.eye(INPUTS), 10, 0, images=IMAGES[::-1].copy()).save(other)
    with pytest.raises(TraceError, match="other.npz: of other images than"):
        agreement(
            NAMES, [files["kernels"][0], other], files["features"], SETTINGS, tmp_path / "a.csv"
        )


def test_the_row_says_what_the_headline_table_says(run):
    folder, files, _ = run
    claims(
        "tiny_imagenet",
        NAMES,
        files["headlines"],
        accuracies=files["accuracies"],
        agreement=folder / "agreement.csv",
        settings=SETTINGS,
        output=folder / "claims.csv",
    )
    rows = pd.read_csv(folder / "claims.csv").set_index("id")
    assert list(rows.index) == ["architecture.efficientnet_lite0"]
    row = rows.iloc[0]
    facts = pd.read_csv(files["headlines"][1]).set_index(["kernel", "statistic"])
    best = facts.loc[("γ = 6,000", "correlation")]
    assert row.reproduced == pytest.approx(best.value)
    assert row.null == pytest.approx(best.null_high)
    assert row.spread == pytest.approx(np.hypot(best.error_draws, best.error_classes))
    assert row.n == DRAWS // 2 and row.null > 0
    assert f"{INPUTS} inputs of Tiny ImageNet, top-1 0.790 of {INPUTS}," in row.setting
    first = pd.read_csv(files["headlines"][0]).set_index(["kernel", "statistic"]).value
    assert f"that of first {first['γ = 3,000', 'correlation']:.3g};" in row.beside
    assert "CKA with first, kernels" in row.beside
    # Twice as many panels for two sets of images; gammas are needed where there are several.
    networks(
        2 * files["statistics"],
        2 * files["headlines"],
        agreements=2 * [folder / "agreement.csv"],
        settings=SETTINGS | {"gammas": {}, "compared": {name: NAMES for name in IMAGE_SETS}},
        output=folder / "figure.pdf",
        output_png=folder / "figure.png",
    )
    with Image.open(folder / "figure.png") as figure:
        assert figure.height > 0.6 * figure.width


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Networks of two kinds, hardly trained, and what is sampled of them."""
    folder = tmp_path_factory.mktemp("trained")
    generate({"classes": 6, "per_class": 4, "seed": 0}, folder / "a.zip")
    for name, network in NETWORKS.items():
        settings = TRAINING | {"network": network}
        train(settings, folder / "a.zip", 2, folder / f"net-{name}", folder / f"{name}.csv")
        outputs = [folder / f"{name}-{kind}" for kind in ("kernel", "features", "accuracy")]
        sample(settings, folder / "a.zip", folder / f"net-{name}", folder / f"j-{name}", *outputs)
    return folder


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_a_trained_network_is_sampled_with_frozen_normalization(trained, name):
    kernel = StoredKernel.load(trained / f"{name}-kernel")
    assert kernel.r.shape == (12, 12) and kernel.attributes["model"] == NETWORKS[name]["model"]
    rise, error = kernel.rise
    assert abs(rise - TRAINING["rise"]) < 4 * error + 0.02
    validation = load_tiny_imagenet(trained / "a.zip", "val", image_size=36)
    settings = TRAINING | {"network": NETWORKS[name]}
    problem = probed(settings, trained / "a.zip", trained / f"net-{name}", 6, validation)
    pixels, labels = problem.data
    with torch.inference_mode():
        alone = [
            F.cross_entropy(problem.model(pixels[[i]]), labels[[i]]).item()
            for i in range(len(pixels))
        ]
    np.testing.assert_allclose(kernel.initial_losses, alone, rtol=1e-4)
    assert json.loads((trained / f"{name}-accuracy").read_text())["images"] == len(validation)


def test_trained_networks_are_compared_on_the_same_images(trained, tmp_path):
    kernels, features = (
        [trained / f"{name}-{kind}" for name in NETWORKS] for kind in ("kernel", "features")
    )
    agreement([*NETWORKS], kernels, features, SETTINGS, tmp_path / "agreement.csv")
    found = pd.read_csv(tmp_path / "agreement.csv")
    assert list(found.of) == [OWN, OWN, KERNELS, FEATURES, DIFFERENCE]
    assert len({StoredKernel.load(path).attributes["weights_sha256"] for path in kernels}) == 2
