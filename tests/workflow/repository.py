"""A copy of the repository in which Snakemake runs, with the copy's own code."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HIERARCHY = "results/reference/imagenet/hierarchy.json"
SMOKE = ("--cores", "1", "--configfile", "config/smoke.yaml")


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

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which `losskernel` is the copy's and uses one core."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {
            "PATH": path,
            "PYTHONPATH": str(self.folder / "src"),
            "OMP_NUM_THREADS": "1",
        }

    def popen(self, *arguments: str) -> subprocess.Popen:
        """Start Snakemake; both output streams in one."""
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def snakemake(self, *arguments: str) -> tuple[int, str]:
        """Run Snakemake; exit status and all it said."""
        process = self.popen(*arguments)
        said, _ = process.communicate()
        return process.returncode, said

    def planned(self, *arguments: str) -> set[str]:
        """Rules that a dry run would run."""
        status, said = self.snakemake("all", "--dry-run", *arguments)
        assert status == 0, said
        return set(re.findall(r"^(?:local)?rule (\w+):$", said, re.MULTILINE)) - {"all"}
