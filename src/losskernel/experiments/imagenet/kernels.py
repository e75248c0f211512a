"""The kernels that experiment 2 compares on one set of inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from losskernel.errors import TraceError
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.stored import StoredKernel

LIMIT = "exact limit"
FEATURES = "features"


def name_of(gamma: float) -> str:
    """What a kernel of the probe is called in tables and figures."""
    return f"γ = {gamma:,.0f}"


@dataclass(frozen=True)
class Sources:
    """Kernels of the same inputs: at several localizations, their limit, and of the features.

    Attributes:
        stored: of each localization, the largest first.
        headline: the localization that the claims are judged at.
        gram: Gram matrix of the gradients at the trained weights, ``(input, input)``, or None.
        features: cosine of centered penultimate features, ``(input, input)``.
    """

    stored: tuple[StoredKernel, ...]
    headline: float
    gram: NDArray | None
    features: NDArray

    @classmethod
    def load(
        cls, kernels: list[Path], features: Path, limit: Path | None, headline: float | None
    ) -> Sources:
        """Read the files; rows of the features are found by the names of the inputs.

        Without a ``headline`` it is the largest gamma.

        Raises:
            TraceError: kernels or limit are of other inputs or weights than each other, or none of
                the kernels is at ``headline``.
        """
        loaded = sorted((StoredKernel.load(path) for path in kernels), key=lambda k: -k.gamma)
        first = loaded[0]
        for other, path in zip(loaded, kernels, strict=True):
            if not np.array_equal(other.coordinates["name"], first.coordinates["name"]):
                raise TraceError(f"{path}: of other inputs than {kernels[0]}; make both again")
        headline = first.gamma if headline is None else headline
        if headline not in {kernel.gamma for kernel in loaded}:
            raise TraceError(
                f"no kernel at gamma = {headline:g}, the headline; add it to the probes"
            )
        gram = None if limit is None else _gram(limit, first)
        names = first.coordinates["name"]
        similarity = feature_kernel(features, names, first.attributes["inputs_sha256"])
        return cls(tuple(loaded), headline, gram, similarity)

    @property
    def labels(self) -> NDArray:
        return self.stored[0].coordinates["label"]

    @property
    def names(self) -> NDArray:
        return self.stored[0].coordinates["name"]

    @property
    def main(self) -> StoredKernel:
        """The kernel of the headline."""
        return next(kernel for kernel in self.stored if kernel.gamma == self.headline)

    def at(self, name: str) -> StoredKernel | None:
        """The kernel of that name, if it is one of the probe."""
        return next((kernel for kernel in self.stored if name_of(kernel.gamma) == name), None)

    @cached_property
    def kernels(self) -> dict[str, NDArray]:
        """Similarity of every pair by each kernel, the limit only where gradients are known."""
        found = {name_of(kernel.gamma): kernel.r for kernel in self.stored}
        if self.gram is not None:
            found[LIMIT] = normalize(self.gram)
        return found | {FEATURES: self.features}

    @property
    def variances(self) -> dict[str, NDArray]:
        """Self-covariances, ``(input,)``, of the kernels that have them."""
        found = {name_of(kernel.gamma): kernel.self_covariance for kernel in self.stored}
        return found if self.gram is None else found | {LIMIT: np.diag(self.gram)}


def feature_kernel(features: Path, names: NDArray, inputs_sha256: str) -> NDArray:
    """Cosine of the features of the named inputs, (input, input), their mean taken off.

    With the mean all cosines are positive, and "most opposed" means nothing. ``inputs_sha256`` is
    the fingerprint of the inputs that something else was computed from.

    Raises:
        TraceError: the features are of other inputs, as far as their file tells.
    """
    with np.load(features) as stored:
        if str(stored.get("inputs_sha256", inputs_sha256)) != inputs_sha256:
            raise TraceError(
                f"{features}: made with other images than the kernel or the limit beside it; make "
                "them from one manifest"
            )
        position = {name: i for i, name in enumerate(stored["name"])}
        values = stored["features"][[position[name] for name in names]].astype(np.float64)
    values -= values.mean(axis=0)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values @ values.T


def _gram(limit: Path, kernel: StoredKernel) -> NDArray:
    with np.load(limit) as stored:
        for key in ("weights_sha256", "inputs_sha256"):
            if str(stored[key]) != kernel.attributes[key]:
                raise TraceError(
                    f"{limit}: made with another {key} than the kernels; make both from one model "
                    "and one set of images"
                )
        return stored["gram"]
