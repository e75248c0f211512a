"""The notebooks run from top to bottom, small, and find what they say."""

from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"


def executed(name: str, tmp_path, monkeypatch, **sizes) -> dict:
    """The names that a notebook's cells leave behind, run in this process: no kernel to start."""
    nbformat = pytest.importorskip("nbformat", reason="needs the extra 'docs'")
    import matplotlib

    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for key, value in sizes.items():
        monkeypatch.setenv(f"TUTORIAL_{key.upper()}", str(value))
    namespace: dict = {"__name__": "__main__"}
    for cell in nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{name}.ipynb", "exec"), namespace)
    return namespace


def test_digits(tmp_path, monkeypatch):
    pytest.importorskip("bokeh", reason="needs the extra 'maps'")
    found = executed("digits", tmp_path, monkeypatch, inputs=200, draws=150)
    assert found["trace"].losses.shape == (2, 150, 200)
    assert found["spread"] > 2 * found["floor"]
    assert found["page"].read_text().startswith("<!DOCTYPE html>")
    aucs = {
        name: found["roc_auc_score"](found["wrong"], score)
        for name, score in found["scores"].items()
    }
    assert aucs["mean loss of the draws"] > 0.8
    # The law of the exercise, within a tenth.
    for draws, floor in found["floors"].items():
        assert floor * draws**0.5 == pytest.approx(1, abs=0.1)


def test_language_model(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="needs the extra 'docs'")
    found = executed("language_model", tmp_path, monkeypatch, steps=150, draws=30)
    assert found["trace"].losses.shape == (2, 30, 200)
    assert found["shared"] > 0.9 and found["within"] > found["across"] + 0.1


def test_notebooks_are_kept_without_output():
    nbformat = pytest.importorskip("nbformat", reason="needs the extra 'docs'")
    for path in TUTORIALS.glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs") and not cell.get("execution_count"), path.name
