"""The example of the README runs as printed."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_python_example_of_the_readme_runs():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    namespace: dict = {}
    exec(compile(code, "README.md", "exec"), namespace)
    trace = namespace["trace"]
    inputs = trace.losses.shape[2]
    assert trace.losses.shape[:2] == (4, 200)
    assert namespace["r"].shape == (inputs, inputs)
    assert namespace["neighbors"].shape == (inputs, 5)
    # The loss of an input that is answered with certainty rounds to 0 at every draw.
    moves = trace.losses.reshape(-1, inputs).std(axis=0) > 0
    assert moves.mean() > 0.9
    assert ((namespace["variances"] > 0) == moves).all()


def test_table_of_the_readme_is_that_of_the_file(tmp_path):
    from losskernel.experiments.compare import readme

    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    readme(ROOT / "results" / "compare.csv", copy)
    assert copy.read_text() == (ROOT / "README.md").read_text()
