"""The exact high-gamma limit of any model's loss kernel, and kernels with less sampling noise.

From a folder of per-sample gradients and the journals of sampling runs to matrices in .npz files;
see :mod:`losskernel.gradients.linear_response`. Where the gradients come from is the experiment's
own matter.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from losskernel.commands.trace import Center
from losskernel.errors import TraceError
from losskernel.files import atomic_path
from losskernel.gradients.linear_response import (
    displacement_probe,
    linear_part,
    write_coupled_displacements,
)
from losskernel.gradients.linear_response import gram as gram_matrix
from losskernel.gradients.per_sample import Gradients
from losskernel.kernel.control_variate import control_variate_kernel, limit_kernel, normalize
from losskernel.sampling.probe import FreeChain, Probe
from losskernel.trace import LossTrace, settings_attribute


def gram(gradients: Path, output: Path, parameters: str = "all") -> None:
    """Write the Gram matrix of per-sample gradients, over all parameters or a group by pattern.

    Args:
        gradients: folder of per-sample gradients.
        output: the matrix (.npz).
        parameters: "all", or a pattern of parameter names.
    """
    loaded = Gradients.load(gradients)
    _save(
        output,
        # float16 gradients leave 1e-5 of a product uncertain; float32 halves the file.
        gram=gram_matrix(loaded, parameters).astype(np.float32),
        inputs_sha256=loaded.inputs_sha256,
        weights_sha256=loaded.weights_sha256,
    )


def couple(journal: Path, output: Path) -> None:
    """Write, as a folder, the displacements that a run's noise alone would have led to.

    Args:
        journal: folder of a run that kept its displacements.
        output: the folder.
    """
    write_coupled_displacements(journal, output)


def linear(gradients: Path, displacements: list[Path], output: Path) -> None:
    """Write the linear parts (chain, draw, input) of stored displacements, and their probe.

    Args:
        gradients: folder of per-sample gradients.
        displacements: journals that kept theirs, or folders that ``losskernel limit couple`` wrote.
        output: the linear parts (.npz).
    """
    loaded = Gradients.load(gradients)
    probe = displacement_probe(displacements[0])
    _save(
        output,
        linear=linear_part(loaded, displacements),
        probe=settings_attribute(probe.settings),
        inputs_sha256=loaded.inputs_sha256,
        weights_sha256=loaded.weights_sha256,
    )


def kernel(
    trace: Path, gram: Path, output: Path, linear: Path | None = None, center: Center = "pooled"
) -> None:
    """Write K and R at a trace's probe: the linear limit or, with linear parts, the loss kernel.

    The latter is the sampled kernel with the linear parts as control variate, over as many draws as
    both files hold.

    Args:
        trace: the saved trace (.nc).
        gram: what ``losskernel limit gram`` wrote.
        output: the kernel (.npz).
        linear: what ``losskernel limit linear`` wrote.
        center: mean that is subtracted: over all chains and draws (pooled), each chain's own
            (chain), or each draw's over the chains (draw).
    """
    loaded = LossTrace.load(trace)
    matrix = _read(gram, "gram", loaded)
    if linear is None:
        result = limit_kernel(matrix, Probe.read(loaded.attributes["probe"]))
    else:
        values = _read(linear, "linear", loaded)
        with np.load(linear) as stored:
            known = limit_kernel(matrix, _probe(stored["probe"]))
        losses = loaded.losses
        draws = min(losses.shape[1], values.shape[1])
        result = control_variate_kernel(losses[:, :draws], values[:, :draws], known, center)
    _save(output, K=result, R=normalize(result))


def _probe(stored: np.ndarray) -> Probe | FreeChain:
    """As :func:`linear` wrote it; earlier versions wrote n_beta, gamma and step size."""
    if stored.ndim:
        return Probe.read(dict(zip(("n_beta", "gamma", "step_size"), stored.tolist(), strict=True)))
    return Probe.read(str(stored))


def _read(path: Path, name: str, trace: LossTrace) -> np.ndarray:
    try:
        with np.load(path) as file:
            stored = dict(file)
    except OSError:
        raise
    except Exception as error:  # NumPy raises many types for what is no .npz archive
        raise TraceError(f"{path}: not an .npz archive; give what `limit {name}` wrote") from error
    if name not in stored:
        raise TraceError(
            f"{path}: holds {', '.join(stored) or 'nothing'}, not {name}; give as --{name} what "
            f"`losskernel limit {name}` wrote"
        )
    for key, said in (("weights_sha256", "weights"), ("inputs_sha256", "inputs")):
        here = str(stored.get(key, "unknown"))
        there = trace.attributes.get(key)
        if here != there:
            raise TraceError(
                f"{path}: made with other {said} ({here}) than the trace ({there}); make both from "
                "the same"
            )
    return stored[name]


def _save(output: Path, **arrays) -> None:
    # An open file, as NumPy appends .npz to a path that ends otherwise.
    with atomic_path(output) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
