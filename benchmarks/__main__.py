"""Run all benchmarks, or those named, each in a process of its own: ``python -m benchmarks``."""

import subprocess
import sys

from benchmarks.harness import RESULTS, page

NAMES = sorted(
    path.stem
    for path in RESULTS.parent.glob("*.py")
    if path.stem not in ("__init__", "__main__", "harness")
)

options = [argument for argument in sys.argv[1:] if argument not in NAMES]
chosen = [name for name in NAMES if name in sys.argv[1:]] or NAMES
failed = [
    name
    for name in chosen
    if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options]).returncode
]
(RESULTS / "README.md").write_text(page())
if failed:
    sys.exit(f"failed: {', '.join(failed)}")
