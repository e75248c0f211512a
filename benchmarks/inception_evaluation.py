"""Evaluation of Inception-v1: our compiled engine against eager PyTorch."""

from __future__ import annotations

import statistics
import time
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import alternate, command, product_rate, ratios, spread, summary
from losskernel.models import inception_v1
from losskernel.sampling.engines import SequentialEngine
from losskernel.sampling.inputs import Inputs
from losskernel.sampling.parameters import select_parameters
from losskernel.sampling.sample import cross_entropy

EAGER, OURS, COMPILED = "eager PyTorch", "losskernel", "losskernel, compiled"


def run(
    images: int = 50,
    image_size: int = 224,
    block: int = 25,
    repeats: int = 5,
    product_size: int = 4096,
    compiled: int = 1,
    device: str = "cpu",
) -> dict:
    """Loss of every image at one weight vector, float32, random weights and images.

    Eager PyTorch is the published network with ``nn.LocalResponseNorm``, channels-last and in
    inference mode; ours is the engine that samples, moving the weights into the model included.
    ``--device cuda`` has not been measured yet.
    """
    torch.manual_seed(0)
    model = inception_v1.InceptionV1().eval().to(device, memory_format=torch.channels_last)
    x = torch.randn(images, 3, image_size, image_size)
    x = x.contiguous(memory_format=torch.channels_last)
    inputs = Inputs((x, torch.arange(images)), device)
    names = select_parameters(model)
    as_published = patch.object(
        inception_v1, "local_response_norm", nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)
    )
    losses: dict[str, torch.Tensor] = {}

    def timed(name: str, evaluate) -> float:
        start = time.perf_counter()
        losses[name] = evaluate()
        return (time.perf_counter() - start) / images * 1e3

    @torch.inference_mode()
    def eager() -> torch.Tensor:
        with as_published:
            blocks = inputs.blocks(block)
            losses = [F.cross_entropy(model(x), y, reduction="none") for x, y in blocks]
        return torch.cat(losses).cpu()

    def ours(engine: SequentialEngine):
        return lambda: engine.losses(engine.center[None], inputs, block)[0]

    plain = SequentialEngine(model, cross_entropy, names, device)
    evaluations = {EAGER: eager, OURS: ours(plain)}
    if compiled:
        evaluations[COMPILED] = ours(
            SequentialEngine(model, cross_entropy, names, device, compiled=True)
        )
    first = {name: timed(name, evaluate) for name, evaluate in evaluations.items()}
    functions = {
        name: lambda name=name, evaluate=evaluate: timed(name, evaluate)
        for name, evaluate in evaluations.items()
    }
    peak = product_rate(product_size, device)
    found, cpu = alternate(functions, repeats)
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        model(inputs.take([0])[0])
    gflop = counter.get_total_flops() / 1e9
    rows = []
    for name, times in found.items():
        milliseconds = statistics.median(times)
        rows.append(
            {
                "evaluation": name,
                "ms/image": milliseconds,
                **spread(times),
                f"times faster than {EAGER}": ratios(found, EAGER, name)["median"],
                "by CPU time": ratios(cpu, EAGER, name)["median"],
                "share of product rate": gflop / milliseconds * 1e3 / peak,
                "largest difference of a loss": (losses[name] - losses[EAGER]).abs().max().item(),
            }
        )
    notes = [
        f"floor: {gflop:.2f} GFLOP an image at {peak:.0f} GFLOP/s measured: "
        f"{gflop / peak * 1e3:.1f} ms/image"
    ]
    seconds = None
    if compiled:
        seconds = first[COMPILED] * images / 1e3
        notes.append(f"compiling took {seconds:.0f} s once")
    return {
        "rows": rows,
        "notes": notes,
        "milliseconds_an_image": {name: summary(times) for name, times in found.items()},
        "speedup_over_eager": {name: ratios(found, EAGER, name) for name in found},
        "cpu_speedup_over_eager": {name: ratios(cpu, EAGER, name) for name in found},
        "floor": {
            "gflop_an_image": gflop,
            "product_gflops": peak,
            "milliseconds_an_image": gflop / peak * 1e3,
        },
        "compile_seconds": seconds,
    }


QUICK = {
    "images": 2,
    "image_size": 64,
    "block": 2,
    "repeats": 2,
    "product_size": 64,
    "compiled": 0,
}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    command("inception_evaluation", run, QUICK, arguments)


if __name__ == "__main__":
    main()
