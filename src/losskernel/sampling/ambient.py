"""PyTorch's global settings while the library computes, whatever the caller's are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def own_torch_settings() -> Iterator[None]:
    """Gradients on, no inference mode or autocast, float32 and the CPU as defaults; then as before.

    The number of threads is restored, too. Deterministic algorithms, which some operations lack,
    are switched off where there is no GPU: on a CPU all that is used here is deterministic. With
    one the caller's choice stands.
    """
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    strict, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        if not torch.cuda.is_available():
            torch.use_deterministic_algorithms(False)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict, warn_only=warns)
