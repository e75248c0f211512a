"""The kernels that experiment 2 compares on one set of inputs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from losskernel.errors import DataError, TraceError
from losskernel.kernel.control_variate import limit_kernel, normalize
from losskernel.kernel.estimate import Draws
from losskernel.sampling.probe import Probe
from losskernel.trace import LossTrace

SAMPLED = "loss kernel"
ALONE = "loss kernel, draws alone"
LIMIT = "exact limit"
LIMIT_K = "exact limit, not normalized"
FEATURES = "penultimate features"
NULL = "time-shifted null"


def left_out(draws: Draws, blocks: int) -> list[Draws]:
    """The draws that remain when the jackknife leaves out each part in turn.

    A part is a chain where there are at least ``blocks`` of them, else a stretch of time in all
    chains, one of ``blocks``: stretches of fewer chains than that leave more of the run.

    Raises:
        DataError: there are fewer draws than stretches.
    """
    chains, number, _ = draws.losses.shape
    if chains >= blocks:
        return [_chains(draws, np.arange(chains) != chain) for chain in range(chains)]
    if number < blocks:
        raise DataError(
            f"jackknife_blocks = {blocks}: {number} draws a chain do not make so many stretches; "
            "ask for fewer"
        )
    stretches = np.array_split(np.arange(number), blocks)
    return [draws.at(np.setdiff1d(np.arange(number), some)) for some in stretches]


def _chains(draws: Draws, keep: np.ndarray) -> Draws:
    linear = None if draws.linear is None else draws.linear[keep]
    return replace(draws, losses=draws.losses[keep], linear=linear)


@dataclass(frozen=True)
class Sources:
    """What a trace, its exact limit and the features of its inputs have to say about the inputs.

    Attributes:
        trace: the trace.
        draws: its losses, with the control variate if the limit is known.
        features: (input, input) cosine of penultimate features.
    """

    trace: LossTrace
    draws: Draws
    features: np.ndarray

    @classmethod
    def load(cls, trace: Path, features: Path, limit: Path | None) -> Sources:
        """Read the files; rows of the features are found by the names of the trace's inputs.

        Raises:
            TraceError: the limit belongs to other weights or inputs than the trace.
        """
        loaded = LossTrace.load(trace)
        return cls(
            loaded, _draws(loaded, limit), feature_kernel(features, loaded.coordinate("name"))
        )

    @property
    def labels(self) -> np.ndarray:
        return self.trace.coordinate("label")

    @cached_property
    def kernels(self) -> dict[str, np.ndarray]:
        """Similarity of every pair by each kernel; the limits only where gradients are known."""
        found = {SAMPLED: self.draws.r}
        if self.draws.known is not None:
            found[ALONE] = self.draws.alone.r
            found[LIMIT] = normalize(self.draws.known)
            found[LIMIT_K] = self.draws.known
        return found | {FEATURES: self.features}


def feature_kernel(features: Path, names: np.ndarray) -> np.ndarray:
    """Cosine of the features of the named inputs, (input, input)."""
    with np.load(features) as stored:
        position = {name: i for i, name in enumerate(stored["name"])}
        values = stored["features"][[position[name] for name in names]].astype(np.float64)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values @ values.T


def _draws(trace: LossTrace, limit: Path | None) -> Draws:
    if limit is None:
        return Draws(trace.losses)
    probe = json.loads(trace.attributes["probe"])
    with np.load(limit) as stored:
        for key in ("weights_sha256", "inputs_sha256"):
            if str(stored[key]) != trace.attributes[key]:
                raise TraceError(
                    f"{limit}: made with another {key} than the trace; make both from one model "
                    "and one set of images"
                )
        # The chain is stationary, and long against its relaxation.
        known = limit_kernel(stored["gram"], Probe.read(probe).free)
    return Draws(trace.losses, trace.dataset["linear"].values[~trace.diverged], known)
