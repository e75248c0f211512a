"""The kernels of one network along its training, from what experiment 5 sampled.

Four kernels: the loss kernel under two rules for the probe, with its control variate, and as
baselines the cosine of loss gradients (the loss kernel in the limit of high localization) and of
penultimate features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from losskernel.errors import TraceError
from losskernel.kernel.control_variate import best_coefficient, limit_kernel
from losskernel.kernel.estimate import Draws
from losskernel.sampling.probe import Probe
from losskernel.trace import LossTrace

SAMPLED = {"fixed": "loss kernel, fixed gamma", "rise": "loss kernel, fixed rise"}
GRADIENTS, FEATURES = "gradient cosine", "feature cosine"


@dataclass(frozen=True)
class Kernel:
    """One kernel at one checkpoint.

    Attributes:
        exact: R, ``(input, input)``, of a kernel that is not sampled.
        draws: what R is estimated from, else.
    """

    exact: np.ndarray | None = None
    draws: Draws | None = None

    @cached_property
    def similarity(self) -> np.ndarray:
        """R, ``(input, input)``."""
        return self.exact if self.draws is None else self.draws.r

    def without(self, blocks: int) -> list[np.ndarray]:
        """R without each block of consecutive draws; empty for an exact kernel."""
        if self.draws is None:
            return []
        number = np.arange(self.draws.losses.shape[1])
        parts = np.array_split(number, min(blocks, len(number) - 1))
        return [self.draws.at(np.setdiff1d(number, part)).r for part in parts]

    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Two estimates of R from disjoint draws; of an exact kernel twice the same."""
        if self.draws is None:
            return self.similarity, self.similarity
        first, second = self.draws.independent_halves()
        return first.r, second.r


@dataclass(frozen=True)
class Checkpoint:
    """The files of one checkpoint of one network."""

    network: str
    step: int
    state: dict
    traces: dict[str, LossTrace]  # by rule

    @property
    def wnids(self) -> np.ndarray:
        return self.traces["fixed"].coordinate("wnid")

    @property
    def gram(self) -> np.ndarray:
        norms = self.state["norms"].astype(float)
        return _full(self.state["cosine"]) * np.outer(norms, norms)

    def kernels(self, seed: int) -> tuple[dict[str, Kernel], list[dict]]:
        """Every kernel by name, and rows of facts on how they were sampled.

        Args:
            seed: of the shifts in time behind the noise floor.
        """
        found, facts = {}, []
        key = {"network": self.network, "step": self.step}
        for rule, name in SAMPLED.items():
            trace = self.traces[rule]
            probe = Probe.read(trace.attributes["probe"])
            known = limit_kernel(self.gram, probe.free)
            linear = trace.dataset["linear"].values[~trace.diverged]
            coefficient = best_coefficient(trace.losses, linear)
            draws = Draws(trace.losses, coefficient * linear, coefficient**2 * known)
            found[name] = Kernel(draws=draws)
            means = trace.losses.mean(axis=(0, 2), dtype=float)
            early, late = np.array_split(means, 2)
            off = ~np.eye(len(known), dtype=bool)
            numbers = {
                "gamma": probe.gamma,
                "rise": means.mean() - trace.initial_loss.mean(dtype=float),
                "drift": late.mean() - early.mean(),
                "coefficient": coefficient,
                "linear_share": draws.linear_share,
                "R_sd": found[name].similarity[off].std(),
                "noise_floor": draws.null(seed)[off].std(),
            }
            facts += [
                key | {"kernel": name, "statistic": n, "value": v} for n, v in numbers.items()
            ]
        found[GRADIENTS] = Kernel(_full(self.state["cosine"]))
        features = self.state["features"].astype(float)
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        features = np.divide(features, norms, out=np.zeros_like(features), where=norms > 0)
        found[FEATURES] = Kernel(features @ features.T)
        accuracy = json.loads(str(self.state["accuracy"]))
        facts += [
            key | {"kernel": "network", "statistic": n, "value": v} for n, v in accuracy.items()
        ]
        return found, facts


def _full(triangle: np.ndarray) -> np.ndarray:
    """A symmetric matrix from its lower triangle, row by row, ones on the diagonal."""
    n = int((2 * len(triangle)) ** 0.5)
    matrix = np.zeros((n, n))
    matrix[np.tril_indices(n)] = triangle
    matrix = np.tril(matrix, -1)
    return np.clip(matrix + matrix.T + np.eye(n), -1, 1)


def read_network(states: Sequence[Path], traces: Sequence[Path]) -> list[Checkpoint]:
    """The checkpoints of one network by step.

    Args:
        states: what :func:`losskernel.experiments.development.sample` wrote, one a checkpoint.
        traces: its traces, one a checkpoint and rule for the probe.

    Raises:
        TraceError: a trace is missing or does not belong to its checkpoint's file, the inputs of
            two checkpoints differ, or they are of several networks.
    """
    by_key: dict[tuple[str, int], dict[str, LossTrace]] = {}
    for path in traces:
        trace = LossTrace.load(path)
        attributes = trace.attributes
        key = (str(attributes["network"]), int(attributes["step"]))
        by_key.setdefault(key, {})[attributes["rule"]] = trace
    found = []
    for path in states:
        with np.load(path) as stored:
            state = dict(stored)
        key = (str(state["network"]), int(state["step"]))
        of_key = by_key.get(key, {})
        for rule in SAMPLED:
            if rule not in of_key:
                raise TraceError(f"{path}: there is no trace of rule '{rule}' beside it")
            if of_key[rule].attributes["weights_sha256"] != str(state["weights_sha256"]):
                raise TraceError(f"{path}: of other weights than the trace of rule '{rule}'")
        found.append(Checkpoint(*key, state, of_key))
    found.sort(key=lambda checkpoint: checkpoint.step)
    names = found[0].traces["fixed"].coordinate("name")
    for other in found:
        if other.network != found[0].network:
            raise TraceError(
                f"checkpoints of two networks, {found[0].network} and {other.network}; give one's"
            )
        if not np.array_equal(names, other.traces["fixed"].coordinate("name")):
            raise TraceError(
                f"network {other.network}, step {other.step}: other probe inputs than those of "
                f"{found[0].network}, {found[0].step}; sample all with the same settings"
            )
    return found
