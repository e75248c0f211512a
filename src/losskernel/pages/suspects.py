"""Suspicious labels as a page of cards to look at, tick and export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from losskernel.pages.document import embedded, thumbnails, write_page

SIDE, SIDE_OF_NEIGHBORS = 224, 72  # longest side of an image and of those beside it, in pixels


@dataclass(frozen=True)
class Suspects:
    """All inputs of a ranking.

    Attributes:
        names, labels: of each, ``(input,)``.
        scores: by their names, each ``(input,)``: the one that ranks, and the loss.
        suggested: label of each, empty for none, ``(input,)``.
        share: of the votes for it, or its probability, ``(input,)``.
        nearest, opposed: ``(input, some)``, and ``nearest_r``, ``opposed_r``, their R.
    """

    names: NDArray
    labels: NDArray
    scores: dict[str, NDArray[np.float64]]
    suggested: NDArray
    share: NDArray[np.float64]
    nearest: NDArray[np.int64]
    nearest_r: NDArray[np.float64]
    opposed: NDArray[np.int64]
    opposed_r: NDArray[np.float64]


def write_suspects(
    inputs: Suspects,
    order: NDArray[np.int64],
    output: str | Path,
    score: str,
    note: str = "",
    images: str | Path | None = None,
) -> None:
    """Write the page.

    Args:
        inputs: the ranking.
        order: inputs that are shown, the most suspicious first.
        output: the HTML file.
        score: what ranked, in words.
        note: a sentence below the title.
        images: folder of the images; without it there are no pictures.

    Raises:
        DataError: an image cannot be read.
    """
    beside = np.unique(np.concatenate([inputs.nearest[order], inputs.opposed[order]], axis=1))
    large: dict[str, str] = {}
    small: dict[str, str] = {}
    if images is not None:
        for found, numbers, pixels in ((large, order, SIDE), (small, beside, SIDE_OF_NEIGHBORS)):
            made = thumbnails(images, [str(inputs.names[i]) for i in numbers], pixels)
            found |= zip(map(str, numbers), made, strict=True)

    def neighbors(indices: NDArray, r: NDArray) -> list[dict]:
        return [{"input": int(i), "r": float(value)} for i, value in zip(indices, r, strict=True)]

    cards = [
        {
            "input": int(i),
            "scores": {name: float(values[i]) for name, values in inputs.scores.items()},
            "suggested": str(inputs.suggested[i]),
            "share": float(inputs.share[i]),
            "nearest": neighbors(inputs.nearest[i], inputs.nearest_r[i]),
            "opposed": neighbors(inputs.opposed[i], inputs.opposed_r[i]),
        }
        for i in order
    ]
    content = {
        "of": len(inputs.names),
        "score": score,
        "note": note,
        "cards": cards,
        "names": {str(i): str(inputs.names[i]) for i in {*order.tolist(), *beside.tolist()}},
        "given": {str(i): str(inputs.labels[i]) for i in {*order.tolist(), *beside.tolist()}},
        "labels": sorted({str(label) for label in inputs.labels}),
        "large": large,
        "small": small,
    }
    write_page("suspects", "Suspicious labels", output, data=embedded(content))
