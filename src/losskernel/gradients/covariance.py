r"""The loss kernel of the Gaussian probe from gradients instead of losses.

For ``X ~ N(w*, I / gamma)`` and smooth losses f and g (Houdre and Perez-Abreu 1995, *Covariance
identities and inequalities for functionals on Wiener and Poisson spaces*, Annals of Probability 23,
400)::

    Cov(f(X), g(X)) = (1 / gamma) int_0^1 c(t) dt,     c(t) = E[grad f(X) . grad g(X_t)],

where ``X`` and ``X_t`` are both draws of the probe, with correlation ``t``. A pair of draws gives a
product over all weights for every two inputs, where a draw of losses gives one number; so the error
of an entry is in proportion to the entry, and not to the standard deviations of the two losses.
``c(0) / gamma``, the Gram matrix of the mean gradients, is the *linear part* of the kernel: what
remains as gamma grows, where it is the Gram matrix at ``w*``.

The integral is taken by the rule of Gauss and Lobatto, whose n nodes ``0 = t_1 < .. < t_n = 1``
have positive weights v and which is exact for losses that are polynomials of degree ``2 n - 2`` or
less along the path: Simpson's rule for three nodes. Where higher degrees rule it takes c for larger
than it is: on a small arithmetic network far outside of its basin, with a linear share of 0.19,
three nodes give variances 52 % too large and six 3 % (error 3 %). Pairs ``s = 1 .. S`` of draws,
with independent standard normal a and b, ::

    A_s = w* + a / sqrt(gamma),   B_s = w* + (t a + sqrt(1 - t^2) b) / sqrt(gamma),

have correlation t, the inner nodes in turn, and with ``G(w)`` the ``(input, parameter)`` matrix of
gradients ::

    c(1)  = mean of (G(A) G(A)^T + G(B) G(B)^T) / 2
    c(t)  = mean of (G(A) G(B)^T + G(B) G(A)^T) / 2 over the pairs of correlation t
    c(0)  = (T T^T - sum_s U_s U_s^T) / (4 S^2 - 4 S),   U_s = G(A_s) + G(B_s),   T = sum_s U_s
    K     = sum_k v_k c(t_k) / gamma.

For any Gaussian ``N(w*, Sigma)`` the same holds with ``Sigma`` between the gradients in place of
``1 / gamma``: see :mod:`losskernel.gradients.laplace`.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from losskernel.errors import ConfigError, DataError, LossKernelError, TraceError
from losskernel.files import atomic_path, locked, write_json
from losskernel.gradients.laplace import Laplace
from losskernel.gradients.per_sample import Gradients
from losskernel.gradients.sketch import DEFAULT_WIDTH, Fold, Nothing
from losskernel.gradients.sources import GradientSource, make_source
from losskernel.kernel.control_variate import normalize
from losskernel.kernel.jackknife import jackknife_error
from losskernel.kernel.stored import rise_over_pairs
from losskernel.progress import bar
from losskernel.sampling.ambient import own_torch_settings
from losskernel.sampling.engines import LossPerInput
from losskernel.sampling.fingerprints import loss_fingerprint
from losskernel.sampling.inputs import Inputs, hidden_state, state_fingerprint
from losskernel.sampling.parameters import layout_fingerprint, select_parameters
from losskernel.sampling.probe import nonnegative, whole
from losskernel.sampling.sample import Data, cross_entropy
from losskernel.seeds import fill_draw
from losskernel.trace import behave_alike

log = logging.getLogger(__name__)

_BLOCK_BYTES = 2**28  # of columns of gradients that are multiplied at once
_WITNESSES = 8  # inputs whose losses at w* tell whether a journal is of this very model


@dataclass(frozen=True)
class GradientCovariance:
    """The loss kernel as :func:`gradient_covariance` estimates it.

    Attributes:
        gamma, n_beta: of the probe.
        pairs: number of pairs of draws.
        kernel: K, ``(input, input)`` in units of the loss squared, float64.
        linear: ``c(0) / gamma``, the part of K that the mean gradients explain.
        left_out: K without one group of pairs in turn, ``(group, input, input)``.
        linear_left_out: the same for ``linear``.
        halves: K from either half of the pairs, ``(2, input, input)``.
        losses: at the draws, ``(draw, input)`` float32, A and B of each pair in turn. The two
            draws of a pair depend on each other.
        initial_losses: at the trained weights, ``(input,)``.
        nodes: of the quadrature.
        width: columns of the sketch; the number of parameters if nothing was folded.
        engine: what took the gradients, see :func:`losskernel.gradients.sources.make_source`.
        seconds: what each pair took, ``(pair,)``.
    """

    gamma: float
    n_beta: float
    pairs: int
    kernel: np.ndarray
    linear: np.ndarray
    left_out: np.ndarray
    linear_left_out: np.ndarray
    halves: np.ndarray
    losses: np.ndarray
    initial_losses: np.ndarray
    nodes: int
    width: int
    engine: str
    seconds: np.ndarray

    @property
    def nonlinear(self) -> np.ndarray:
        """``K - c(0) / gamma``, ``(input, input)``."""
        return self.kernel - self.linear

    @property
    def correlation(self) -> np.ndarray:
        """R, the normalized kernel; see :func:`losskernel.kernel.control_variate.normalize`."""
        return normalize(self.kernel)

    @property
    def linear_share(self) -> float:
        """Share of the linear part in the sum of the variances."""
        return float(np.trace(self.linear) / np.trace(self.kernel))

    def error(
        self,
        statistic: Callable[[np.ndarray], np.ndarray | float] = lambda kernel: kernel,
        of: str = "kernel",
    ) -> np.ndarray | float:
        """Standard error of a statistic, by the jackknife over groups of pairs.

        ``sqrt((g - 1) / g sum (v - mean v)^2)`` over its values v with one of g groups left out.
        With more than three nodes and few pairs at each it is too large: by 1.3 at two a node.

        Args:
            statistic: of an ``(input, input)`` matrix; gives a number or an array. By default the
                matrix itself: the error of every entry.
            of: which matrix: ``"kernel"``, ``"correlation"`` or ``"linear"``.

        Raises:
            ConfigError: there is no such matrix.
        """
        if of not in ("kernel", "correlation", "linear"):
            raise ConfigError(f"of: '{of}' is not one of kernel, correlation, linear")
        matrices = self.linear_left_out if of == "linear" else self.left_out
        if of == "correlation":
            matrices = map(normalize, matrices)
        return jackknife_error([statistic(matrix) for matrix in matrices])

    @property
    def reliability(self) -> tuple[float, float]:
        """Correlation of R between the halves over pairs of inputs, and that of the whole.

        The latter by the formula of Spearman and Brown, ``2 r / (1 + r)``: what two estimates with
        all pairs would have between them.
        """
        above = np.triu_indices(len(self.kernel), 1)
        first, second = (normalize(half)[above] for half in self.halves)
        half = float(np.corrcoef(first, second)[0, 1])
        return half, 2 * half / (1 + half)

    @property
    def rise(self) -> tuple[float, float]:
        """Rise of the mean loss under the probe and its standard error over pairs."""
        return rise_over_pairs(self.losses, self.initial_losses)


@own_torch_settings()
def gradient_covariance(
    model: nn.Module,
    data: Data,
    *,
    gamma: float,
    n_beta: float = 0.0,
    fisher: Gradients | None = None,
    pairs: int = 20,
    loss: LossPerInput = cross_entropy,
    parameters: str | Sequence[str] = "trainable",
    seed: int = 0,
    width: int = DEFAULT_WIDTH,
    groups: int = 10,
    nodes: int = 3,
    journal: str | Path | None = None,
    engine: str = "auto",
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> GradientCovariance:
    """The loss kernel of the Gaussian probe from per-sample gradients at pairs of draws.

    The right estimator where a loss is expensive, or the kernel near its linear limit: there plain
    draws see little but noise. Two gradients an input and pair. The model is copied and the copy
    put in evaluation mode; the caller's is not changed.

    Args:
        model: the trained network; called as ``model(inputs)``.
        data: ``(inputs, targets)`` tensors or a map-style data set of such pairs.
        gamma: localization, 1 / weight^2. Under one seed all gammas share their normal draws; A of
            pair s is at draw s of chain 0 of :func:`losskernel.sample_losses`.
        n_beta: weight of the mean loss. Above 0 the probe is the Laplace approximation of the
            tempered posterior, ``N(w*, (gamma I + n_beta F)^-1)``; that one is good where the mean
            loss is quadratic, and no further.
        fisher: gradients whose mean product is F, see :mod:`losskernel.gradients.laplace` for which
            labels they should have.
        pairs: of draws, 4 or more.
        loss: ``loss(output, target)`` returning one value per input, differentiable.
        parameters: which are perturbed; see
            :func:`losskernel.sampling.parameters.select_parameters`.
        seed: of the draws and of the sketch. Same seed, machine and thread count, same result.
        width: columns that a gradient is folded into, see :mod:`losskernel.gradients.sketch`; a
            cosine is off by ``width ** -0.5`` or so. Models with fewer parameters are not folded.
        groups: the jackknife leaves out one of so many groups of pairs, an even number. Pair s is
            in group ``s % groups``.
        nodes: of the quadrature, 3 or more: the inner ones share the pairs, of which there must be
            at least ``2 (nodes - 2)``. 3 are right to some percent where the linear share is above
            0.4; below, take more.
        journal: folder in which work is saved block by block; call again with the same arguments to
            continue after a kill, or with more ``pairs`` to extend. It takes ``4 x inputs x width x
            (groups + 2)`` bytes of disk, and is kept; delete it when no pairs are to be added. By
            default a temporary folder.
        engine: what takes the gradients; see :func:`losskernel.gradients.sources.make_source`.
        device: where to compute.
        progress: show a progress bar.

    Raises:
        ConfigError: gamma is not above 0, there are too few pairs, groups or nodes, or
            ``parameters`` selects nothing.
        DataError: the data are empty, a loss or gradient is not finite, or the losses fail
            :func:`losskernel.sampling.checks.check_losses`.
        TraceError: the journal is of another model, other data or other settings.
        LossKernelError: there is too little disk space.
    """
    (groups,) = whole(4, groups=groups)
    if groups % 2:
        raise ConfigError(f"groups = {groups} must be an even number of at least 4")
    gamma, n_beta = nonnegative("gamma", gamma), nonnegative("n_beta", n_beta)
    probe = (gamma, n_beta, fisher)
    design, where = (pairs, groups, nodes), (journal, engine, device)
    with sampled(
        _Record, model, data, probe, design, loss, parameters, seed, width, where, progress
    ) as (record, run, pairs):
        return _estimate(record, pairs, (gamma, n_beta), run.source.kind, run, progress)


@contextmanager
def sampled(
    kept: Callable[[Path, dict, int], _Record],
    model: nn.Module,
    data: Data,
    probe: tuple[float, float, Gradients | None],
    design: tuple[int, int, int],
    loss: LossPerInput,
    parameters: str | Sequence[str],
    seed: int,
    width: int,
    where: tuple[str | Path | None, str, str | torch.device],
    progress: bool,
) -> Iterator[tuple[_Record, _Run, int]]:
    """All pairs of gradients, in a folder that is locked; see :func:`gradient_covariance`.

    Args:
        kept: what is kept of them.
        probe: gamma, n_beta and what the Fisher matrix is made from.
        design: pairs, groups of pairs and nodes of the quadrature.
        where: journal, engine and device.
    """
    (gamma, n_beta, fisher), (journal, engine, device) = probe, where
    pairs, groups, nodes = design
    if gamma == 0:
        raise ConfigError("gamma = 0 must be a finite number above 0")
    (pairs,), (nodes,) = whole(4, pairs=pairs), whole(3, nodes=nodes)  # a half needs two pairs
    if pairs < 2 * (nodes - 2):
        raise ConfigError(f"pairs = {pairs} must be at least {2 * (nodes - 2)} for {nodes} nodes")
    (seed,), (width,) = whole(0, seed=seed), whole(1, width=width)
    if (n_beta > 0) != (fisher is not None):
        raise ConfigError(
            f"n_beta = {n_beta} and fisher belong together: gradients of the training data "
            "(per_sample_gradients) make the Fisher matrix of n_beta > 0"
        )
    inputs = Inputs(data, device)
    names = select_parameters(model, parameters)
    with ExitStack() as stack:
        if journal is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="losskernel-")))
        else:
            folder = Path(journal)
        source, block, behavior = make_source(
            engine, model, loss, names, inputs, device, loss is cross_entropy
        )
        fold = Fold(source.layout, width, seed, device)
        settings = {
            "gamma": gamma,
            "parameters": names,
            "parameters_layout": layout_fingerprint(source.layout.shapes, source.layout.strides),
            "weights_sha256": state_fingerprint(model),
            "inputs_sha256": inputs.fingerprint(),
            "inputs": len(inputs),
            "loss": loss_fingerprint(loss),
            "seed": seed,
            "width": fold.width,
            "groups": groups,
            "engine": source.kind,
            "block": block,
            "device": torch.device(device).type,
            "nodes": nodes,
            "n_beta": n_beta,
            "fisher": None if fisher is None else [fisher.inputs_sha256, len(fisher)],
            "behavior": behavior,
        } | hidden_state(model)
        if fisher is not None:
            for name, here in (("weights", "weights_sha256"), ("loss", "loss")):
                stored = getattr(fisher, here) or loss_fingerprint(cross_entropy)
                if stored != settings[here]:
                    raise TraceError(
                        f"{fisher.folder}: gradients of other {name}; compute them for this model"
                    )
        laplace = None if fisher is None else Laplace(fisher, gamma, n_beta, progress)
        record = kept(folder, settings, fold.width)
        stack.enter_context(record.lock)
        run = _Run(source, inputs, fold, gamma, seed, record.block, nodes, laplace)
        record.prepare(run)
        total, done = 2 * pairs * len(inputs), 2 * len(record.pairs) * len(inputs)
        shown = stack.enter_context(
            bar(None, "gradients", total=total, initial=min(done, total), show=progress)
        )
        while len(record.pairs) < pairs:
            started = time.perf_counter()
            for which in range(2):
                run.draw(record, which, shown)
            record.finish_pair(run, time.perf_counter() - started)
        yield record, run, pairs


def lobatto(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes from 0 to 1 and weights of the quadrature of Gauss and Lobatto, ``(node,)`` each.

    The inner nodes are the zeros of P', with P the Legendre polynomial of degree ``nodes - 1``.
    """
    polynomial = np.polynomial.Legendre.basis(nodes - 1)
    inner = polynomial.deriv().roots()
    x = np.concatenate([[-1.0], (inner - inner[::-1]) / 2, [1.0]])
    return (1 + x) / 2, 1 / (nodes * (nodes - 1) * polynomial(x) ** 2)


def inner_node(pair: int, count: int) -> int:
    """At which of so many inner nodes a pair is: both halves, of even and odd pairs, have each."""
    return pair // 2 % count


class _Run:
    """What takes gradients at the draws of the probe."""

    def __init__(
        self,
        source: GradientSource,
        inputs: Inputs,
        fold: Fold,
        gamma: float,
        seed: int,
        block: int,
        nodes: int,
        laplace: Laplace | None = None,
    ):
        self._laplace = laplace
        self._spread = None if laplace is None else laplace.folded(source.layout, fold)
        self.source, self.inputs, self.fold = source, inputs, fold
        self._gamma, self._seed, self._block = gamma, seed, block
        self.nodes, self._correlations = nodes, lobatto(nodes)[0][1:-1].tolist()

    def weights(self, pair: int, which: int) -> Tensor:
        """A (``which`` 0) or B (1) of a pair, ``(parameter,)``."""
        center = self.source.center
        noise, generator = torch.empty_like(center), torch.Generator(center.device)
        fill_draw(noise, generator, self._seed, 0, pair)
        if which:
            second = torch.empty_like(center)
            fill_draw(second, generator, self._seed, 1, pair)
            t = self._correlations[inner_node(pair, len(self._correlations))]
            noise = t * noise + math.sqrt(1 - t**2) * second
        if self._laplace is not None:
            return center + self._laplace.displacement(noise)
        return center + noise / math.sqrt(self._gamma)

    def block(self, weights: Tensor, first: int, fold: Fold | Nothing) -> tuple[Tensor, Tensor]:
        """Losses and folded gradients of a block of inputs, on the CPU."""
        part = np.arange(first, min(first + self._block, len(self.inputs)))
        out = torch.zeros(len(part), fold.width, device=weights.device)
        losses = self.source.block(weights, *self.inputs.take(part), fold, out)
        if self._spread is not None and fold.width:
            out = self._spread(out)
        return losses.cpu(), out.cpu()

    def draw(self, record: _Record, which: int, shown) -> None:
        """Gradients of all inputs at one draw, from where the record ends."""
        pair, weights = len(record.pairs), None
        with record.open(pair, which) as rows:
            shown.update(rows.done)
            while rows.done < len(self.inputs):
                weights = self.weights(pair, which) if weights is None else weights
                # A block begins where it would without a kill: rounding depends on company.
                first = rows.done - rows.done % self._block
                losses, gradients = self.block(weights, first, self.fold)
                finite = torch.isfinite(losses) & torch.isfinite(gradients).all(1)
                if not finite.all():
                    at = first + int((~finite).nonzero()[0])
                    raise DataError(
                        f"gamma: the loss or gradient of input {at} is not finite under the probe; "
                        "raise gamma, or check the input and its preprocessing"
                    )
                ahead = rows.done - first
                rows.append(losses[ahead:].numpy(), gradients[ahead:].numpy())
                shown.update(len(losses) - ahead)

    def initial_losses(self, count: int | None = None) -> np.ndarray:
        """Losses at the trained weights, of the first ``count`` inputs."""
        count = len(self.inputs) if count is None else min(count, len(self.inputs))
        nothing = Nothing()
        blocks = [
            self.block(self.source.center, first, nothing)[0].numpy()
            for first in range(0, count, self._block)
        ]
        return np.concatenate(blocks)[:count]


class _Rows:
    """The gradients of one draw, as far as they are there: rows of a file, and their losses."""

    def __init__(self, path: Path, width: int):
        self._files = []
        sizes = (4 * width, 4)
        for file in (path, path.with_suffix(".losses")):
            self._files.append(open(file, "ab", buffering=0))
        self.done = min(f.tell() // size for f, size in zip(self._files, sizes, strict=True))
        for file, size in zip(self._files, sizes, strict=True):
            file.truncate(self.done * size)

    def append(self, losses: np.ndarray, gradients: np.ndarray) -> None:
        for file, values in zip(self._files, (gradients, losses), strict=True):
            view = memoryview(np.ascontiguousarray(values, np.float32)).cast("B")
            while view:
                view = view[file.write(view) :]
        self.done += len(losses)

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_) -> None:
        for file in self._files:
            file.close()


class _Record:
    """The folder of one estimate.

    ``draw-0.f32`` and ``draw-1.f32`` hold the folded gradients at A and B of the pair in flight,
    ``pair-*.npz`` what is kept of a complete pair, ``sum-<group>-<count>.f32`` the sum of
    ``G(A) + G(B)`` over the first ``count`` pairs of a group. A pair is complete with its npz file,
    which is written last; what a kill leaves behind beside it is found out by its name.
    """

    def __init__(self, folder: Path, settings: dict, width: int):
        self.folder, self._settings, self._width = folder, settings, width
        self.inputs, self.groups = settings["inputs"], settings["groups"]
        self._path = folder / "settings.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LossKernelError(
                f"{folder}: cannot be written ({error.strerror or error}); choose another place"
            ) from error
        self.lock = locked(folder)
        self.pairs: list[Path] = []
        while (path := folder / f"pair-{len(self.pairs):05d}.npz").exists():
            self.pairs.append(path)

    @property
    def block(self) -> int:
        """Inputs at once: those of the run that began, for rounding depends on company.

        What is measured now may differ from that, after an update of PyTorch for example.
        """
        if self._path.exists():
            self._settings["block"] = self._found().get("block", self._settings["block"])
        return self._settings["block"]

    def _found(self) -> dict:
        try:
            return dict(json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            message = f"{self._path}: unreadable; delete the folder to start over"
            raise TraceError(message) from error

    def prepare(self, run: _Run) -> None:
        """Check that what is there belongs to this run, and remove what a kill left behind."""
        path, settings = self._path, json.loads(json.dumps(self._settings))
        if path.exists():
            # What older journals do not name.
            found = {"nodes": 3, "n_beta": 0.0, "fisher": None} | self._found()
            if "behavior" not in found:
                settings.pop("buffers_sha256", None)
            try:
                kept = np.load(self.folder / "initial.npy")
            except (OSError, ValueError) as error:
                raise TraceError(f"{path}: unreadable; delete the folder to start over") from error
            alike = behave_alike(settings.pop("behavior"), found.pop("behavior", None))
            for key in [*settings, *(found.keys() - settings.keys())]:
                here = settings.get(key)
                if found.get(key) != here:
                    plain = not isinstance(here, list)
                    told = f" = {found.get(key)}, not {here}" if plain else ""
                    raise TraceError(
                        f"{self.folder}: holds a run with other {key}{told}; go on with what it "
                        "was begun with, or choose another folder"
                    )
            now = run.initial_losses(_WITNESSES)
            if not alike or not np.allclose(kept[: len(now)], now, rtol=1e-3, atol=1e-5):
                raise TraceError(
                    f"{self.folder}: holds a run whose model or loss computed other losses from "
                    "the same weights; the code of the model differs: choose another folder"
                )
        elif self.pairs:
            raise TraceError(f"{self.folder}: lacks settings.json; delete the folder to start over")
        else:
            free = shutil.disk_usage(self.folder).free
            if free < self._disk():
                raise LossKernelError(
                    f"{self.folder}: needs {self._disk() / 1e9:.1f} GB of disk and has "
                    f"{free / 1e9:.1f}; choose another place, or a smaller width"
                )
            initial = run.initial_losses()
            if not np.isfinite(initial).all():
                raise DataError(
                    f"model: the loss of input {int(np.argmin(np.isfinite(initial)))} is not "
                    "finite at the trained weights; check the weights, the input and its "
                    "preprocessing"
                )
            with atomic_path(self.folder / "initial.npy") as temporary:
                np.save(temporary, initial)
            write_json(settings, path, indent=1)
        wanted = {self._sum(g).name for g in range(self.groups)}
        for file in [*self.folder.glob(".*.*"), *self.folder.glob("sum-*.f32")]:
            if file.name not in wanted:
                file.unlink()
        for file in self.folder.glob("draw-*"):
            if not self._needs(int(file.name.split("-")[1])):
                file.unlink()
        log.info(
            "gradients of %d inputs in %d columns, engine %s, %d inputs at once: up to %.2f GB of "
            "memory beside the model, %.2f GB of disk",
            self.inputs,
            self._width,
            self._settings["engine"],
            self._settings["block"],
            (4 * self._settings["block"] * self._width + 2**29 + self._memory()) / 1e9,
            self._disk() / 1e9,
        )

    def _memory(self) -> int:
        """Bytes that the products of gradients take, and the estimates without a group."""
        matrices = (self._settings["nodes"] + 3) * self.groups + 8
        return 2**28 + 8 * matrices * self.inputs**2

    def _disk(self) -> int:
        """Bytes of the folder at most."""
        return 4 * self.inputs * self._width * (self.groups + 3)

    def _needs(self, pair: int) -> bool:
        """Whether the gradients of a pair are kept: those of the pair in flight."""
        return pair == len(self.pairs)

    @property
    def initial_losses(self) -> np.ndarray:
        return np.load(self.folder / "initial.npy")

    def open(self, pair: int, which: int) -> _Rows:
        return _Rows(self._draw(pair, which), self._width)

    def finish_pair(self, run: _Run, seconds: float) -> None:
        """Keep the products of a complete pair and add its gradients to its group's sum."""
        pair = len(self.pairs)
        group = pair % self.groups
        paths = [self._draw(pair, which) for which in range(2)]
        first, second = (self._mapped(path) for path in paths)
        both, apart = (np.zeros((self.inputs, self.inputs)) for _ in range(2))
        device = run.source.center.device
        for part in self._blocks(4):
            a, b = (torch.from_numpy(rows[:, part].copy()).to(device) for rows in (first, second))
            for total, factor in ((both, a + b), (apart, a - b)):
                total += (factor @ factor.T).cpu().numpy()
        before, after = self._sum(group), self._sum(group, 1)
        with atomic_path(after, sync=False) as temporary, open(temporary, "wb") as file:
            held = self._mapped(before) if before.exists() else None
            step = max(1, _BLOCK_BYTES // (4 * self._width))
            for start in range(0, self.inputs, step):
                rows = first[start : start + step] + second[start : start + step]
                file.write((rows if held is None else held[start : start + step] + rows).tobytes())
        # G(A)G(A)^T + G(B)G(B)^T and its crossed counterpart, from sum and difference
        own, crossed = ((total / 4).astype(np.float32) for total in (both + apart, both - apart))
        self._complete(seconds, own=own, crossed=crossed)
        before.unlink(missing_ok=True)
        for draw in paths:
            draw.unlink()
            draw.with_suffix(".losses").unlink()

    def _complete(self, seconds: float, **arrays: np.ndarray) -> None:
        """Write what is kept of a pair, with its losses."""
        pair = len(self.pairs)
        draws = [self._draw(pair, which).with_suffix(".losses") for which in range(2)]
        losses = [np.fromfile(path, np.float32) for path in draws]
        path = self.folder / f"pair-{pair:05d}.npz"
        with atomic_path(path, sync=False) as temporary:
            np.savez(temporary, **arrays, losses=losses, seconds=seconds)
        self.pairs.append(path)

    def _draw(self, pair: int, which: int) -> Path:
        return self.folder / f"draw-{pair:05d}-{which}.f32"

    def _sum(self, group: int, further: int = 0) -> Path:
        count = len(range(group, len(self.pairs), self.groups)) + further
        return self.folder / f"sum-{group}-{count}.f32"

    def _mapped(self, path: Path) -> np.ndarray:
        return np.memmap(path, np.float32, "r", shape=(self.inputs, self._width))

    def _blocks(self, held: int) -> list[slice]:
        """Columns in pieces of which ``held`` matrices fit the memory."""
        step = max(64, _BLOCK_BYTES // (4 * self.inputs * held))
        return [slice(start, start + step) for start in range(0, self._width, step)]


def _estimate(
    record: _Record, pairs: int, probe: tuple[float, float], engine: str, run: _Run, progress: bool
) -> GradientCovariance:
    """The kernel of all pairs, of all but a group, and of the halves."""
    if len(record.pairs) > pairs:
        raise TraceError(
            f"{record.folder}: holds {len(record.pairs)} pairs, more than {pairs}; ask for as many"
        )
    gamma, n_beta = probe
    inputs, count = record.inputs, min(record.groups, pairs)
    shape = (count, inputs, inputs)
    places, weights = lobatto(run.nodes)
    inner = len(places) - 2
    own, crossed = np.zeros(shape), np.zeros((inner, *shape))
    losses, seconds = [], []
    for pair, path in enumerate(record.pairs):
        with np.load(path) as kept:
            own[pair % record.groups] += kept["own"]
            crossed[inner_node(pair, inner), pair % record.groups] += kept["crossed"]
            losses.append(kept["losses"])
            seconds.append(float(kept["seconds"]))
    sizes = np.zeros((inner, count))
    for pair in range(pairs):
        sizes[inner_node(pair, inner), pair % record.groups] += 1
    # Products of the sum over all pairs with that of each group, of each group's with itself, and
    # of the first half's with all and with itself.
    with_all, with_own = np.zeros(shape), np.zeros(shape)
    half_all, half_half = np.zeros((inputs, inputs)), np.zeros((inputs, inputs))
    paths, device = [record._sum(g) for g in range(record.groups)], run.source.center.device
    sums = [record._mapped(path) for path in paths if path.exists()]
    parts = record._blocks(count + 2)
    for part in bar(parts, "products of mean gradients", show=progress):
        by_group = [torch.from_numpy(rows[:, part].copy()).to(device) for rows in sums]
        total, half = sum(by_group), sum(by_group[::2])
        for g, rows in enumerate(by_group):
            with_all[g] += (total @ rows.T).cpu().numpy()
            with_own[g] += (rows @ rows.T).cpu().numpy()
        half_all += (half @ total.T).cpu().numpy()
        half_half += (half @ half.T).cpu().numpy()
    everything = with_all.sum(0)

    def parts_of(groups: np.ndarray, product: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """K and its linear part from the pairs of some groups, whose sum has this product."""
        at_node = sizes[:, groups].sum(1)
        size, between = at_node.sum(), crossed[:, groups].sum(1)
        ones = own[groups].sum(0) / size
        zeros = (product - 2 * (size * ones + between.sum(0))) / (4 * size**2 - 4 * size)
        zeros = (zeros + zeros.T) / 2
        integral = weights[0] * (zeros + ones)
        integral += np.tensordot(weights[1:-1] / at_node, between, 1)
        return integral / gamma, zeros / gamma

    groups = np.arange(count)
    kernel, linear = parts_of(groups, everything)
    without = [
        parts_of(np.delete(groups, g), everything - with_all[g] - with_all[g].T + with_own[g])
        for g in groups
    ]
    rest = everything - half_all - half_all.T + half_half
    halves = [parts_of(groups[0::2], half_half)[0], parts_of(groups[1::2], rest)[0]]
    return GradientCovariance(
        gamma=gamma,
        n_beta=n_beta,
        pairs=pairs,
        kernel=kernel,
        linear=linear,
        left_out=np.array([matrix for matrix, _ in without]),
        linear_left_out=np.array([matrix for _, matrix in without]),
        halves=np.array(halves),
        losses=np.concatenate(losses),
        initial_losses=record.initial_losses,
        nodes=run.nodes,
        width=record._width,
        engine=engine,
        seconds=np.array(seconds),
    )
