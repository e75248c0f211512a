"""The exact high-gamma limit of any model's loss kernel, and kernels with less sampling noise.

First gradients, then gram; then kernel, with a trace of the same model and inputs, makes the limit
at its gamma. With linear, of the journal of a run that kept its displacements, kernel makes the
sampled kernel with less noise. See :mod:`losskernel.gradients.linear_response`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from losskernel.commands import own
from losskernel.commands.trace import Center
from losskernel.errors import TraceError
from losskernel.files import read_npz, write_npz
from losskernel.gradients.linear_response import gram as gram_matrix
from losskernel.gradients.linear_response import linear_part
from losskernel.gradients.per_sample import Gradients, per_sample_gradients
from losskernel.kernel.control_variate import control_variate_kernel, limit_kernel, normalize
from losskernel.sampling.journal import JournalHead
from losskernel.sampling.parameters import select_among
from losskernel.sampling.probe import FreeChain, Probe
from losskernel.trace import LossTrace, behave_alike, settings_attribute


def gradients(
    model: str,
    inputs: Path,
    folder: Path,
    weights: str = "pretrained",
    parameters: str = "trainable",
    device: str = "cpu",
    seed: int = 0,
) -> None:
    """Write the loss gradient of every input of a model of your own: 2 bytes an input and weight.

    Called again, a run that was killed goes on.

    Args:
        model: as for losskernel trace sample.
        inputs: as for losskernel trace sample.
        folder: of the gradients.
        weights: file of weights, or "pretrained": those that the function brings.
        parameters: a pattern of the parameters, "trainable" or "all".
        device: cpu or cuda.
        seed: of random weights.
    """
    network, data, _ = own(model, weights, inputs, seed)
    per_sample_gradients(network, data, folder, parameters=parameters, device=device)


def gram(gradients: Path, output: Path, parameters: str = "all") -> None:
    """Write the Gram matrix of per-sample gradients, over all parameters or a group by pattern.

    Args:
        gradients: folder of per-sample gradients.
        output: the matrix (.npz).
        parameters: "all", or a pattern of parameter names.
    """
    loaded = Gradients.load(gradients)
    write_npz(
        output,
        # float16 gradients leave 1e-5 of a product uncertain; float32 halves the file.
        gram=gram_matrix(loaded, parameters).astype(np.float32),
        **_of_gradients(loaded, select_among(loaded.names, parameters)),
    )


def linear(gradients: Path, displacements: list[Path], output: Path) -> None:
    """Write the linear parts (chain, draw, input) of stored displacements, and their probe.

    Args:
        gradients: folder of per-sample gradients.
        displacements: journals of runs that kept theirs.
        output: the linear parts (.npz).
    """
    loaded = Gradients.load(gradients)
    heads = [JournalHead.read(folder) for folder in displacements]
    run = {
        "seed": heads[0].settings["seed"],
        "chains": [chain for head in heads for chain in head.chain_ids],
        **{key: heads[0].settings.get(key) for key in _OF_RUN},
    }
    write_npz(
        output,
        linear=linear_part(loaded, displacements),
        probe=settings_attribute(heads[0].probe.settings),
        run=settings_attribute(run),
        **_of_gradients(loaded, loaded.names),
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
    probe = Probe.read(loaded.attributes["probe"])
    matrix = _read(gram, "gram", loaded)
    if linear is None:
        result = limit_kernel(matrix, probe)
    else:
        values = _read(linear, "linear", loaded)
        with np.load(linear) as stored:
            moved = _probe(stored["probe"])
            run = json.loads(str(stored["run"])) if "run" in stored else {}
        known = limit_kernel(matrix, moved)
        here = {"chains": loaded.dataset["chain"].values.tolist(), **loaded.attributes}
        told = {"gamma": moved.gamma, **run}
        for key, value in told.items():
            expected = probe.gamma if key == "gamma" else here.get(key)
            if value != expected:
                raise TraceError(
                    f"{linear}: of displacements with {key} = {value}, but the trace has "
                    f"{expected}; give those of the run that the trace is of"
                )
        losses = loaded.losses
        draws = min(losses.shape[1], values.shape[1])
        result = control_variate_kernel(losses[:, :draws], values[:, :draws], known, center)
    write_npz(output, K=result, R=normalize(result), identity=loaded.identity)


# What decides, beside seed and chains, which displacement belongs to a draw.
_OF_RUN = ("burn_in", "steps_per_draw", "data_sha256")


def _of_gradients(gradients: Gradients, names: Sequence[str]) -> dict:
    """What must agree with a trace: weights, inputs, parameters, loss, and what is computed."""
    behavior = json.loads(gradients.behavior or "{}")
    if tuple(names) != gradients.names:
        behavior.pop("gradient_norm", None)  # over all of them
    return {
        "inputs_sha256": gradients.inputs_sha256,
        "weights_sha256": gradients.weights_sha256,
        "parameters": settings_attribute({"names": list(names)}),
        "loss": gradients.loss or "",
        "behavior": settings_attribute(behavior) if behavior else "",
    }


def _probe(stored: np.ndarray) -> Probe | FreeChain:
    """As :func:`linear` wrote it; earlier versions wrote n_beta, gamma and step size."""
    if stored.ndim:
        return Probe.read(dict(zip(("n_beta", "gamma", "step_size"), stored.tolist(), strict=True)))
    return Probe.read(str(stored))


def _read(path: Path, name: str, trace: LossTrace) -> np.ndarray:
    stored = read_npz(path, f"give what `limit {name}` wrote")
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
    # Earlier versions did not keep what follows.
    parameters, loss = (str(stored[key]) if key in stored else None for key in _FURTHER)
    if parameters not in (None, trace.attributes.get("parameters")):
        raise TraceError(
            f"{path}: over other parameters than the trace perturbs; make it with --parameters of "
            "the run, or sample with these"
        )
    if loss is not None and _default(loss) != _default(trace.attributes.get("loss", loss)):
        raise TraceError(
            f"{path}: of another loss ({_default(loss)}) than the trace's "
            f"({_default(trace.attributes['loss'])}); make both from the same"
        )
    if not behave_alike(str(stored.get("behavior", "")), trace.attributes.get("behavior")):
        raise TraceError(
            f"{path}: of a model or a loss that computes other numbers than the trace's; make both "
            "from the same"
        )
    return stored[name]


_FURTHER = ("parameters", "loss")


def _default(loss: str) -> str:
    """A loss's fingerprint; the name alone of the default, which gradients leave out."""
    name = loss.split()[0] if loss else "losskernel.cross_entropy"
    ours = name.startswith("losskernel.") and name.endswith(".cross_entropy")
    return "cross_entropy" if ours else loss
