"""The kernels of one network along its training, from what experiment 5 sampled.

Four kernels: the loss kernel under two rules for the probe, and as baselines the cosine of loss
gradients (the loss kernel in the limit of high localization) and of penultimate features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from losskernel.errors import TraceError
from losskernel.files import read_npz
from losskernel.kernel.stored import StoredKernel, square

SAMPLED = {"fixed": "loss kernel, fixed gamma", "rise": "loss kernel, fixed rise"}
GRADIENTS, FEATURES = "gradient cosine", "feature cosine"


@dataclass(frozen=True)
class Kernel:
    """One kernel at one checkpoint.

    Attributes:
        r: R, ``(input, input)``.
        left_out: R without one group of pairs of draws in turn; empty for an exact kernel.
    """

    r: np.ndarray
    left_out: Sequence[np.ndarray] = ()


@dataclass(frozen=True)
class Checkpoint:
    """The files of one checkpoint of one network."""

    network: str
    step: int
    state: dict
    stored: dict[str, StoredKernel]  # by rule

    def of_inputs(self, name: str) -> np.ndarray:
        """A coordinate of the probe inputs, ``(input,)``: ``wnid`` or ``name``."""
        return self.stored["fixed"].coordinates[name]

    def kernels(self) -> dict[str, Kernel]:
        """Every kernel by name."""
        found = {
            name: Kernel(self.stored[rule].r, self.stored[rule].left_out)
            for rule, name in SAMPLED.items()
        }
        found[GRADIENTS] = Kernel(square(self.state["cosine"], 1.0))
        features = self.state["features"].astype(float)
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        features = np.divide(features, norms, out=np.zeros_like(features), where=norms > 0)
        found[FEATURES] = Kernel(features @ features.T)
        return found

    def facts(self) -> list[dict]:
        """Rows on how the kernels were sampled, and on the network."""
        numbers = {"network": json.loads(str(self.state["accuracy"]))}
        for rule, name in SAMPLED.items():
            one = self.stored[rule]
            numbers[name] = {
                "gamma": one.gamma,
                "rise": one.rise[0],
                "rise_error": one.rise[1],
                "linear_share": one.attributes["linear_share"],
                "reliability": one.reliability[1],
            }
        key = {"network": self.network, "step": self.step}
        return [
            key | {"kernel": kernel, "statistic": name, "value": value}
            for kernel, own in numbers.items()
            for name, value in own.items()
        ]


def read_network(states: Sequence[Path], kernels: Sequence[Path]) -> list[Checkpoint]:
    """The checkpoints of one network by step.

    Args:
        states: what :func:`losskernel.experiments.development.sample` wrote, one a checkpoint.
        kernels: its kernels, one a checkpoint and rule for the probe.

    Raises:
        TraceError: a kernel is missing or does not belong to its checkpoint's file, the inputs of
            two checkpoints differ, or they are of several networks.
    """
    by_key: dict[tuple[str, int], dict[str, StoredKernel]] = {}
    for path in kernels:
        kernel = StoredKernel.load(path)
        known = kernel.attributes
        by_key.setdefault((known["network"], known["step"]), {})[known["rule"]] = kernel
    found = []
    for path in states:
        state = read_npz(path)
        key = (str(state["network"]), int(state["step"]))
        of_key = by_key.get(key, {})
        for rule in SAMPLED:
            if rule not in of_key:
                raise TraceError(f"{path}: there is no kernel of rule '{rule}' beside it")
            if of_key[rule].attributes["weights_sha256"] != str(state["weights_sha256"]):
                raise TraceError(f"{path}: of other weights than the kernel of rule '{rule}'")
        found.append(Checkpoint(*key, state, of_key))
    found.sort(key=lambda checkpoint: checkpoint.step)
    names = found[0].of_inputs("name")
    for other in found:
        if other.network != found[0].network:
            raise TraceError(
                f"checkpoints of two networks, {found[0].network} and {other.network}; give one's"
            )
        if not np.array_equal(names, other.of_inputs("name")):
            raise TraceError(
                f"network {other.network}, step {other.step}: other probe inputs than those of "
                f"{found[0].network}, {found[0].step}; sample all with the same settings"
            )
    return found
