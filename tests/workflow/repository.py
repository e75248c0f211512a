"""A copy of the repository in which Snakemake runs, with the copy's own code."""

import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from prefork import Prefork

ROOT = Path(__file__).resolve().parents[2]
HIERARCHY = "results/reference/imagenet/hierarchy.json"
SMOKE = ("--cores", "1", "--configfile", "config/smoke.yaml")


@cache
def programs() -> Path:
    """The folder of ``losskernel`` and ``snakemake`` that need not import their packages."""
    folder = Path(tempfile.mkdtemp())
    prefork = Prefork(folder)
    atexit.register(shutil.rmtree, folder)
    atexit.register(prefork.close)
    return prefork.programs


class Copy:
    """The files that a run needs, in a folder of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in ("config", "envs", "workflow", "src"):
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=skipped)
        (folder / "profiles").symlink_to("workflow/profiles")
        (folder / HIERARCHY).parent.mkdir(parents=True)
        for name in ("Snakefile", HIERARCHY):
            shutil.copy2(ROOT / name, folder / name)

    def popen(self, *arguments: str, forked: bool = True) -> subprocess.Popen:
        """Start Snakemake with the copy's ``losskernel`` and one core; its output in one stream.

        Args:
            arguments: of Snakemake.
            forked: see :mod:`prefork`; False for jobs that are processes below Snakemake's own.
        """
        places = [programs()] if forked else []
        places += [Path(sys.executable).parent, os.environ["PATH"]]
        return subprocess.Popen(
            [places[0] / "snakemake", *arguments],
            cwd=self.folder,
            env=os.environ
            | {
                "PATH": os.pathsep.join(map(str, places)),
                "PYTHONPATH": str(self.folder / "src"),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def snakemake(self, *arguments: str, forked: bool = True) -> tuple[int, str]:
        """Run Snakemake; exit status and all it said."""
        process = self.popen(*arguments, forked=forked)
        said, _ = process.communicate()
        return process.returncode, said

    def planned(self, *arguments: str) -> set[str]:
        """Rules that a dry run would run."""
        status, said = self.snakemake("all", "--dry-run", *arguments)
        assert status == 0, said
        return set(re.findall(r"^(?:local)?rule (\w+):$", said, re.MULTILINE)) - {"all"}
