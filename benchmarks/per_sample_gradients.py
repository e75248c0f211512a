"""Per-sample gradients of Inception-v1: ours, one by one, opacus', and TRAK's projection."""

from __future__ import annotations

import copy
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import alternate, command, product_rate, ratios, spread, summary
from losskernel.gradients.layers import LayerGradients
from losskernel.gradients.sketch import Fold, Whole
from losskernel.models.inception_v1 import InceptionV1, initialize
from losskernel.sampling.sample import cross_entropy

EAGER, OURS = "eager PyTorch, one by one", "losskernel"
OPACUS, TRAK = "opacus", "TRAK, projection alone"


def run(
    images: int = 20,
    image_sizes: tuple[int, ...] = (160, 224),
    repeats: int = 5,
    widths: tuple[int, ...] = (2**12, 2**14, 2**16, 2**18),
    product_size: int = 4096,
    projected: int = 64,
) -> dict:
    """Gradient of every image's loss in all 7 million weights, random weights and images, float32.

    Eager PyTorch takes one image at a time and keeps its gradient as it is; ours folds each into
    2^18 columns on the way. opacus' GradSampleModule takes all images at once and keeps all
    gradients. TRAK's BasicProjector, its projection for a CPU, is given gradients that are there
    and makes ``projected`` columns of each: its time grows with their number, as it makes a random
    number for each of them and each weight. Either is left out where it is not installed. The floor
    counts three forward passes a gradient. ``widths``: what a fold costs in accuracy, the root mean
    square difference of the cosines of two gradients.
    """
    peak = product_rate(product_size)
    found = [_at(size, images, repeats, widths, peak, projected) for size in image_sizes]
    times = {
        f"{name}, {size} px": values
        for size, one in zip(image_sizes, found, strict=True)
        for name, values in one.pop("milliseconds_a_gradient").items()
    }
    missing = [name for name in (OPACUS, TRAK) if f"{name}, {image_sizes[0]} px" not in times]
    return {
        "rows": [row for one in found for row in one.pop("rows")],
        "notes": [
            *(note for one in found for note in one.pop("notes")),
            *([f"TRAK's projection is into {projected} columns"] if TRAK not in missing else []),
            *([f"not installed, left out: {', '.join(missing)}"] if missing else []),
        ],
        "milliseconds_a_gradient": times,
        "sizes": dict(zip(map(str, image_sizes), found, strict=True)),
        "floor": {"product_gflops": peak},
    }


def _at(
    image_size: int, images: int, repeats: int, widths: tuple[int, ...], peak: float, projected: int
) -> dict:
    """Rows, notes and times of one size of images."""
    torch.manual_seed(0)
    model = InceptionV1().eval()
    initialize(model)
    x, y = torch.randn(images, 3, image_size, image_size) * 50, torch.arange(images)
    names = [name for name, _ in model.named_parameters()]
    engine = LayerGradients(model, cross_entropy, names)

    def eager(model=model, x=x) -> list[torch.Tensor]:
        rows, parameters = [], list(model.parameters())
        for i in range(images):
            loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            gradients = torch.autograd.grad(loss, parameters)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        return rows

    def ours(fold) -> torch.Tensor:
        out = torch.zeros(images, fold.width)
        engine.block(engine.center, x, y, fold, out)
        return out

    def timed(function: Callable) -> Callable[[], float]:
        def call() -> float:
            start = time.perf_counter()
            function()
            return (time.perf_counter() - start) / images * 1e3

        return call

    fold = Fold(engine.layout, 2**18)
    exact = ours(Whole(engine.layout))
    expected = torch.stack(eager())
    true = torch.stack(eager(copy.deepcopy(model).double(), x.double()))
    variants = {EAGER: eager, OURS: lambda: ours(fold)}
    apart = {EAGER: _apart(expected, true), OURS: _apart(exact, true)}
    if importlib.util.find_spec("opacus"):
        variants[OPACUS] = _opacus(model, x, y)
        apart[OPACUS] = _apart(torch.cat(variants[OPACUS](), 1), true)
    if importlib.util.find_spec("trak"):
        variants[TRAK] = _trak(expected, projected)
    for name, difference in apart.items():
        if not difference < max(1e-3, 2 * apart[EAGER]):
            raise SystemExit(
                f"{name}: gradients differ by {difference:.2g} of themselves; no times"
            )
    functions = {name: timed(variant) for name, variant in variants.items()}
    for function in functions.values():
        function()
    found, cpu = alternate(functions, repeats)
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        model(x[:1])
    gflop = 3 * counter.get_total_flops() / 1e9

    def of_gradients(name: str) -> dict[str, float]:
        return {
            f"times faster than {EAGER}": ratios(found, EAGER, name)["median"],
            "by CPU time": ratios(cpu, EAGER, name)["median"],
            f"{OURS} faster by": ratios(found, name, OURS)["median"],
            "share of product rate": gflop / statistics.median(found[name]) * 1e3 / peak,
            "largest difference from float64": apart[name],
        }

    rows = [
        {
            "pixels": image_size,
            "gradients": name,
            "ms/gradient": statistics.median(times),
            **spread(times),
            # TRAK's begins where the others end.
            **({} if name == TRAK else of_gradients(name)),
        }
        for name, times in found.items()
    ]
    whole = _cosines(exact)
    errors = {
        width: float((_cosines(ours(Fold(engine.layout, width))) - whole).square().mean().sqrt())
        for width in widths
    }
    return {
        "rows": rows,
        "notes": [
            f"{image_size} px: floor: {gflop:.2f} GFLOP a gradient at {peak:.0f} GFLOP/s measured",
            f"{image_size} px: error of a cosine by columns of the sketch: "
            + ", ".join(f"{error:.2g} at {width}" for width, error in errors.items()),
        ],
        "milliseconds_a_gradient": {name: summary(times) for name, times in found.items()},
        "gflop_a_gradient": gflop,
        "error_of_a_cosine": errors,
    }


def _opacus(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable:
    """What takes all gradients at once and keeps them by parameter, ``(image, element)``."""
    from opacus import GradSampleModule

    wrapped = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    wrapped.train()  # its hooks do nothing in evaluation mode; dropout goes on doing nothing
    for module in wrapped.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()

    def gradients() -> list[torch.Tensor]:
        wrapped.zero_grad()
        for parameter in wrapped.parameters():
            parameter.grad_sample = None
        F.cross_entropy(wrapped(x), y, reduction="sum").backward()
        return [parameter.grad_sample.flatten(1) for parameter in wrapped.parameters()]

    return gradients


def _trak(gradients: torch.Tensor, columns: int) -> Callable:
    """What projects gradients that are there onto random directions."""
    from trak.projectors import BasicProjector, ProjectionType

    projector = BasicProjector(
        gradients.shape[1], columns, 0, ProjectionType.rademacher, torch.device("cpu"), columns
    )
    return lambda: projector.project(gradients, model_id=0)


def _apart(gradients: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest relative difference of an image's gradient.

    In float32 rounding sends a ReLU or a maximum of some images the other way, for which one image
    at a time is no better than a batch: so all are held against float64.
    """
    norm = torch.linalg.vector_norm
    return float((norm(gradients - expected, dim=1) / norm(expected, dim=1)).max())


def _cosines(gradients: torch.Tensor) -> torch.Tensor:
    """Of all pairs of different rows, ``(pair,)``."""
    unit = F.normalize(gradients)
    above = torch.triu_indices(len(unit), len(unit), 1)
    return (unit @ unit.T)[above[0], above[1]]


QUICK = {
    "images": 2,
    "image_sizes": (64,),
    "repeats": 2,
    "widths": (2**12,),
    "product_size": 64,
    "projected": 2,
}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    command("per_sample_gradients", run, QUICK, arguments)


if __name__ == "__main__":
    main()
