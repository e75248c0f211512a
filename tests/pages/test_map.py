"""The map: what is written into the page, and what the page does in a real browser."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from commandline import run
from losskernel import LossTrace, correlation
from losskernel.errors import DataError
from losskernel.pages.map import categorical, numerical
from losskernel.semantics.wordnet import Hierarchy
from series import stored_kernel

EVIL = "<img src=x onerror=document.title='broken'>"
CLASSES = ("cat", "dog", EVIL)
EACH = 12
K = 3
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trace of three classes, a kernel of the same inputs, small images, and their map."""
    pytest.importorskip("bokeh", reason="needs the extra 'maps'")
    folder, rng = tmp_path_factory.mktemp("map"), np.random.default_rng(0)
    label = np.repeat(CLASSES, EACH)
    names = np.array([f"{c}/{i}.png" for c in ("cat", "dog", EVIL) for i in range(EACH)])
    common = rng.standard_normal((2, 40, len(CLASSES)))
    losses = np.repeat(common, EACH, axis=2) + rng.standard_normal((2, 40, len(label)))
    trace = LossTrace.build(
        losses, np.arange(len(label)), losses.mean(2), None, {"name": names, "label": label}
    )
    trace.save(folder / "trace.nc")
    features = rng.standard_normal((len(label), 5))
    order = rng.permutation(len(label))
    np.savez(folder / "features.npz", features=features[order], name=names[order])
    for i, name in enumerate(names):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (90, 60), (7 * i, 0, 0)).save(folder / "images" / name)
    assert 0 == run(
        *("map", "--trace", folder / "trace.nc", "--kernel", f"seen={folder / 'features.npz'}"),
        *("--images", folder / "images", "--output", folder / "map.html", "--k", K),
        *("--table", folder / "points.parquet", "--neighbors", 6, "--title", EVIL),
    )
    return folder, names, label, features


@pytest.fixture
def page(made, browser):
    browser.open(made[0] / "map.html")
    browser.wait("byId('status').textContent.endsWith('shown')")
    return browser


def expected(r: np.ndarray, label: np.ndarray, i: int) -> tuple[list[int], list[int]]:
    """Nearest and most opposed inputs of another label, by sorting one row of R."""
    others = np.flatnonzero(label != label[i])
    ordered = others[np.argsort(r[i, others])]
    return ordered[::-1][:K].tolist(), ordered[:K].tolist()


def test_colorings_have_equal_steps_and_the_frequent_first():
    steps = numerical("loss", [*range(16), np.nan])
    assert np.bincount(steps.of[:16]).tolist() == [2] * 8 and steps.of[16] == -1
    assert steps.categories[0] == "0 to 1.88"  # an eighth of the way from 0 to 15
    names = categorical("class", ["b", "a", "b"])
    assert names.categories == ("b", "a") and names.of.tolist() == [0, 1, 0]
    many = categorical("class", [f"{i:02}" for i in range(30)])
    assert len(set(zip(many.colors, many.markers, strict=True))) == 21
    assert (many.of == -1).sum() == 9


def test_table_has_points_and_neighbors(made):
    folder, names, label, features = made
    table = pd.read_parquet(folder / "points.parquet")
    assert table["name"].tolist() == names.tolist()
    r = correlation(LossTrace.load(folder / "trace.nc").losses)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for column, matrix in (("neighbors", r), ("neighbors seen", unit @ unit.T)):
        for i in (0, 20, 35):
            nearest, _ = expected(matrix, label, i)
            found = table[column][i]
            assert found["ids"][:K].tolist() == nearest
            assert found["distances"][:K] == pytest.approx(np.sqrt(2 - 2 * matrix[i, nearest]))
    assert np.abs(table[["x", "y"]]).max().max() == pytest.approx(1)


def test_kernels_of_other_inputs_are_refused(made, tmp_path, capsys):
    folder, names, *_ = made
    np.savez(tmp_path / "other.npz", R=np.eye(3), name=np.array(["a", "b", "c"]))
    call = ("map", "--trace", folder / "trace.nc", "--output", tmp_path / "map.html", "--kernel")
    assert run(*call, tmp_path / "other.npz") == 1
    assert f"other: has no input '{names[0]}'" in capsys.readouterr().err
    np.savez(tmp_path / "other.npz", R=np.eye(3))
    assert run(*call, tmp_path / "other.npz") == 1
    assert "3 inputs without names, the first kernel has 36" in capsys.readouterr().err
    np.savez(tmp_path / "other.npz", values=np.eye(3))
    assert run(*call, tmp_path / "other.npz") == 1
    assert "needs one of R, K, gram, features" in capsys.readouterr().err
    assert not (tmp_path / "map.html").exists()


@pytest.mark.parametrize("where", ["trace", "kernel", "table"])
def test_labels_are_those_of_the_table_or_of_the_first_file_that_has_them(made, tmp_path, where):
    """Inputs of equal label are no neighbors: not in the layout, and not in the list."""
    folder, names, label, features = made
    order = np.random.default_rng(2).permutation(len(label))
    np.savez(tmp_path / "K.npz", K=features @ features.T, name=names)
    given = ("--kernel", tmp_path / "K.npz")
    if where == "trace":
        given += (f"draws={folder / 'trace.nc'}",)
    elif where == "kernel":
        np.savez(
            tmp_path / "own.npz", features=features[order], name=names[order], label=label[order]
        )
        given += (tmp_path / "own.npz",)
    else:
        table = pd.DataFrame({"name": names, "label": label}).iloc[order]
        table.to_csv(tmp_path / "labels.csv", index=False)
        given += ("--labels", tmp_path / "labels.csv")
    output = ("--output", tmp_path / "map.html", "--table", tmp_path / "points.parquet")
    assert run("map", *given, *output, "--neighbors", 6, "--k", K) == 0
    found = pd.read_parquet(tmp_path / "points.parquet")
    assert found["class"].tolist() == label.tolist()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for i in (0, 20, 35):
        assert found["neighbors"][i]["ids"][:K].tolist() == expected(unit @ unit.T, label, i)[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "x"), ("b", "y")], "input 'c' is not there once"),
        ([("a", "x"), ("b", "y"), ("c", "y"), ("b", "x")], "input 'b' is not there once"),
    ],
)
def test_labels_are_one_an_input(tmp_path, capsys, rows, message):
    np.savez(tmp_path / "K.npz", K=np.eye(3), name=np.array(["a", "b", "c"]))
    pd.DataFrame(rows, columns=["name", "label"]).to_csv(tmp_path / "labels.csv", index=False)
    files = ("--labels", tmp_path / "labels.csv", "--output", tmp_path / "map.html")
    assert run("map", "--kernel", tmp_path / "K.npz", *files) == 1
    assert message in capsys.readouterr().err


def test_a_stored_kernel_is_read(made):
    from losskernel.pages.sources import read_kernel

    trace = LossTrace.load(made[0] / "trace.nc")
    losses = trace.losses.reshape(-1, trace.losses.shape[2])
    names = {"name": trace.coordinate("name")}
    stored = stored_kernel(losses, trace.initial_loss, names, {"gamma": 100})
    stored.save(made[0] / "stored.npz")
    found = read_kernel(f"γ 100={made[0] / 'stored.npz'}")
    assert found.name == "γ 100"
    found.match(made[1][::-1])
    rows = np.concatenate([block for _, block in found.blocks()])
    assert rows == pytest.approx(stored.r[::-1, ::-1], abs=1e-3)
    assert found.self_covariance == pytest.approx(stored.self_covariance[::-1])


def test_an_image_outside_of_the_folder_is_refused(tmp_path):
    from losskernel.pages.document import thumbnails

    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="lies outside of"):
        thumbnails(tmp_path / "images", ["../secret.png"], 8)


def pixel(browser, i: int) -> tuple[float, float]:
    """Where an input is drawn in the window."""
    return browser.run(
        """const [plot] = Bokeh.index.roots, at = plot.canvas_view.el.getBoundingClientRect();
        return [at.left + plot.frame.x_scale.compute(x[arguments[0]]),
                at.top + plot.frame.y_scale.compute(y[arguments[0]])];""",
        i,
    )


def point(browser, i: int, click: bool = False) -> None:
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    x, y = pixel(browser, i)
    actions = ActionBuilder(browser.driver)
    actions.pointer_action.move_to_location(5, 5)
    actions.pointer_action.move_to_location(round(x), round(y))
    if click:
        actions.pointer_action.click()
    actions.perform()


def alone(points: np.ndarray) -> int:
    """The input whose nearest other point is furthest: a pointer on it means no other."""
    gaps = np.linalg.norm(points[:, None] - points, axis=2) + 9 * np.eye(len(points))
    return int(gaps.min(axis=1).argmax())


def test_no_request_leaves_the_page(page):
    assert page.requests() == [] and page.errors() == []


def test_names_and_classes_are_text(page):
    assert page.driver.title == EVIL and page.text("h1") == EVIL
    assert page.run("return byId('legend').textContent").count(EVIL) == 1
    page.run("select(30)")
    assert page.text("#details h2") == f"{EVIL}/6.png"
    assert page.run("return [...document.images].every((i) => i.src.startsWith('data:'))")


def test_hover_tells_of_the_input_and_its_neighbors(page, made):
    folder, names, label, _ = made
    i = alone(pd.read_parquet(folder / "points.parquet")[["x", "y"]].to_numpy())
    point(page, i)
    page.wait("!byId('tooltip').hidden")
    assert page.text("#tooltip h2") == names[i]
    facts = dict(
        zip(*([e.text for e in page.all(f"#tooltip {t}")] for t in ("dt", "dd")), strict=True)
    )
    trace = LossTrace.load(folder / "trace.nc")
    variance = trace.losses[..., i].var(ddof=1)
    assert facts["class"] == label[i] and float(facts["loss"]) == pytest.approx(i)
    assert float(facts["self-covariance"]) == pytest.approx(variance, rel=5e-3)
    r = correlation(trace.losses)
    nearest, opposed = expected(r, label, i)
    listed = [e.text for e in page.all("#tooltip li")]
    assert listed == [f"{r[i, j]:.3f} {label[j]}" for j in nearest + opposed]
    assert len(page.all("#tooltip img")) == 1 + 2 * K
    assert page.run("return document.querySelector('#tooltip img').naturalWidth") == 64


def test_click_draws_lines_colored_by_sign(page, made):
    folder, names, label, _ = made
    points = pd.read_parquet(folder / "points.parquet")[["x", "y"]].to_numpy()
    i = alone(points)
    point(page, i, click=True)
    page.wait("selected !== null")
    assert page.text("#details h2") == names[i]
    drawn = page.run("return lines.data")
    r = correlation(LossTrace.load(folder / "trace.nc").losses)
    ends = sum(expected(r, label, i), [])
    assert np.stack([drawn["x1"], drawn["y1"]], 1) == pytest.approx(points[ends], abs=1e-6)
    assert drawn["color"] == ["#0072b2" if r[i, j] > 0 else "#d55e00" for j in ends]
    page.find("#details li button").click()  # walk on to the nearest
    assert page.text("#details h2") == names[ends[0]]


def test_search_dims_the_rest_and_lists_what_it_found(page, made):
    page.find("#search").send_keys("DOG/1")
    found = [i for i, name in enumerate(made[1]) if name.startswith("dog/1")]
    alpha = page.wait("points.data.alpha.some((a) => a < 0.1) && points.data.alpha")
    assert [i for i, a in enumerate(alpha) if a > 0.5] == found
    assert page.text("#status") == f"36 of 36 inputs shown; {len(found)} found"
    assert [e.text for e in page.all("#found button")] == [f"dog: {made[1][i]}" for i in found]
    page.find("#search").send_keys("\n")
    assert page.text("#details h2") == made[1][found[0]]


def test_switch_moves_the_points_to_the_other_map(page, made):
    table = pd.read_parquet(made[0] / "points.parquet")
    here, there = (table[[f"x{e}", f"y{e}"]].to_numpy() for e in ("", " seen"))
    at = "return [Array.from(x), Array.from(y)]"
    assert np.array(page.run(at)).T == pytest.approx(here, abs=1e-6)
    page.run("byId('view').value = 1; byId('view').onchange()")
    page.wait("Array.from(x).every((value, i) => value === view.x[i])")
    assert np.array(page.run(at)).T == pytest.approx(there, abs=1e-6)
    options = [e.text for e in page.all("#coloring option")]
    assert "self-covariance" not in options  # features have none
    assert options[:2] == ["class", "loss at the trained weights"]


def test_legend_filters(page, made):
    first = page.find("#legend button")
    first.click()
    assert page.run("return filter.booleans") == (made[2] != first.text).tolist()
    assert page.text("#status") == "24 of 36 inputs shown"
    assert page.find("#legend button").get_attribute("aria-pressed") == "false"
    page.find("#none").click()
    assert page.text("#status") == "0 of 36 inputs shown"
    page.find("#all").click()
    page.run("byId('coloring').value = 'self-covariance'; byId('coloring').onchange()")
    assert len(page.all("#legend button")) == 8
    assert page.text("#status") == "36 of 36 inputs shown"


def test_wheel_zooms(page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    width = "Bokeh.documents.at(-1).get_model_by_name('plot').x_range.span"
    before = page.run(f"return {width}")
    middle = ScrollOrigin.from_element(page.find("#plot"))
    ActionChains(page.driver).scroll_from_origin(middle, 0, -300).perform()
    page.wait(f"{width} < {before}")
    assert page.run(f"return {width}") < before


def test_controls_have_labels(page):
    """Each control of the form has a name that a screen reader says, and keys reach it."""
    for control in page.all("select, input, button"):
        assert control.accessible_name and control.get_attribute("tabindex") != "-1"
    assert page.find("#status").get_attribute("aria-live") == "polite"
    assert page.find("#plot").get_attribute("aria-label")


def test_hierarchy_gives_places_and_colors(tmp_path, browser):
    pytest.importorskip("bokeh", reason="needs the extra 'maps'")
    hypernyms = {"thing.n.01": (), "dog.n.01": ("thing.n.01",), "bird.n.01": ("thing.n.01",)}
    leaves = {"pug.n.01": "dog.n.01", "lab.n.01": "dog.n.01", "jay.n.01": "bird.n.01"}
    hypernyms |= {leaf: (above,) for leaf, above in leaves.items()}
    wnids = ("n00000001", "n00000002", "n00000003")
    tree = Hierarchy(wnids, ("pug", "lab", "jay"), tuple(leaves), hypernyms)
    tree.to_file(tmp_path / "tree.json")
    losses = np.random.default_rng(0).standard_normal((1, 30, 12))
    wnid = np.repeat(wnids, 4)
    LossTrace.build(losses, np.ones(12), losses.mean(2), None, {"wnid": wnid}).save(
        tmp_path / "trace.nc"
    )
    page = tmp_path / "map.html"
    options = ("--hierarchy", tmp_path / "tree.json", "--neighbors", 4, "--output", page)
    assert run("map", "--trace", tmp_path / "trace.nc", *options) == 0
    browser.open(page)
    browser.wait("byId('status').textContent.endsWith('shown')")
    assert [e.text for e in browser.all("#legend button")] == ["dogs", "birds"]
    browser.run("select(0)")
    facts = [e.text for e in browser.all("#details dd")]
    assert facts[:2] == ["pug", "dog › pug"]
    names = [e.text for e in browser.all("#coloring option")]
    assert names[1] == "hypernym at depth 1" and "given against suggested label" in names
    browser.run("byId('coloring').value = 'hypernym at depth 1'; byId('coloring').onchange()")
    assert [e.text for e in browser.all("#legend button")] == ["dog", "bird"]


@pytest.mark.slow
def test_the_tracked_imagenet_kernels_make_a_page_below_one_megabyte(tmp_path, browser):
    pytest.importorskip("bokeh", reason="needs the extra 'maps'")
    tracked, page = ROOT / "results/reference/imagenet", tmp_path / "map.html"
    headline = yaml.safe_load((ROOT / "config/config.yaml").read_text())["imagenet"]["kernel"]
    kernels = [tracked / f"kernels/{probe['gamma']:g}.npz" for probe in headline["probes"]]
    settings = {"map_neighbors": 15, "seed": 0, "headline": headline["headline"]}
    files = {"features": "features.npz", "limit": "limit.npz", "hierarchy": "hierarchy.json"}
    call = ["workflow", "imagenet.analyze", "browse", "--settings", json.dumps(settings)]
    call += [part for name, file in files.items() for part in (f"--{name}", tracked / file)]
    assert run(*call, "--kernels", *kernels, "--output", page) == 0
    assert page.stat().st_size < 1e6
    browser.open(page)
    browser.wait("byId('status').textContent === '1000 of 1000 inputs shown'")
    shown = [e.text for e in browser.all("#view option")]
    assert len(shown) == len(kernels) + 2 and shown[-2:] == ["exact limit", "features"]
    assert [e.text for e in browser.all("#legend button")][:3] == ["dogs", "other mammals", "birds"]
    browser.find("#search").send_keys("tench\n")
    name, place, *_ = (e.text for e in browser.all("#details dd"))
    assert name == "tench" and place.startswith("physical entity › object › whole › living thing")
    assert place.endswith("soft-finned fish › cypriniform fish › cyprinid › tench")
    assert browser.requests() == [] and browser.errors() == []
