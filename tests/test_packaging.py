"""The wheel holds the library, needs its core dependencies alone, and names a missing extra."""

import importlib.metadata
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement

from losskernel.errors import LossKernelError, needs

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_a_package_that_is_missing_names_its_extra():
    with pytest.raises(LossKernelError, match=r"'no_such'; pip install 'losskernel\[maps\]'"):
        with needs("maps"):
            import no_such  # noqa: F401


def test_every_extra_that_the_code_names_exists():
    named = {
        extra
        for path in (ROOT / "src").rglob("*.py")
        for extra in re.findall(r'\bneeds\("(\w+)"\)', path.read_text())
    }
    assert {"maps", "vision", "mislabel", "workflow"} == named
    assert named < set(PROJECT["optional-dependencies"])


def test_the_changelog_and_the_citation_tell_of_this_version():
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Wheel and source archive, made in a folder of its own from a copy without results."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT)
    for name in listed.decode().splitlines():
        if name.split("/")[0] in ("src", "tests", "docs") or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_file():
                (source / name).write_bytes((ROOT / name).read_bytes())
    code = f"from setuptools import build_meta as b; b.build_sdist({str(output)!r}); "
    code += f"b.build_wheel({str(output)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    return output


@pytest.mark.slow
def test_wheel_and_source_archive_hold_code_pages_types_and_valid_metadata(built):
    (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        found = Metadata.from_email(file.read(metadata), validate=True)
    tracked = (ROOT / "src" / "losskernel").rglob("*")
    wanted = {p for p in tracked if p.suffix in (".py", ".html", ".js", ".css", ".typed")}
    assert {str(p.relative_to(ROOT / "src")) for p in wanted} <= names
    assert found.description_content_type == "text/markdown" and "loss kernel" in found.description
    with tarfile.open(archive) as file:
        inside = {name.split("/", 1)[-1] for name in file.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= inside


def installed_with(requirements: list[str]) -> set[str]:
    """Names of the distributions that an installation of these requirements would bring."""
    found: set[str] = set()
    todo = [(Requirement(line), "") for line in requirements]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name not in found:
            found.add(name)
            lines = importlib.metadata.requires(name) or []
            todo += [(Requirement(line), "") for line in lines]
    return found


@pytest.fixture(scope="module")
def bare(built, tmp_path_factory) -> Path:
    """An environment with the wheel and, as links, what its core dependencies bring: no more."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    install = ["install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    for name in installed_with(PROJECT["dependencies"]):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files}:
            if top not in ("..", "__pycache__") and not (packages / top).exists():
                (packages / top).symlink_to(distribution.locate_file(top))
    return folder


def run(bare: Path, program: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [bare / "bin" / program, *arguments]
    environment = {"HOME": str(bare), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=bare, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_wheel_works_without_the_repository_and_without_extras(bare):
    example = re.search(r"```python\n(.*?)```", (ROOT / "docs/your-model.md").read_text(), re.S)
    code = f"{example[1]}\nimport sys\nprint(lk.__file__)\nassert 'sklearn' not in sys.modules"
    done = run(bare, "python", "-W", "error::FutureWarning", "-c", code)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).is_relative_to(bare)
    assert run(bare, "losskernel", "--version").stdout == f"losskernel {PROJECT['version']}\n"
    done = run(bare, "losskernel", "trace", "summary", "--trace", "trace.nc")
    assert done.returncode == 0 and "inputs 200" in done.stdout, done.stderr
    done = run(bare, "losskernel", "map", "--trace", "trace.nc", "--output", "map.html")
    assert done.returncode == 1 and "losskernel[maps]" in done.stderr.splitlines()[-1]
    done = run(bare, "losskernel", "workflow", "arithmetic.figures", "--help")
    assert done.returncode == 1 and "losskernel[workflow]" in done.stderr.splitlines()[-1]


def test_two_builds_of_the_environment_do_not_meet(tmp_path):
    (tmp_path / ".venv.building").mkdir()
    (tmp_path / ".venv").mkdir()
    call = ["bash", str(ROOT / "envs/create.sh")]
    ended = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "another build of .venv goes on here" in ended.stderr
    assert (tmp_path / ".venv").is_dir() and (tmp_path / ".venv.building").is_dir()
