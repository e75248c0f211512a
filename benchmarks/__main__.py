"""Run all benchmarks, or those named, each in a process of its own: ``python -m benchmarks``."""

import subprocess
import sys

from benchmarks.harness import RESULTS, page

NAMES = (
    "devinterp_sampler",
    "inception_evaluation",
    "kernel_neighbors",
    "linear_limit",
    "per_sample_gradients",
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
