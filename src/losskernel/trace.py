"""Loss traces: the loss of every input at every draw of every chain, with their provenance."""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from losskernel.errors import ConfigError, TraceError
from losskernel.files import atomic_path

FORMAT = 1
DIMENSIONS = ("chain", "draw", "input")
# Names of variables and dimensions, which a coordinate would overwrite.
_TAKEN = {*DIMENSIONS, "loss", "initial_loss", "batch_loss", "linear"}


def provenance() -> dict[str, str]:
    """Versions and machine that a trace was made with, as text attributes."""
    packages = {f"version_{name}": version(name) for name in ("torch", "numpy", "losskernel")}
    return {**packages, "python": platform.python_version(), "machine": platform.machine()}


@dataclass(frozen=True)
class LossTrace:
    """A loss trace as an :class:`xarray.Dataset` with a few guarantees.

    Variables: ``loss (chain, draw, input)`` float32, in the unit of the loss function (nats for
    cross-entropy), NaN from the draw at which a chain diverged; ``initial_loss (input)`` at the
    trained weights; ``batch_loss (chain, draw)``, the mean minibatch loss over the steps of a draw.
    Further variables and coordinates along ``input`` (a label, a task, a name) are the caller's.
    Attributes: settings of the probe and the sampler, seed, versions, hashes of weights and inputs.

    Raises:
        TraceError: on construction, if a variable, a dimension or a shape is not as above.
    """

    dataset: xr.Dataset

    def __post_init__(self) -> None:
        self.verify()

    @classmethod
    def build(
        cls,
        loss: np.ndarray,
        initial_loss: np.ndarray,
        batch_loss: np.ndarray,
        chain_ids: np.ndarray | list[int] | None = None,
        input_coords: dict[str, np.ndarray] | None = None,
        attributes: dict | None = None,
    ) -> LossTrace:
        """From arrays of the shapes in the class docstring; ``input_coords`` are per input.

        Raises:
            ConfigError: ``input_coords`` cannot be kept; see :func:`checked_coords`.
        """
        chains, draws, inputs = np.shape(loss)
        coords: dict = {
            "chain": np.arange(chains) if chain_ids is None else np.asarray(chain_ids),
            "draw": np.arange(draws),
            "input": np.arange(inputs),
        }
        for name, values in checked_coords(input_coords, inputs).items():
            coords[name] = ("input", values)
        variables = {
            "loss": (DIMENSIONS, np.asarray(loss, np.float32)),
            "initial_loss": ("input", np.asarray(initial_loss, np.float32)),
            "batch_loss": (DIMENSIONS[:2], np.asarray(batch_loss, np.float64)),
        }
        attrs = {"format": FORMAT, **provenance(), **(attributes or {})}
        return cls(xr.Dataset(variables, coords, attrs))

    @property
    def losses(self) -> np.ndarray:
        """Losses of the chains that did not diverge, ``(chain, draw, input)`` float32.

        Raises:
            TraceError: every chain diverged.
        """
        healthy = ~self.diverged
        if not healthy.any():
            raise TraceError(
                "every chain of the trace diverged; sample again with a smaller step size"
            )
        return self.dataset["loss"].values[healthy]

    @property
    def diverged(self) -> np.ndarray:
        """Which chains diverged, ``(chain,)`` bool: any of their losses is not finite."""
        return ~np.isfinite(self.dataset["loss"].values).all(axis=(1, 2))

    @property
    def initial_loss(self) -> np.ndarray:
        """Losses at the trained weights, ``(input,)``."""
        return self.dataset["initial_loss"].values

    @property
    def attributes(self) -> dict:
        """Settings and provenance."""
        return dict(self.dataset.attrs)

    @property
    def identity(self) -> str:
        """What the losses are of, as JSON, for files that are made from them."""
        kept = (*_IDENTITY, *_OF_CHAINS, "loss", "behavior", "seed", "burn_in", "steps_per_draw")
        found = {key: self.attributes[key] for key in kept if key in self.attributes}
        found["chains"] = self.dataset["chain"].values.tolist()
        return json.dumps(found, sort_keys=True, default=lambda value: value.item())

    def coordinate(self, name: str) -> np.ndarray:
        """A per-input coordinate such as ``label``, ``(input,)``.

        Raises:
            TraceError: the trace has no such coordinate.
        """
        if name not in self.dataset.coords:
            raise TraceError(f"the trace has no '{name}'; it has {sorted(self.dataset.coords)}")
        return self.dataset[name].values

    def verify(self) -> None:
        """Check variables, dimensions and shapes.

        Raises:
            TraceError: naming the first thing that is wrong.
        """
        expected = {"loss": DIMENSIONS, "initial_loss": ("input",), "batch_loss": ("chain", "draw")}
        for name, dims in expected.items():
            if name not in self.dataset:
                raise TraceError(f"not a loss trace: it has no variable '{name}'")
            if self.dataset[name].dims != dims:
                found = self.dataset[name].dims
                raise TraceError(f"not a loss trace: '{name}' has dimensions {found}, not {dims}")
        if 0 in self.dataset["loss"].shape:
            raise TraceError(f"an empty trace: {dict(self.dataset.sizes)}")

    def save(self, path: str | Path) -> None:
        """Write as compressed netCDF-4, atomically.

        Raises:
            LossKernelError: the file cannot be written.
        """
        # Grouping equal bytes of neighbouring floats (shuffle) is what makes zlib shrink them.
        packing = {"zlib": True, "complevel": 4, "shuffle": True}
        encoding = {
            name: packing for name, array in self.dataset.data_vars.items() if array.size > 1
        }
        # Encoded in memory first: on a full disk the HDF5 library itself crashes the process. Then
        # copied: the view on a buffer that xarray returns crashes Python 3.12.1 if it is collected
        # as garbage, as it is after an error.
        encoded = bytes(self.dataset.to_netcdf(engine="h5netcdf", encoding=encoding))
        with atomic_path(path) as temporary:
            temporary.write_bytes(encoded)

    @classmethod
    def load(cls, path: str | Path) -> LossTrace:
        """Read a saved trace whole into memory.

        Raises:
            TraceError: the file is missing, damaged, or not a loss trace.
        """
        path = Path(path)
        if not path.is_file():
            raise TraceError(f"{path}: no such trace; sample it first or correct the path")
        try:
            with xr.open_dataset(path, engine="h5netcdf") as dataset:
                dataset = dataset.load()
        except Exception as error:  # h5py raises many types for a damaged file
            raise TraceError(f"{path}: unreadable as a trace; sample it again") from error
        try:
            return cls(dataset)
        except TraceError as error:
            raise TraceError(f"{path}: {error}") from error


def checked_coords(given: Mapping[str, ArrayLike] | None, inputs: int) -> dict[str, np.ndarray]:
    """Arrays ``(input,)`` by name, if a trace can keep and save them.

    Args:
        given: by name; None for none.
        inputs: number of inputs.

    Raises:
        ConfigError: a name is taken, an array has another shape, or one of them cannot be saved,
            such as a file name that is not UTF-8.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(
            f"input_coords: a {type(given).__name__}; give a dictionary of a name and one value an "
            "input"
        )
    found = {}
    for name, values in (given or {}).items():
        if name in _TAKEN:
            raise ConfigError(f"input_coords: a trace has a '{name}' already; choose another name")
        try:
            array = np.asarray(values)
            if array.shape == (inputs,):
                # Saving is the one sure test of what can be saved. Where it warns, of a name with
                # a space, the coordinate would be none any more after loading.
                with warnings.catch_warnings(action="error", category=xr.SerializationWarning):
                    xr.Dataset(coords={name: ("input", array)}).to_netcdf(engine="h5netcdf")
        except Exception as error:  # xarray, h5py and PyTorch raise many types
            said = " ".join(str(error).encode("utf-8", "backslashreplace").decode().split())
            raise ConfigError(
                f"input_coords: {name!r} cannot be saved ({said}); give numbers or text in memory, "
                "under a plain name"
            ) from error
        if array.shape != (inputs,):
            raise ConfigError(
                f"input_coords: {name!r} has shape {array.shape} for {inputs} inputs; give one "
                "value an input"
            )
        found[name] = array
    return found


# What must agree for traces to be draws of one probe distribution on the same inputs.
_IDENTITY = ("probe", "parameters", "weights_sha256", "inputs_sha256")
# And of chains, which follow the loss of their data.
_OF_CHAINS = ("data_sha256", "data_size", "batch_size", "steps_per_draw", "burn_in")


def concatenate(traces: list[LossTrace], dimension: str = "chain") -> LossTrace:
    """Join traces of the same probe and inputs along ``chain`` (or ``draw``).

    Raises:
        TraceError: they differ in probe settings, weights, inputs, loss function, what the model
            computes, training data, batch size, burn-in, steps a draw or, along ``chain``, draws
            (along ``draw``, chains), repeat a chain (a seed), are chains of SGLD to be joined along
            ``draw``, or there are none.
    """
    if not traces:
        raise TraceError("no traces to join; give at least one")
    first = traces[0].attributes
    for other in (trace.attributes for trace in traces[1:]):
        # Of traces from before behavior was kept, what one lacks is not compared.
        told = "behavior" in first and "behavior" in other
        of_chains = [key for key in _OF_CHAINS if told or (key in first and key in other)]
        for key in (*_IDENTITY, *of_chains):
            if first.get(key) != other.get(key):
                raise TraceError(
                    f"traces differ in {key} ({first.get(key)}, {other.get(key)}); "
                    "join only draws of one probe distribution"
                )
        if not behave_alike(first.get("behavior"), other.get("behavior")):
            raise TraceError(
                "traces differ in what the model or the loss computes from the same weights "
                f"({first['behavior']}, {other['behavior']}); join only draws of one"
            )
        if _other_loss(first.get("loss", ""), other.get("loss", "")):
            raise TraceError(
                f"traces differ in their loss function ({first['loss']}, {other['loss']}); join "
                "only draws of one"
            )
    if dimension == "draw" and json.loads(first.get("probe", "{}")).get("step_size"):
        raise TraceError(
            "traces of chains that do not go on from each other make no longer chain; give each "
            "run chain_ids of its own and join along 'chain', or continue one run's journal"
        )
    seeds = [trace.attributes.get("seed") for trace in traces]
    if dimension == "draw" and None not in seeds and len(set(seeds)) < len(seeds):
        raise TraceError(
            f"traces repeat the seed {seeds[0]}, and with it their draws; to add draws to a run, "
            "continue its journal"
        )
    for name in (name for name in DIMENSIONS if name != dimension):
        for trace in traces[1:]:
            here, there = traces[0].dataset.indexes[name], trace.dataset.indexes[name]
            if not here.equals(there):
                raise TraceError(
                    f"traces differ in their {name}s ({len(here)} and {len(there)} of them); "
                    f"to join along '{dimension}' they must be the same"
                )
    joined = xr.concat(
        [trace.dataset for trace in traces],
        dimension,
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="exact",
        combine_attrs="override",
    )
    if dimension == "draw":
        joined = joined.assign_coords(draw=np.arange(joined.sizes["draw"]))
    elif len(np.unique(joined["chain"])) != joined.sizes["chain"]:
        raise TraceError("traces repeat a chain; give each its own chain number")
    return LossTrace(joined)


def _other_loss(first: str, second: str) -> bool:
    """Whether two losses differ; by name alone for those of this library, whose code may change.

    Of the name the last part alone counts: modules of this library have moved.
    """
    if not (first and second):  # a trace from before it was kept
        return False
    if first.startswith("losskernel.") and second.startswith("losskernel."):
        first, second = (loss.split()[0].rpartition(".")[2] for loss in (first, second))
    return first != second


def settings_attribute(settings: dict) -> str:
    """Settings as one line of JSON, for a trace attribute."""
    return json.dumps(settings, sort_keys=True)


def behave_alike(first: str | None, second: str | None) -> bool:
    """Whether two fingerprints of what is computed agree within rounding, or one is not known.

    Args:
        first, second: from :func:`losskernel.sampling.checks.check_losses`.
    """
    if not (first and second):  # of a run from before it was kept
        return True
    here, there = json.loads(first), json.loads(second)
    for name in here.keys() & there.keys() - {"tolerance"}:
        one, other = (np.atleast_1d(np.asarray(of[name], float)) for of in (here, there))
        if one.shape != other.shape:
            return False
        allowed = here["tolerance"] * np.fmax(np.abs(one), np.nanmean(np.abs(one)))
        if (~(np.abs(one - other) <= allowed) & ~(np.isnan(one) & np.isnan(other))).any():
            return False
    return True
