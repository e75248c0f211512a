"""Groups of commands of the command line: a module a group, its public functions the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from losskernel.errors import DataError
from losskernel.files import read_npz

if TYPE_CHECKING:
    from torch import Tensor, nn


def own(
    model: str, weights: str, inputs: Path, seed: int
) -> tuple[nn.Module, tuple[Tensor, Tensor], dict[str, np.ndarray]]:
    """A user's model, its inputs and targets, and what else is known of each input, by name.

    Raises:
        DataError: the file holds no arrays named inputs and targets, others than of one value an
            input, or cannot be read.
        ConfigError, WeightsError: see :func:`losskernel.models.loader.load_classifier`.
    """
    import torch  # seconds to load, which most commands do not need

    from losskernel.models.loader import load_classifier

    arrays = read_npz(inputs)
    if not {"inputs", "targets"} <= arrays.keys():
        raise DataError(f"{inputs}: holds {sorted(arrays)}; save arrays named inputs and targets")
    data = torch.as_tensor(arrays.pop("inputs")), torch.as_tensor(arrays.pop("targets"))
    for name, values in arrays.items():
        if values.shape != (len(data[0]),):
            raise DataError(
                f"{inputs}: {name} has shape {values.shape} beside {len(data[0])} inputs; give one "
                "value an input, or leave it out"
            )
    return load_classifier(model, weights, seed=seed).model, data, arrays
