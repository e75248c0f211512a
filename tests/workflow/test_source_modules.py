"""Which source files stand behind a function, read from import statements."""

import pytest
import source_modules
from source_modules import sources


@pytest.fixture
def package(tmp_path, monkeypatch):
    files = {
        "__init__.py": "",
        "maths.py": "import numpy\nfrom losskernel import errors\n",
        "errors.py": "",
        "plots.py": "from losskernel.maths import mean\n",
        "lazy.py": "",
        "pages/page.py": "STYLE = 'shared.css'\n",
        "pages/page.html": "",
        "pages/shared.css": "",
        "pages/other.html": "",
        "models/__init__.py": "",
        "models/net.py": "import losskernel.errors\n",
        "experiment.py": (
            "from losskernel import maths\n"
            "from losskernel.plots import draw\n"
            "from losskernel.models.net import Net\n"
            "TABLE = {'net': Net}\n"
            "ANNOTATED: dict = {'draw': draw}\n"
            "def alone():\n    return 1\n"
            "def direct():\n    return maths.mean()\n"
            "def through_helper():\n    return _helper()\n"
            "def through_constant():\n    return TABLE\n"
            "def through_annotated():\n    return ANNOTATED\n"
            "def late():\n    from losskernel.lazy import thing\n    return thing\n"
            "def through_class():\n    return Thing()\n"
            "def shadowed(direct, *, late=None):\n    draw = direct\n    return draw, late\n"
            "def browse():\n    from losskernel.pages import page\n    return page\n"
            "def with_default(value=TABLE):\n    return value\n"
            "def _helper():\n    return draw()\n"
            "class Thing:\n    def method(self):\n        return maths\n"
        ),
    }
    for name, text in files.items():
        path = tmp_path / "src/losskernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(source_modules, "ROOT", tmp_path / "src")


@pytest.mark.parametrize(
    ("function", "modules"),
    [
        ("alone", []),
        ("direct", ["errors", "maths"]),
        ("through_helper", ["errors", "maths", "plots"]),
        ("through_constant", ["errors", "models/net"]),
        ("through_annotated", ["errors", "maths", "plots"]),
        ("late", ["lazy"]),
        ("through_class", ["errors", "maths"]),
        ("shadowed", []),
        ("with_default", ["errors", "models/net"]),
    ],
)
def test_a_function_takes_what_it_uses_and_all_behind_that(package, function, modules):
    expected = sorted(f"src/losskernel/{name}.py" for name in ["experiment", *modules])
    assert sources(f"experiment.{function}") == expected


@pytest.mark.parametrize("function", ["nowhere.train", "experiment.missing"])
def test_a_name_that_does_not_exist_is_an_error(package, function):
    with pytest.raises(ValueError, match="no (module|function)"):
        sources(function)


def test_a_page_takes_its_templates(package):
    found = sources("experiment.browse")
    expected = ("experiment.py", "pages/page.html", "pages/page.py", "pages/shared.css")
    assert found == [f"src/losskernel/{name}" for name in expected]


def test_the_map_in_the_browser_depends_on_its_script_and_not_on_that_of_suspects():
    files = sources("experiments.imagenet.analyze.browse")
    shown = [name.removeprefix("src/losskernel/pages/") for name in files if "/pages/" in name]
    assert {"map.html", "map.js", "page.css", "page.js"} <= set(shown)
    assert not [name for name in shown if name.startswith("suspects")]


def test_the_analysis_of_a_trace_does_not_depend_on_the_models():
    files = sources("experiments.imagenet.analyze.analyze")
    assert "src/losskernel/semantics/lift.py" in files
    assert not [name for name in files if "/models/" in name or name.endswith("sampling/sample.py")]
    assert "src/losskernel/models/loader.py" in sources("experiments.imagenet.sample.kernel")
    assert "src/losskernel/semantics/lift.py" not in sources("experiments.imagenet.sample.kernel")
