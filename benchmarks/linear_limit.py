"""The exact high-localization limit against as many draws as come as close to the kernel."""

from __future__ import annotations

import statistics
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from benchmarks.harness import alternate, command, product_rate, ratios, spread, summary
from losskernel import Probe, sample_losses
from losskernel.gradients.linear_response import gram
from losskernel.gradients.per_sample import per_sample_gradients
from losskernel.kernel.alignment import cka
from losskernel.kernel.control_variate import limit_kernel, normalize
from losskernel.kernel.covariance import correlation

LIMIT, SAMPLER = "linear limit", "sampler"


def _trained(inputs: torch.Tensor, labels: torch.Tensor, width: int) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(inputs.shape[1], width), torch.nn.Tanh(), torch.nn.Linear(width, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


def run(
    inputs: int = 1000,
    width: int = 64,
    gamma: float = 1e5,
    draws: int = 2500,
    reference_draws: int = 5000,
    chains: int = 4,
    repeats: int = 3,
    product_size: int = 4096,
) -> dict:
    """CKA of R to a long reference run: of the limit, and of growing numbers of other draws.

    An MLP on scikit-learn's digits, no loss term (``n_beta = 0``). Both draws and limit are
    compared with the same reference, whose own noise lowers the CKA of both. ``draws`` and
    ``reference_draws`` are a chain.
    """
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x / 16, dtype=torch.float32)
    y = torch.tensor(y)
    model = _trained(x, y, width)
    data = (x[:inputs], y[:inputs])
    probe = Probe(gamma=gamma)

    def sampled(number: int, first_chain: int):
        ids = list(range(first_chain, first_chain + chains))
        return sample_losses(
            model,
            data,
            probe,
            draws=number,
            chain_ids=ids,
            eval_batch_size=inputs,
            progress=False,
        )

    reference = correlation(sampled(reference_draws, chains).losses)
    kept: dict = {}

    def limit_seconds() -> float:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            gradients = per_sample_gradients(model, data, folder, progress=False)
            kept[LIMIT] = normalize(limit_kernel(gram(gradients, progress=False), probe))
        return time.perf_counter() - start

    def sampler_seconds() -> float:
        start = time.perf_counter()
        kept[SAMPLER] = sampled(draws, 0).losses
        correlation(kept[SAMPLER])
        return time.perf_counter() - start

    peak = product_rate(product_size)
    found, _ = alternate({LIMIT: limit_seconds, SAMPLER: sampler_seconds}, repeats)
    limit_cka = cka(kept[LIMIT], reference)
    counts = np.unique(np.geomspace(min(5, draws), draws, 10).astype(int))
    curve = [cka(correlation(kept[SAMPLER][:, :count]), reference) for count in counts]
    reached = curve[-1] >= limit_cka
    needed = float(np.interp(limit_cka, curve, counts)) if reached else float(draws)
    seconds = statistics.median(found[SAMPLER]) * needed / draws
    parameters = sum(parameter.numel() for parameter in model.parameters())
    gflop = (2 * inputs**2 * parameters + 6 * inputs * parameters) / 1e9
    rows = [
        {
            "kernel": LIMIT,
            "s": statistics.median(found[LIMIT]),
            **spread(found[LIMIT]),
            "CKA": limit_cka,
            "share of floor": gflop / peak / statistics.median(found[LIMIT]),
        },
        *(
            {
                "kernel": f"{count * chains} draws",
                "s": statistics.median(found[SAMPLER]) * count / draws,
                "CKA": value,
            }
            for count, value in zip(counts.tolist(), curve, strict=True)
        ),
    ]
    factor = seconds / statistics.median(found[LIMIT])
    reach = f"{needed * chains:.0f}" if reached else f"more than {draws * chains}"
    least = "" if reached else "more than "
    notes = [
        f"the limit's CKA takes {reach} draws and {least}{factor:.3g} times the limit's time",
        f"floor of the limit: {gflop:.3g} GFLOP (gradients and Gram matrix) at {peak:.0f} GFLOP/s",
        f"CKA is to {reference_draws * chains} other draws; the time of fewer draws is in "
        "proportion",
    ]
    return {
        "rows": rows,
        "notes": notes,
        "seconds": {name: summary(values) for name, values in found.items()},
        "sampler_over_limit": ratios(found, SAMPLER, LIMIT),
        "draws_for_the_limits_cka": needed * chains if reached else None,
        "floor": {"gflop": gflop, "product_gflops": peak},
    }


QUICK = {
    "inputs": 40,
    "width": 8,
    "draws": 20,
    "reference_draws": 40,
    "chains": 2,
    "repeats": 2,
    "product_size": 64,
}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    command("linear_limit", run, QUICK, arguments)


if __name__ == "__main__":
    main()
