"""Tiny runs of the experiments on labels that are wrong at probe time only."""

import numpy as np
import pandas as pd
import pytest
import torch

from losskernel import LossTrace, Probe, sample_losses, self_covariance
from losskernel.errors import ConfigError
from losskernel.experiments.imagenet.sample import generate, load
from losskernel.experiments.mislabel import probe_time
from losskernel.experiments.mislabel.labels import detection
from losskernel.seeds import numpy_generator
from networks import CLASSIFIER, DIGITS

ANALYSIS = {
    "shares": [0.1, 0.2],
    "draws": [1, 2, 3],
    "neighbors": 3,
    "permutations": 19,
    "jackknife_blocks": 4,
    "headline": 1e4,
}


def test_wrong_labels_at_probe_time_only(tmp_path):
    probe_time.on_digits(DIGITS, tmp_path / "rows.csv", tmp_path / "s.csv")
    rows = pd.read_csv(tmp_path / "rows.csv").set_index(["share", "draw"])
    row = rows.loc[(0.2, 1)]
    assert row["flipped"] == 24
    means = row["self_covariance_mislabeled"], row["self_covariance_clean"]
    assert row["ratio"] == pytest.approx(means[0] / means[1])
    # The network never saw these labels: they are far from what it learned.
    assert row["auc_loss"] > 0.9 and row["auc"] > 0.8 and row["ratio"] > 1


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """Settings, and a trace of 20 random textures under 4 labels each."""
    folder = tmp_path_factory.mktemp("sampled")
    generate({"classes": 10, "per_class": 2, "side": 32, "seed": 0}, folder / "images")
    settings = CLASSIFIER | {"image_folder": str(folder / "images"), "image_size": 32}
    settings |= {"wrong_labels": 3, "draws": 8, "eval_batch_size": 7}
    probe_time.sample(settings, 1e4, folder / "journal", folder / "trace.nc")
    probe_time.baselines(settings, folder / "baselines.npz")
    return settings, folder / "trace.nc"


def test_the_given_labels_have_the_losses_of_a_run_without_the_wrong_ones(sampled):
    settings, trace = sampled
    classifier, images, data = load(settings)
    plain = sample_losses(classifier.model, data, Probe(gamma=1e4), seed=1, draws=8, chains=1)
    found = LossTrace.load(trace)
    losses = found.losses.reshape(1, 8, 20, 4)
    # The same draws. Blocks of another size round the sums of a convolution differently: losses of
    # about 7 agree to some roundings of 2^-24 of the logits.
    np.testing.assert_allclose(losses[..., 0], plain.losses, rtol=0, atol=2e-5)
    labels = found.coordinate("label").reshape(20, 4)
    np.testing.assert_array_equal(labels[:, 0], images.labels)
    assert all(len(set(row)) == 4 for row in labels)
    assert np.abs(losses[..., 1:] - losses[..., :1]).min() > 1e-4  # other labels, other losses
    assert found.attributes["weights_sha256"] == plain.attributes["weights_sha256"]


def test_margin_and_gradient_norm_are_those_of_every_label(sampled):
    settings, trace = sampled
    classifier, _, (inputs, _) = load(settings)
    with np.load(trace.parent / "baselines.npz") as stored:
        labels, margin, norm = (stored[name] for name in ("label", "margin", "gradient_norm"))
    np.testing.assert_array_equal(labels.ravel(), LossTrace.load(trace).coordinate("label"))
    with torch.no_grad():
        logits = classifier.model.eval()(inputs)
    others = logits.clone()
    others[torch.arange(20), labels[:, 1]] = -torch.inf
    expected = logits[torch.arange(20), labels[:, 1]] - others.amax(1)
    np.testing.assert_allclose(margin[:, 1], expected, atol=1e-5)
    for parameter in classifier.model.parameters():
        parameter.requires_grad_()
    loss = torch.nn.functional.cross_entropy(
        classifier.model(inputs[3:4]), torch.as_tensor(labels[3:4, 2]).long()
    )
    gradients = torch.autograd.grad(loss, list(classifier.model.parameters()))
    expected = sum(float(g.double().square().sum()) for g in gradients) ** 0.5
    assert norm[3, 2] == pytest.approx(expected, rel=1e-4)


def analyzed(trace, folder, plain=None):
    plain = plain or trace.parent / "baselines.npz"
    files = [folder / name for name in ("rows.csv", "summary.csv", "scores.npz")]
    probe_time.on_images(ANALYSIS, [trace], plain, *files)
    return pd.read_csv(files[0]), pd.read_csv(files[1]), dict(np.load(files[2]))


def test_a_corruption_is_a_choice_among_the_columns(sampled, tmp_path):
    rows, summary, scores = analyzed(sampled[1], tmp_path)
    assert rows["flipped"].tolist() == [2] * 3 + [4] * 3
    columns = self_covariance(LossTrace.load(sampled[1]).losses).reshape(20, 4)
    initial = LossTrace.load(sampled[1]).initial_loss.reshape(20, 4)
    chosen = scores["self_covariance"].reshape(6, 20)
    flipped = scores["flipped"].reshape(6, 20)
    for row, k, wrong in zip(rows.itertuples(), chosen, flipped, strict=True):
        np.testing.assert_array_equal(k[~wrong], columns[~wrong, 0])
        assert (k[wrong, None] == columns[wrong, 1:]).any(axis=1).all()
        assert row.auc_self_covariance == pytest.approx(detection(k, wrong).auc)
        assert row.ratio == pytest.approx(k[wrong].mean() / k[~wrong].mean())
        hard = wrong | (initial[:, 0] > np.log(2))
        assert row.matched_self_covariance == pytest.approx(detection(k[hard], wrong[hard]).auc)
    auc = rows.groupby("share")["auc_self_covariance"]
    np.testing.assert_allclose(summary["auc_self_covariance"], auc.mean())
    np.testing.assert_allclose(summary["auc_self_covariance_sd"], auc.std())
    assert summary["gamma"].tolist() == [1e4, 1e4]


def test_errors_are_over_draws_and_over_images():
    """Of a mean over both, whose variances by blocks add up."""
    losses = np.random.default_rng(0).standard_normal((1, 12, 20, 2)) + np.arange(20)[:, None]

    def statistics(chosen, kept=slice(None)):
        mean = chosen.mean(axis=(0, 1, 3))[kept].mean()
        return pd.DataFrame({"share": [0.1], "draw": [1], "mean": [mean]})

    found = probe_time._jackknife_errors(losses, statistics, 4)["mean_error"].item()
    order = numpy_generator(0, "order").permutation(20)
    by_draw = losses.mean(axis=(0, 2, 3)).reshape(4, 3).mean(1)
    by_image = losses.mean(axis=(0, 1, 3))[order].reshape(4, 5).mean(1)
    # The jackknife of a mean of equal blocks is the standard error of the mean of their means.
    assert found == pytest.approx(np.hypot(*(x.std(ddof=1) / 2 for x in (by_draw, by_image))))


def test_the_headline_must_be_among_the_traces(sampled, tmp_path):
    files = [tmp_path / name for name in ("rows.csv", "summary.csv", "scores.npz")]
    with pytest.raises(ConfigError, match="gammas: none is 3000, the headline"):
        plain = sampled[1].parent / "baselines.npz"
        probe_time.on_images(ANALYSIS | {"headline": 3000}, [sampled[1]], plain, *files)


def test_another_trace_is_refused(sampled, tmp_path):
    trace = LossTrace.load(sampled[1])
    del trace.dataset.attrs["labels_per_image"]
    trace.save(tmp_path / "other.nc")
    with pytest.raises(
        ConfigError, match="other.nc: not made by `losskernel workflow mislabel.probe_time"
    ):
        analyzed(tmp_path / "other.nc", tmp_path, sampled[1].parent / "baselines.npz")
