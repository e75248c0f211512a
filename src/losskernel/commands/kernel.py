"""The loss kernel of a model of one's own, from gradients at pairs of draws: little noise."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from losskernel.commands import own
from losskernel.files import write_npz

log = logging.getLogger(__name__)


def kernel(
    model: str,
    inputs: Path,
    gamma: float,
    output: Path,
    weights: str = "pretrained",
    pairs: int = 20,
    groups: int = 10,
    nodes: int = 3,
    parameters: str = "trainable",
    journal: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> None:
    """Write K and R, each (input, input), and their standard errors as an .npz archive.

    For models whose losses take long: where thousands of draws can be had, losskernel trace sample
    is quicker. It is told how far the mean loss rises, how much of the kernel is its linear limit,
    and how well two halves of the pairs agree. losskernel map --kernel takes the archive.

    Args:
        model: as for losskernel trace sample.
        inputs: as for losskernel trace sample; name, label and wnid are kept.
        gamma: localization, one over the variance of a weight; the pilot of losskernel trace sample
            proposes one.
        output: the archive (.npz).
        weights: file of weights, or "pretrained": those that the function brings.
        pairs: of draws; two gradients an input and pair.
        groups: of pairs, an even number: each is left out once for the errors.
        nodes: of the quadrature; more where less than 0.4 of the kernel is linear.
        parameters: a pattern of the parameters that are perturbed, "trainable" or "all".
        journal: folder from which a killed run goes on, or a finished one to more pairs.
        device: cpu or cuda.
        seed: of the noise.
    """
    from losskernel.gradients.covariance import gradient_covariance  # seconds to load

    network, data, known = own(model, weights, inputs, seed)
    found = gradient_covariance(
        network,
        data,
        gamma=gamma,
        pairs=pairs,
        groups=groups,
        nodes=nodes,
        parameters=parameters,
        journal=journal,
        device=device,
        seed=seed,
    )
    (rise, error), (half, whole) = found.rise, found.reliability
    log.info("mean loss rises by %.3g \u00b1 %.1g", rise, error)
    log.info("linear share %.2f; reliability %.2f (halves %.2f)", found.linear_share, whole, half)
    if found.linear_share < 0.4 and nodes < 6:
        log.info("less than 0.4 of it is linear: %d nodes are few there; take --nodes 6", nodes)
    names = {"name": np.arange(len(found.kernel)).astype(str)}
    names |= {key: known[key] for key in ("name", "label", "wnid") if key in known}
    write_npz(
        output,
        K=found.kernel,
        R=found.correlation,
        K_error=found.error(),
        R_error=found.error(of="correlation"),
        **names,
    )
