"""The examples of the pages run as printed; commands, files and functions that they name exist."""

import ast
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from losskernel.cli import main

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))


def blocks(page: str, language: str) -> list[str]:
    """Code blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)


def executed(page: str) -> dict:
    """Names that the Python blocks of a page leave behind, run one after the other."""
    namespace: dict = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), namespace)
    return namespace


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    assert len(text[: text.index("![")].splitlines()) <= 40


def test_python_example_of_the_readme_runs():
    (code,) = blocks("README.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    namespace = executed("README.md")
    trace = namespace["trace"]
    inputs = trace.losses.shape[2]
    assert trace.losses.shape[:2] == (4, 200)
    assert namespace["r"].shape == (inputs, inputs)
    assert namespace["neighbors"].shape == (inputs, 5)
    assert (
        namespace["labels"][namespace["neighbors"][0]] == 0
    ).all()  # as the page says of image 0
    # The loss of an input that is answered with certainty rounds to 0 at every draw.
    moves = trace.losses.reshape(-1, inputs).std(axis=0) > 0
    assert moves.mean() > 0.9
    assert ((namespace["variances"] > 0) == moves).all()


def test_python_examples_of_a_model_of_ones_own_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = executed("docs/your-model.md")
    assert names["trace"].losses.shape == (2, 300, 200)
    assert names["pilot"].rise == pytest.approx(0.05, rel=0.2)
    assert "2.bias" not in names["trace"].attributes["parameters"]
    assert len(capsys.readouterr().out.splitlines()) > 2


def test_python_examples_of_the_estimators_run_and_agree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = executed("docs/estimators.md")
    pairs = ~names["torch"].eye(100, dtype=bool).numpy()
    one, other = names["r"][pairs], names["same"][pairs]
    # 500 draws leave a noise of 0.045 on each pair; the two estimates of R must agree beyond it.
    assert abs(one - other).std() < 2 * 500**-0.5
    assert names["limit"].shape == (100, 100)


def test_tables_of_the_pages_are_those_of_the_file(tmp_path):
    from losskernel.experiments.comparison import pages

    copies = [tmp_path / name for name in ("README.md", "results.md")]
    originals = [ROOT / "README.md", ROOT / "docs" / "results.md"]
    for copy, original in zip(copies, originals, strict=True):
        copy.write_text(original.read_text())
    pages(ROOT / "results" / "compare.csv", *copies)
    for copy, original in zip(copies, originals, strict=True):
        assert copy.read_text() == original.read_text()


def shell_commands(program: str) -> list[list[str]]:
    """Commands of the pages' shell blocks that begin with a program, without comments."""
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            lines = block.replace("\\\n", " ").splitlines()
            own = [line for line in lines if line.split()[:1] == [program]]
            found += [shlex.split(line, comments=True) for line in own]
    return found


@pytest.mark.parametrize("command", shell_commands("losskernel"), ids=" ".join)
def test_commands_of_the_pages_have_the_options_that_they_name(monkeypatch, command):
    called = []
    monkeypatch.setattr("losskernel.cli._run", lambda function, options: called.append(function))
    main(command[1:])
    assert len(called) == 1


def test_targets_of_make_that_the_pages_name_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    named = [command[1] for command in shell_commands("make")]
    assert {"all", "test", "verify"} <= set(named) <= set(targets)


def test_files_named_in_the_pages_exist():
    folders = "config|docs|envs|workflow|src|benchmarks|paper_figures|results/reference"
    named = {
        path
        for page in PAGES
        for path in re.findall(rf"`((?:{folders})/[\w./-]+)`", (ROOT / page).read_text())
    }
    assert len(named) > 20
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


# Of other sites; tests have no network, so that a new host is a line here that somebody looks at.
HOSTS = {
    "arxiv.org": r"/abs/\d{4}\.\d{5}(v\d+)?",
    "cs231n.stanford.edu": r"/tiny-imagenet-200\.zip",
    "dl.caffe.berkeleyvision.org": r"/\w+\.caffemodel",
    "github.com": r"/[\w-]+/[\w.-]+(/(blob|tree)/.+)?/?",
    "image-net.org": r"/[\w./-]*",
    "wordnet.princeton.edu": r"/[\w./-]*",
}


def test_links_to_other_sites_are_well_formed_and_to_known_ones():
    notebooks = [str(p.relative_to(ROOT)) for p in (ROOT / "docs/tutorials").glob("*.ipynb")]
    found = set()
    for page in (*PAGES, *notebooks, "config/README.md"):
        text = (ROOT / page).read_text()
        for address in re.findall(r"\w+://[^\s)>\]\"'`|\\\\]+", text):
            if not address.startswith("file://"):
                url = urlsplit(address.rstrip(".,;:"))
                assert url.scheme in ("http", "https") and url.netloc in HOSTS, (page, address)
                assert re.fullmatch(HOSTS[url.netloc], url.path or "/"), (page, address)
                found.add(url.netloc)
    assert found == set(HOSTS)


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_links_of_a_page_lead_to_files_and_headings(page):
    source = ROOT / page
    links = re.findall(r"\]\((?!\w+:)([^)#]*)#?([^)]*)\)", source.read_text())
    broken = []
    for file, heading in links:
        target = source.parent / file if file else source
        if not target.exists() or (heading and heading not in anchors(target)):
            broken.append(f"{file}#{heading}")
    assert broken == []


def functions_of(module: Path) -> set[str]:
    nodes = ast.parse(module.read_text()).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_functions_that_a_page_names_exist(page):
    missing = []
    for name in set(re.findall(r"`losskernel\.([\w.]+)`", (ROOT / page).read_text())):
        path = (ROOT / "src" / "losskernel").joinpath(*name.split("."))
        inside = path.parent.with_suffix(".py")
        found = path.is_dir() or path.with_suffix(".py").exists()
        if not found and not (inside.exists() and path.name in functions_of(inside)):
            missing.append(name)
    assert missing == []


def figures_of_the_architecture() -> list[tuple[str, str, str]]:
    text = (ROOT / "docs" / "architecture.md").read_text()
    row = r"^\| \[(\w+)\]\([^)]*\) \| `([^`]*)` \| `losskernel\.experiments\.([\w.]+)` \|"
    return re.findall(row, text, re.M)


@pytest.mark.parametrize("row", figures_of_the_architecture(), ids=lambda row: row[0])
def test_a_row_of_the_architecture_is_what_the_rules_say(row):
    figure, rules, function = row
    assert re.search(rf"^ *use rule \w+ as figure_{figure} with:", (ROOT / rules).read_text(), re.M)
    # A rule that is another's on other inputs has its function from there.
    assert any(f'"{function}"' in path.read_text() for path in (ROOT / rules).parent.iterdir())


def test_every_figure_has_its_row_and_its_caption():
    figures = {path.stem for path in (ROOT / "paper_figures").glob("*.png")}
    shown = set(re.findall(r"paper_figures/(\w+)\.png", (ROOT / "docs/figures.md").read_text()))
    assert figures == shown == {figure for figure, _, _ in figures_of_the_architecture()}
