"""Whether bfloat16 or TF32 may compute the losses: the kernel of the same draws in either."""

from __future__ import annotations

import json
from pathlib import Path

from losskernel.experiments.precision_statistics import compare_precisions
from losskernel.files import atomic_path
from losskernel.trace import LossTrace


def compare(
    reference: Path, traces: list[Path], output: Path, threshold: float = 0.999, blocks: int = 10
) -> None:
    """Write, as JSON, how the kernel of each trace differs from the reference's, and a verdict.

    The traces are of runs that differ in ``eval_precision`` alone. A precision is allowed only
    where the CKA of both K and R reaches the threshold.
    """
    base = LossTrace.load(reference)
    rows = [compare_precisions(base, LossTrace.load(path), threshold, blocks) for path in traces]
    about = ("device", "threads", "probe", "precision", "model", "image_size", "version_torch")
    found = {name: base.attributes[name] for name in about if name in base.attributes}
    # The attributes of a trace that was saved are NumPy's numbers.
    text = json.dumps({"trace": found, "precisions": rows}, indent=1, default=lambda n: n.item())
    with atomic_path(output) as temporary:
        temporary.write_text(text + "\n")
