"""The page of suspicious labels in a real browser, and what its ticks turn into."""

import csv
import json
import logging
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from commandline import run
from losskernel import LossTrace
from losskernel.commands.mislabel import rank

EVIL = "<img src=x onerror=document.title='broken'>"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Cats and dogs, one dog called a cat, one named as badly as can be; the page of them."""
    folder, rng = tmp_path_factory.mktemp("suspects"), np.random.default_rng(0)
    cat, dog = rng.standard_normal((2, 1, 400))
    losses = np.stack([cat, cat, dog, dog, 4 * (0.2 * cat - dog)], axis=2)
    losses += 0.1 * rng.standard_normal(losses.shape) + np.array([1, 2, 3, 4, 5])
    label = np.array([EVIL, EVIL, "dog", "dog", EVIL])
    files = ["a.png", "b, 'b'.png", "c.png", "d.png", 'e "x".png']
    name = np.array([f"{folder}/{file}" for folder, file in zip(label, files, strict=True)])
    trace = LossTrace.build(
        losses, np.arange(5.0), losses.mean(2), None, {"name": name, "label": label}
    )
    trace.save(folder / "trace.nc")
    for i, path in enumerate(name):
        (folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300, 200), (50 * i, 0, 0)).save(folder / "images" / path)
    options = ("--images", folder / "images", "--page", folder / "page.html", "--k", 2)
    call = ("mislabel", "rank", "--trace", folder / "trace.nc", "--output", folder / "s.csv")
    assert run(*call, *options, "--cards", 4) == 0
    return folder, name, label, trace


# Chromium forgets now and then what a file stored. This storage is the test's, which keeps it.
STORAGE = """{
  const kept = %s;
  const value = { kept, getItem: (k) => kept[k] ?? null, setItem: (k, v) => { kept[k] = v; } };
  Object.defineProperty(window, "localStorage", { value });
}"""


def opened(browser, path, kept: dict):
    """The page at ``path`` in a browser whose storage holds ``kept``."""
    added = browser.driver.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": STORAGE % json.dumps(kept)}
    )
    browser.open(path)
    browser.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    return browser


@pytest.fixture
def page(made, browser):
    return opened(browser, made[0] / "page.html", {})


def test_cards_tell_of_the_most_suspicious_first(page, made):
    folder, names, labels, trace = made
    mean = trace.losses.mean(axis=(0, 1))
    order = np.argsort(-mean)[:4]
    assert [e.text for e in page.all(".card h2")] == [
        f"{rank}. {names[i]}" for rank, i in enumerate(order, 1)
    ]
    assert page.text("#ranked").startswith("The 4 most suspicious of 5 labels, by mean loss")
    terms, values = ([e.text for e in page.all(f".card:first-child {t}")] for t in ("dt", "dd"))
    facts = dict(zip(terms, values, strict=True))
    assert facts["given"] == EVIL and facts["suggested"] == "dog (100 %)"
    assert float(facts["score"]) == pytest.approx(mean[4], rel=5e-3)
    assert float(facts["loss"]) == 4
    opposed = [e.text for e in page.all(".card:first-child section:last-child li")]
    assert [text.split()[1] for text in opposed] == ["dog", "dog"]
    assert all(float(text.split()[0]) < -0.9 for text in opposed)
    widths = (
        "return [...document.querySelectorAll('.card:first-child img')].map(i => i.naturalWidth)"
    )
    assert page.run(widths) == [224, 72, 72, 72, 72]


def test_the_page_says_that_refitting_finds_more(page):
    assert page.text("#note").startswith("Refitting would find more")


def test_names_are_text_and_nothing_is_loaded(page):
    assert page.driver.title == "Suspicious labels"
    assert page.run("return [...document.images].every((i) => i.src.startsWith('data:'))")
    assert page.requests() == [] and page.errors() == []


def test_ticks_survive_a_reload_and_are_exported_and_applied(page, made, caplog):
    folder, names, labels, _ = made
    choose = "document.querySelectorAll('.card')[{}].querySelector('[value=\"{}\"]').click()"
    page.run(choose.format(0, "wrong"))
    page.run(choose.format(1, "right"))
    page.run(choose.format(2, "wrong"))
    field = page.all(".card input[type=text]")[2]
    field.clear()
    field.send_keys('bird, "small"')
    assert page.text("#status") == "3 of 4 ticked, 2 as wrong"
    opened(page, folder / "page.html", page.run("return localStorage.kept"))
    assert page.text("#status") == "3 of 4 ticked, 2 as wrong"
    page.run("byId('filter').value = 'wrong'; byId('filter').onchange()")
    assert [e.is_displayed() for e in page.all(".card")] == [True, False, True, False]
    page.find("#export").click()
    ticks = page.downloads / "ticks.csv"
    for _ in range(100):
        if ticks.exists():
            break
        time.sleep(0.05)
    with open(ticks, newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["name", "given_label", "verdict", "new_label"],
        [names[4], EVIL, "wrong", "dog"],
        [names[3], "dog", "right", ""],
        [names[2], "dog", "wrong", 'bird, "small"'],
    ]
    images, table = folder / "images", folder / "labels.csv"
    call = ("mislabel", "apply", "--ticks", ticks, "--images", images)
    before = sorted(path for path in images.rglob("*") if path.is_file())
    with caplog.at_level(logging.INFO, "losskernel"):
        assert (
            run("mislabel", "apply", "--ticks", ticks, "--images", images, "--output", table) == 0
        )
    assert "2 images would be moved; add --move" in caplog.text
    assert sorted(path for path in images.rglob("*") if path.is_file()) == before
    assert pd.read_csv(table)["new_label"].tolist() == ["dog", 'bird, "small"']
    assert run(*call, "--move") == 0
    assert (images / "dog" / 'e "x".png').is_file() and not (images / names[4]).exists()
    assert (images / 'bird, "small"' / "c.png").is_file()
    assert sum(path.is_file() for path in images.rglob("*")) == len(before)


TICKS = "name,given_label,verdict,new_label\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("cat/a.png,cat,wrong,dog\ncat/b.png,cat,wrong,dog\n", "cat/b.png: is not there"),
        ("cat/a.png,cat,wrong,bird\n", "bird/a.png: is taken"),
        ("cat/a.png,cat,wrong,dog\ncow/a.png,cow,wrong,dog\n", "dog/a.png: is taken"),
        ("cat/a.png,cat,wrong,dog\n../a.png,cat,wrong,dog\n", "../a.png: is no image below"),
        ("cat/a.png,cat,wrong,../dog\n", "is no name of a class folder"),
        ("cat/a.png,cat,maybe,dog\n", "verdict 'maybe' is not wrong, right or not sure"),
    ],
)
def test_moves_that_cannot_all_be_made_are_not_made(tmp_path, capsys, rows, message):
    for name in ("cat/a.png", "cow/a.png", "bird/a.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "ticks.csv").write_text(TICKS + rows)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    call = ("mislabel", "apply", "--ticks", tmp_path / "ticks.csv", "--images", tmp_path)
    assert run(*call, "--move") == 1
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_a_table_without_a_verdict_is_no_table_of_ticks(tmp_path, capsys):
    (tmp_path / "ticks.csv").write_text("name,given_label,new_label\n")
    assert run("mislabel", "apply", "--ticks", tmp_path / "ticks.csv", "--images", tmp_path) == 1
    assert "has no column verdict" in capsys.readouterr().err
    assert run("mislabel", "apply", "--ticks", tmp_path / "none.csv", "--images", tmp_path) == 1
    said = capsys.readouterr().err
    assert "(No such file or directory); export it from the page" in said and "Errno" not in said


def test_predictions_rank_by_confident_learning_and_suggest_their_class(made, tmp_path):
    folder, names, labels, _ = made
    dog = np.array([0.05, 0.2, 0.7, 0.9, 0.6])
    pd.DataFrame({"name": names[::-1], EVIL: 1 - dog[::-1], "dog": dog[::-1]}).to_csv(
        tmp_path / "p.csv", index=False
    )
    rank(folder / "trace.nc", tmp_path / "s.csv", predictions=tmp_path / "p.csv", k=2)
    table = pd.read_csv(tmp_path / "s.csv", keep_default_na=False)
    # cleanlab's self-confidence: the probability of the given label.
    own = np.where(labels == "dog", dog, 1 - dog)
    assert table["name"].tolist() == names[np.argsort(own)].tolist()
    assert table["score"].tolist() == pytest.approx(np.sort(1 - own)[::-1].tolist())
    assert table["suggested_label"].tolist() == ["dog", "", "", "", ""]
    assert table["share_of_votes"][0] == pytest.approx(0.6)


def test_a_training_log_ranks_by_the_area_under_the_margin(made, tmp_path):
    folder, names, labels, _ = made
    classes = np.array(["dog", EVIL])
    logits = np.random.default_rng(0).standard_normal((3, 5, 2))
    own = (labels == EVIL).astype(int)
    margin = (logits[:, range(5), own] - logits[:, range(5), 1 - own]).mean(axis=0)
    order = [3, 0, 4, 1, 2]  # of the log, its own
    np.savez(tmp_path / "log.npz", name=names[order], logits=logits[:, order], classes=classes)
    rank(folder / "trace.nc", tmp_path / "s.csv", training_log=tmp_path / "log.npz", k=2)
    table = pd.read_csv(tmp_path / "s.csv")
    assert table["name"].tolist() == names[np.argsort(margin)].tolist()
    assert table["score"].to_numpy() == pytest.approx(np.sort(-margin)[::-1])


def test_evidence_that_does_not_fit_is_named(made, tmp_path, capsys):
    folder, names, *_ = made
    call = ("mislabel", "rank", "--trace", folder / "trace.nc", "--output", tmp_path / "s.csv")
    call += ("--k", 2)
    assert run(*call, "--score", "confident_learning") == 1
    assert "confident_learning needs --predictions" in capsys.readouterr().err
    pd.DataFrame({"name": names, "dog": 1.0}).to_csv(tmp_path / "p.csv", index=False)
    assert run(*call, "--predictions", tmp_path / "p.csv") == 1
    assert "has no column for the label '<img" in capsys.readouterr().err
    pd.DataFrame({"name": names[1:], "dog": 1.0, EVIL: 0}).to_csv(tmp_path / "p.csv", index=False)
    assert run(*call, "--predictions", tmp_path / "p.csv") == 1
    assert "has no prediction for the input '<img" in capsys.readouterr().err
    pd.DataFrame({"name": names, "dog": 1.0, EVIL: 1.0}).to_csv(tmp_path / "p.csv", index=False)
    assert run(*call, "--predictions", tmp_path / "p.csv") == 1
    assert "sums to 1" in capsys.readouterr().err
    np.savez(tmp_path / "log.npz", name=names[1:], margins=np.zeros((2, 4)))
    assert run(*call, "--training-log", tmp_path / "log.npz") == 1
    assert "has no input '<img" in capsys.readouterr().err
