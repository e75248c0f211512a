"""Ranking the labels of a user's own trace, and of a folder of images."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from commandline import run
from losskernel import LossTrace, self_covariance
from losskernel.commands.mislabel import rank
from losskernel.errors import ConfigError


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Two cats, two dogs, and a dog called a cat, learned against the dogs."""
    rng = np.random.default_rng(0)
    cat, dog = rng.standard_normal((2, 1, 400))
    losses = np.stack([cat, cat, dog, dog, 4 * (0.2 * cat - dog)], axis=2)
    losses += 0.1 * rng.standard_normal(losses.shape) + 5
    names = {"name": np.array(list("abcde")), "label": np.array("cat cat dog dog cat".split())}
    path = tmp_path_factory.mktemp("trace") / "trace.nc"
    LossTrace.build(losses, np.arange(5.0), losses.mean(2), None, names).save(path)
    return path


def ranking(trace, *options) -> pd.DataFrame:
    output = trace.with_name("ranking.csv")
    assert run("mislabel", "rank", "--trace", trace, "--output", output, "--k", 2, *options) == 0
    return pd.read_csv(output)


def test_a_wrong_label_comes_first_with_the_label_of_the_inputs_opposed_to_it(trace):
    first = ranking(trace, "--score", "self_covariance").iloc[0]
    assert (first["rank"], first["name"], first["given_label"]) == (1, "e", "cat")
    assert first["suggested_label"] == "dog" and first["share_of_votes"] == pytest.approx(1)
    assert set(first["opposed"].split(" | ")) == {"c", "d"}
    assert first["opposed_labels"] == "dog | dog"
    assert set(first["nearest"].split(" | ")) == {"a", "b"}
    assert first["score"] == pytest.approx(self_covariance(LossTrace.load(trace).losses)[4])


def test_without_refitting_the_mean_loss_ranks_and_every_score_is_told(trace):
    table, losses = ranking(trace), LossTrace.load(trace).losses
    mean = losses.mean(axis=(0, 1), dtype=float)
    order = np.argsort(-mean)
    assert table["score"].to_numpy() == pytest.approx(mean[order])
    assert table["self_covariance"].to_numpy() == pytest.approx(self_covariance(losses)[order])


def test_a_ranking_by_another_score(trace):
    table = ranking(trace, "--score", "initial_loss")
    assert table["score"].tolist() == [4, 3, 2, 1, 0] == table["initial_loss"].tolist()


def test_an_unknown_score_is_named(trace, tmp_path):
    output = tmp_path / "ranking.csv"
    with pytest.raises(ConfigError, match="score: 'luck' is not one of best, confident"):
        rank(trace, output, score="luck")
    assert not output.exists()


def test_an_unknown_label_is_named(trace, tmp_path, capsys):
    output = tmp_path / "ranking.csv"
    unknown = ("--label", "species")
    assert run("mislabel", "rank", "--trace", trace, "--output", output, *unknown) == 1
    said = capsys.readouterr().err
    assert "the trace has no 'species'" in said and "name with --label" in said
    assert not output.exists()


CLASSES = ("zebra", "Ant", "cat 2")
PROBE = ("--gamma", 1e4)
SAMPLING = ("--chains", 1, "--draws", 4, "--burn-in", 0, "--batch-size", 2, "--image-size", 64)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Class folders of two images each, and the weights of a model with an output a folder."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in CLASSES:
        (folder / "images" / name).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    save_file(model.state_dict(), folder / "weights.safetensors")
    return folder


def rank_folder(photos, output, *options) -> int:
    return run(
        *("mislabel", "folder", "--images", photos / "images", "--output", output),
        *("--model", "timm:test_resnet", "--weights", photos / "weights.safetensors"),
        *("--k", 1, *SAMPLING, *options),
    )


def test_class_folders_of_any_name_are_ranked(photos, tmp_path):
    output = tmp_path / "suspects.csv"
    assert rank_folder(photos, output, *PROBE) == 0
    table = pd.read_csv(output)
    assert len(table) == 6 and set(table["suggested_label"].dropna()) <= set(CLASSES)
    np.testing.assert_array_equal(table["given_label"], table["name"].str.split("/").str[0])
    assert table["score"].is_monotonic_decreasing
    # The outputs are the folders as Python sorts them, capitals first.
    trace = LossTrace.load(tmp_path / "suspects.nc")
    assert dict(zip(trace.coordinate("label"), trace.coordinate("class"), strict=True)) == {
        "Ant": 0,
        "cat 2": 1,
        "zebra": 2,
    }


def test_a_file_of_classes_sets_their_order(photos, tmp_path):
    (tmp_path / "classes.txt").write_text("zebra\ncat 2\n\nAnt\n")
    options = ("--classes", tmp_path / "classes.txt", *PROBE)
    assert rank_folder(photos, tmp_path / "a.csv", *options) == 0
    assert rank_folder(photos, tmp_path / "b.csv", *PROBE) == 0
    named, by_folder = (LossTrace.load(tmp_path / f"{name}.nc") for name in "ab")
    classes = dict(zip(named.coordinate("label"), named.coordinate("class"), strict=True))
    assert classes == {"zebra": 0, "cat 2": 1, "Ant": 2}
    same = named.coordinate("label") == "cat 2"
    assert (named.initial_loss == by_folder.initial_loss).tolist() == same.tolist()


def test_folds_predict_each_image_by_a_last_layer_that_did_not_see_it(photos, tmp_path):
    output = tmp_path / "s.csv"
    assert rank_folder(photos, output, *PROBE, "--folds", 2, "--page", tmp_path / "s.html") == 0
    table = pd.read_csv(output).set_index("name")
    found = pd.read_csv(tmp_path / "s.predictions.csv").set_index("name")
    assert sorted(found.columns) == sorted(CLASSES)
    own = [found.loc[name, row["given_label"]] for name, row in table.iterrows()]
    assert table["score"].tolist() == pytest.approx([1 - p for p in own])
    assert "Refitting" not in (tmp_path / "s.html").read_text().split('id="data"')[1]
    # Two images a class: each was predicted from one of each class, which a fit by hand repeats.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    from losskernel.data.images import ClassFolders, load_images
    from losskernel.models.features import penultimate_features
    from losskernel.models.loader import load_classifier

    classifier = load_classifier("timm:test_resnet", photos / "weights.safetensors", 64)
    shown = ClassFolders(photos / "images", classifier.preprocess)
    seen = penultimate_features(classifier.model, [load_images(shown)[0]]).numpy()
    parts = StratifiedKFold(2, shuffle=True, random_state=0).split(seen, shown.folders)
    kept, held_out = next(parts)
    scale = StandardScaler().fit(seen[kept])
    head = LogisticRegression(C=0.01, max_iter=1000)
    head.fit(scale.transform(seen[kept]), shown.folders[kept])
    expected = head.predict_proba(scale.transform(seen[held_out]))
    got = found.loc[shown.names[held_out], head.classes_].to_numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_more_folds_than_images_of_a_class_are_refused(photos, tmp_path, capsys):
    assert rank_folder(photos, tmp_path / "s.csv", *PROBE, "--folds", 3) == 1
    assert "folds = 3: must be from 2 to 2, the images of the class Ant" in capsys.readouterr().err


def test_the_time_decides_how_many_draws_and_a_run_that_goes_on_keeps_its_own(
    photos, tmp_path, caplog
):
    options = [str(part) for part in SAMPLING]
    at = options.index("--draws")
    del options[at : at + 2]
    call = ("mislabel", "folder", "--images", photos / "images", "--model", "timm:test_resnet")
    call += ("--weights", photos / "weights.safetensors", "--k", 1, *options, *PROBE)
    with caplog.at_level("INFO", "losskernel"):
        assert run(*call, "--output", tmp_path / "s.csv", "--minutes", 0) == 0
        assert LossTrace.load(tmp_path / "s.nc").losses.shape == (1, 10, 6)  # the fewest
        assert "more than the minutes given" in caplog.text
        assert run(*call, "--output", tmp_path / "s.csv", "--minutes", 10) == 0
    long = LossTrace.load(tmp_path / "s.nc")
    assert long.losses.shape == (1, 200, 6) and long.attributes["resumed_draws"] == 10  # the most
    assert "1 x 200 draws of 6 images: " in caplog.text
    assert run(*call, "--output", tmp_path / "s.csv", "--minutes", 0) == 0
    assert LossTrace.load(tmp_path / "s.nc").losses.shape == (1, 200, 6)


def test_a_pilot_chooses_the_probe_where_none_is_given(photos, tmp_path, caplog, capsys):
    with caplog.at_level("INFO", "losskernel"):
        assert rank_folder(photos, tmp_path / "s.csv") == 0
    probe = json.loads(LossTrace.load(tmp_path / "s.nc").attributes["probe"])
    assert probe["n_beta"] == 0
    said = f"pilot: gamma = {probe['gamma']:.3g} raises the mean loss"
    assert said in caplog.text and "(target 0.1)" in caplog.text
    assert "propose_probe" not in caplog.text  # what a user of the command line cannot call
    caplog.clear()
    with caplog.at_level("INFO", "losskernel"):  # a run that goes on has its probe
        assert rank_folder(photos, tmp_path / "s.csv", "--draws", 6) == 0
    assert "pilot:" not in caplog.text
    assert json.loads(LossTrace.load(tmp_path / "s.nc").attributes["probe"]) == probe
    assert f"going on with {tmp_path / 's.journal'}: gamma = " in caplog.text
    assert rank_folder(photos, tmp_path / "s.csv", "--n-beta", 5) == 1
    assert "holds a run with n_beta = 0; go on with that" in capsys.readouterr().err


def test_a_model_without_preprocessing_is_refused(photos, tmp_path, capsys):
    lines = "import timm\ndef build():\n    return timm.create_model('test_resnet', num_classes=3)"
    (tmp_path / "bare.py").write_text(lines)
    options = ("--model", f"{tmp_path / 'bare.py'}:build", "--weights", "pretrained", *PROBE)
    assert rank_folder(photos, tmp_path / "s.csv", *options) == 1
    assert "let the function return both, (model, preprocess)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--weights", "random"), "has 3 class folders, the model 1000 outputs; give weights of"),
        (("--classes", "two.txt"), "two.txt: 2 names, 2 of them different, for the 3 outputs"),
        (("--classes", "twice.txt"), "twice.txt: 3 names, 2 of them different, for the 3"),
        (("--classes", "other.txt"), "Ant: Ant is not one of the model's 3 classes"),
        (("--step-size", 1e-5), "step_size: give gamma too"),
        (("--gamma", 1e4, "--step-size", 1e-5), "step_size = 1e-05 has no meaning with n_beta = 0"),
        (("--gamma", 1e4, "--burn-in", 9), "burn_in = 9 has no meaning with n_beta = 0"),
        (("--images", "nowhere"), "nowhere: no such image folder"),
        (("--device", "cuda:99"), "device: 'cuda:99' cannot be used here ("),
        (("--device", "gpu"), "device: 'gpu' cannot be used here ("),
        (("--output", "s.nc"), "output: the table s.nc, the trace s.nc and the journal s.journal"),
        (("--output", "two.txt/s.csv"), "two.txt/s.csv: cannot be written ("),
        (("--output-trace", "two.txt/s.nc"), "two.txt/s.nc: cannot be written ("),
        (("--journal", "two.txt"), "cannot be written ("),
        (("--k", 0), "k = 0: some image has only 4 others of another label; give --k from 1 to 4"),
        (("--k", 5), "k = 5: some image has only 4 others of another label; give --k from 1 to 4"),
    ],
)
def test_what_does_not_fit_is_named(photos, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    for name, lines in {
        "two": "Ant\ncat 2",
        "twice": "Ant\nAnt\nzebra",
        "other": "a\nb\nc",
    }.items():
        (tmp_path / f"{name}.txt").write_text(lines)
    assert rank_folder(photos, tmp_path / "s.csv", *change) == 1
    said = capsys.readouterr().err.strip()
    assert message in said and said.startswith("error: ") and "\n" not in said
    assert not (tmp_path / "s.csv").exists()


def test_a_damaged_first_image_is_left_out_where_asked_and_k_is_of_what_remains(
    photos, tmp_path, capsys
):
    shutil.copytree(photos / "images", tmp_path / "images")
    (tmp_path / "images/Ant/0.png").write_bytes(b"no picture")
    options = ("--images", tmp_path / "images", *PROBE)
    assert rank_folder(photos, tmp_path / "s.csv", *options) == 1
    assert "Ant/0.png: cannot be decoded" in capsys.readouterr().err
    skipped = (*options, "--skip-unreadable")
    assert rank_folder(photos, tmp_path / "s.csv", *skipped, "--k", 4) == 1
    assert "some image has only 3 others" in capsys.readouterr().err
    assert rank_folder(photos, tmp_path / "s.csv", *skipped) == 0
    trace = LossTrace.load(tmp_path / "s.nc")
    assert trace.attributes["left_out"] == "Ant/0.png (1)"
    whole = tmp_path / "whole.csv"
    assert rank_folder(photos, whole, *PROBE) == 0
    of_all = LossTrace.load(whole.with_suffix(".nc"))
    assert trace.coordinate("name").tolist() == of_all.coordinate("name").tolist()[1:]
    np.testing.assert_allclose(trace.initial_loss, of_all.initial_loss[1:], rtol=1e-5)


def test_images_of_one_class_are_refused(photos, tmp_path, capsys):
    shutil.copytree(photos / "images/Ant", tmp_path / "images/Ant")
    (tmp_path / "classes.txt").write_text("zebra\ncat 2\nAnt\n")
    options = ("--images", tmp_path / "images", "--classes", tmp_path / "classes.txt", *PROBE)
    assert rank_folder(photos, tmp_path / "s.csv", *options) == 1
    assert "all images are of the class Ant; a wrong label shows" in capsys.readouterr().err


def test_folders_of_wnids_are_classes_of_imagenet(photos, tmp_path):
    for wnid in ("n01440764", "n15075141"):
        (tmp_path / "images" / wnid).mkdir(parents=True)
        source = photos / "images/zebra/0.png"
        (tmp_path / "images" / wnid / "0.png").write_bytes(source.read_bytes())
    options = ("--weights", "random", "--images", tmp_path / "images", *PROBE)
    assert rank_folder(photos, tmp_path / "s.csv", *options) == 0
    assert LossTrace.load(tmp_path / "s.nc").coordinate("class").tolist() == [0, 999]
