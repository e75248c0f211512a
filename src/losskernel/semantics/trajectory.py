"""How a kernel's agreement with the hierarchy grows along training, and in which order of depths.

Pairs of inputs of equal label are left out throughout: they share every hypernym by construction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from losskernel.kernel.neighbors import kernel_distances, neighbors_by_distance
from losskernel.semantics.lift import lift

_AMPLITUDES = 21  # of a growing kernel, between which its statistics are interpolated


def nearest_lift(
    similarity: ArrayLike, labels: ArrayLike, k: int, depth_matrix: ArrayLike, depths: Sequence[int]
) -> NDArray[np.float64]:
    """Lift of the k nearest inputs of another label at each depth, ``(depth,)``.

    See :func:`losskernel.semantics.lift.lift`; arguments as for :func:`growth`.
    """
    neighbors, _ = neighbors_by_distance(kernel_distances(similarity), k, exclude_labels=labels)
    return lift(neighbors, depth_matrix, np.asarray(depths), labels)


def growth(
    similarity: NDArray,
    labels: NDArray,
    k: int,
    depth_matrix: NDArray,
    depths: Sequence[int],
    seen: NDArray,
    draws: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Curves of one fixed kernel whose amplitude alone grows: the null for an order of depths.

    Lifts of nested depths depend on each other, and deeper ones are of fewer pairs, so that depths
    may cross in an order though nothing but an amplitude changes. The kernel is
    ``a R + (1 - a) P R P^T``, R the similarity and P a random permutation of all inputs, which has
    R's own spread and knows of no label. At every checkpoint a is such that the lift, averaged over
    depths, is the one that was seen, or 1 where that is above R's own.

    Args:
        similarity: R, ``(input, input)``.
        labels: ``(input,)`` rows of the depth matrix.
        k: neighbors an input.
        depth_matrix: ``(class, class)`` depth of the lowest common hypernym.
        depths: in steps from the root, 1 or more.
        seen: lift, ``(step, depth)``.
        draws: permutations.
        rng: of them.

    Returns:
        ``(step, draw, depth)``.
    """
    shares = np.linspace(0, 1, _AMPLITUDES)
    found = []
    for _ in range(draws):
        order = rng.permutation(len(labels))
        rest = similarity[np.ix_(order, order)]
        grid = np.array(
            [
                nearest_lift(a * similarity + (1 - a) * rest, labels, k, depth_matrix, depths)
                for a in shares
            ]
        )
        # Noise may lower a mean on the way up; interpolation needs it to rise.
        rising = np.maximum.accumulate(grid.mean(axis=1))
        amplitude = np.interp(np.mean(seen, axis=1), rising, shares)
        found.append(np.stack([np.interp(amplitude, shares, of) for of in grid.T], 1))
    return np.stack(found, axis=1)


def crossing_step(
    steps: ArrayLike, values: ArrayLike, baseline: float, share: float = 0.5, of: str = "final"
) -> float:
    """The training step at which a growing quantity first reaches a share of its final value.

    The level is ``baseline + share (values[-1] - baseline)``, or with the largest value in place of
    the last. Between two checkpoints the quantity is taken to be linear in ``log(1 + step)``; step
    0 is initialization.

    Args:
        steps: ``(checkpoint,)``, rising from 0 or more.
        values: ``(checkpoint,)``.
        baseline: value that counts as none.
        share: in (0, 1).
        of: ``"final"`` or ``"maximum"`` value.

    Returns:
        The step: ``steps[0]`` if it is reached there; NaN if that value is not above the baseline,
        or a value is NaN.
    """
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    top = values.max() if of == "maximum" else values[-1]
    if not np.isfinite(values).all() or top <= baseline:
        return float("nan")
    level = baseline + share * (top - baseline)
    at = int(np.argmax(values >= level))
    if at == 0:
        return float(steps[0])
    low, high = values[at - 1], values[at]
    start, stop = np.log1p(steps[at - 1 : at + 1])
    return float(np.expm1(start + (level - low) / (high - low) * (stop - start)))
