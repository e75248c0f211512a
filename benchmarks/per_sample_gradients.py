"""Per-sample gradients of Inception-v1: a block at once, folded as they come, or one by one."""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import alternate, command, product_rate, ratios, spread, summary
from losskernel.gradients.layers import LayerGradients
from losskernel.gradients.sketch import Fold, Whole
from losskernel.models.inception_v1 import InceptionV1, initialize
from losskernel.sampling.sample import cross_entropy

EAGER, OURS = "eager PyTorch, one by one", "losskernel"


def run(
    images: int = 20,
    image_size: int = 160,
    repeats: int = 5,
    widths: tuple[int, ...] = (2**12, 2**14, 2**16, 2**18),
    product_size: int = 4096,
) -> dict:
    """Gradient of every image's loss in all 7 million weights, random weights and images, float32.

    Eager PyTorch takes one image at a time and keeps its gradient as it is; ours folds each into
    2^18 columns on the way. The floor counts three forward passes a gradient. ``widths``: what a
    fold costs in accuracy, the root mean square difference of the cosines of two gradients.
    """
    torch.manual_seed(0)
    model = InceptionV1().eval()
    initialize(model)
    x, y = torch.randn(images, 3, image_size, image_size) * 50, torch.arange(images)
    names = [name for name, _ in model.named_parameters()]
    engine = LayerGradients(model, cross_entropy, names)
    parameters = list(model.parameters())

    def eager() -> float:
        start = time.perf_counter()
        for i in range(images):
            loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        return (time.perf_counter() - start) / images * 1e3

    def ours(fold) -> torch.Tensor:
        out = torch.zeros(images, fold.width)
        engine.block(engine.center, x, y, fold, out)
        return out

    fold = Fold(engine.layout, 2**18)

    def timed() -> float:
        start = time.perf_counter()
        ours(fold)
        return (time.perf_counter() - start) / images * 1e3

    eager(), timed()
    peak = product_rate(product_size)
    found, cpu = alternate({EAGER: eager, OURS: timed}, repeats)
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        model(x[:1])
    gflop = 3 * counter.get_total_flops() / 1e9
    rows = [
        {
            "gradients": name,
            "ms/gradient": statistics.median(times),
            **spread(times),
            f"times faster than {EAGER}": ratios(found, EAGER, name)["median"],
            "by CPU time": ratios(cpu, EAGER, name)["median"],
            "share of product rate": gflop / statistics.median(times) * 1e3 / peak,
        }
        for name, times in found.items()
    ]
    whole = _cosines(ours(Whole(engine.layout)))
    errors = {
        width: float((_cosines(ours(Fold(engine.layout, width))) - whole).square().mean().sqrt())
        for width in widths
    }
    return {
        "rows": rows,
        "notes": [
            f"floor: {gflop:.2f} GFLOP a gradient at {peak:.0f} GFLOP/s measured",
            "error of a cosine by columns of the sketch: "
            + ", ".join(f"{error:.2g} at {width}" for width, error in errors.items()),
        ],
        "milliseconds_a_gradient": {name: summary(times) for name, times in found.items()},
        "floor": {"gflop_a_gradient": gflop, "product_gflops": peak},
        "error_of_a_cosine": errors,
    }


def _cosines(gradients: torch.Tensor) -> torch.Tensor:
    """Of all pairs of different rows, ``(pair,)``."""
    unit = F.normalize(gradients)
    above = torch.triu_indices(len(unit), len(unit), 1)
    return (unit @ unit.T)[above[0], above[1]]


QUICK = {"images": 2, "image_size": 64, "repeats": 2, "widths": (2**12,), "product_size": 64}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    command("per_sample_gradients", run, QUICK, arguments)


if __name__ == "__main__":
    main()
