"""Draws per second of the arithmetic transformer: devinterp 1.3.2 against ours."""

from __future__ import annotations

import os
import statistics
import time
import warnings

import torch
import torch.nn.functional as F
from devinterp.optim.sgld import SGLD
from devinterp.slt.callback import SamplerCallback
from devinterp.slt.sampler import sample
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import alternate, command, product_rate, ratios, spread, summary
from losskernel import Probe, sample_losses
from losskernel.data.arithmetic import ArithmeticTable, modular_table, probe_subset
from losskernel.models.transformer import ArithmeticTransformer

PROBE = Probe(n_beta=10, gamma=1e4, step_size=1e-6)
PEER, PEER_PROCESSES = "devinterp 1.3.2", "devinterp 1.3.2, a process a core"
PEER_AS_WRITTEN = "devinterp 1.3.2, every position"
OURS, COMPILED = "losskernel", "losskernel, compiled evaluation"


class EveryPosition(torch.nn.Module):
    """The same network as it is written down: every position computed, the last one read.

    Ours computes what the answer depends on, a shortcut of the model's code that devinterp can be
    given too; this is what it takes without.
    """

    def __init__(self, model: ArithmeticTransformer):
        super().__init__()
        self.network = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        network = self.network
        x = network.embed_tokens(tokens) + network.embed_positions.weight
        for block in network.blocks:
            x = block(x)
        return network.unembed(network.norm_final(x)[:, -1])


class StoredLosses(SamplerCallback):
    """Keeps the loss of every probe input at every draw, as a loss trace does, and the time."""

    def __init__(self, probe: ArithmeticTable, chains: int, draws: int, device: str):
        super().__init__()
        self.inputs, self.targets = probe.inputs.to(device), probe.targets.to(device)
        self.losses = torch.zeros(chains, draws, len(probe))
        self.times = torch.zeros(chains, draws, dtype=torch.float64)

    def __call__(self, chain: int, draw: int, model: torch.nn.Module, **_) -> None:
        losses = F.cross_entropy(model(self.inputs), self.targets, reduction="none")
        self.losses[chain, draw] = losses
        self.times[chain, draw] = time.time()

    def get_results(self) -> dict:
        return {"losses": self.losses}


def evaluate(model: torch.nn.Module, data) -> tuple[torch.Tensor, dict]:
    """Mean loss of a minibatch, in the form that devinterp asks for."""
    return F.cross_entropy(model(data[0]), data[1]), {}


def operations(model: torch.nn.Module, table, probe, batch: int) -> float:
    """GFLOP of one draw in matrix products: the batch forth and back, the probe inputs forth."""
    counter = FlopCounterMode(display=False)
    with counter:
        F.cross_entropy(model(table.inputs[:batch]), table.targets[:batch]).backward()
        with torch.no_grad():
            model(probe.inputs)
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / 1e9


def run(
    prime: int = 53,
    width: int = 128,
    heads: int = 4,
    mlp_width: int = 512,
    chains: int = 4,
    draws: int = 50,
    batch: int = 256,
    inputs: int = 1000,
    block: int = 250,
    repeats: int = 5,
    product_size: int = 4096,
    compiled: int = 1,
    processes: int = 2,
    device: str = "cpu",
) -> dict:
    """Same network, chains, draws, batch and probe inputs; draws are counted over all chains.

    devinterp is given our code of the network, and once the network as it is written down.

    ``block`` is our evaluation block, ``compiled`` 0 leaves the compiled variant out, and
    ``processes`` 1 that of devinterp in several processes. Rates are of whole calls, except for
    what starts slowly: compiling, and starting processes, are left out of the rates. On a GPU
    (``--device cuda --chains 16 --processes 1``) our engine is the batched one; that has not been
    measured yet.
    """
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = ArithmeticTransformer(prime, width, heads, mlp_width).eval()
    table = modular_table(prime)
    probe = probe_subset(table, inputs, 0)
    data, total = (table.inputs, table.targets), chains * draws
    threads = torch.get_num_threads()
    means: dict[str, float] = {}
    compile_seconds = []

    def peer(name: str, network: torch.nn.Module = model, cores: int = 1) -> float:
        callback = StoredLosses(probe, chains, draws, device)
        if cores > 1:
            callback.share_memory_()
        os.environ["OMP_NUM_THREADS"] = str(max(1, threads // cores))  # read by new processes
        start = time.time()
        sample(
            network,
            DataLoader(TensorDataset(*data), batch_size=batch, shuffle=True),
            [callback],
            evaluate,
            SGLD,
            {"lr": PROBE.step_size, "nbeta": PROBE.n_beta, "localization": PROBE.gamma},
            num_draws=draws,
            num_chains=chains,
            cores=cores,
            init_loss=1.0,
            device=torch.device(device),
            verbose=False,
        )
        end = time.time()
        means[name] = callback.losses.mean().item()
        if cores == 1:
            return total / (end - start)
        first = callback.times[:, 0].sort().values[:cores]  # of each process
        return (total - cores) / (callback.times.max() - first.mean()).item()

    def ours(compile_evaluation: bool) -> float:
        start = time.perf_counter()
        trace = sample_losses(
            model,
            data,
            PROBE,
            probe_data=(probe.inputs, probe.targets),
            chains=chains,
            draws=draws,
            batch_size=batch,
            eval_batch_size=inputs if compile_evaluation else block,
            engine="sequential" if device == "cpu" else "auto",
            device=device,
            compiled=compile_evaluation,
            progress=False,
        )
        seconds = time.perf_counter() - start
        means[COMPILED if compile_evaluation else OURS] = float(trace.losses.mean())
        if compile_evaluation:
            compile_seconds.append(seconds - trace.attributes["seconds"])
            seconds = trace.attributes["seconds"]
        return total / seconds

    variants = {
        PEER: lambda: peer(PEER),
        PEER_AS_WRITTEN: lambda: peer(PEER_AS_WRITTEN, EveryPosition(model)),
        OURS: lambda: ours(False),
    }
    if compiled:
        variants[COMPILED] = lambda: ours(True)
    if processes > 1:
        variants[PEER_PROCESSES] = lambda: peer(PEER_PROCESSES, cores=processes)
    for variant in variants.values():
        variant()  # warm-up, compiling among it
    peak = product_rate(product_size, device)
    found, cpu = alternate(variants, repeats)
    gflop = operations(model, table, probe, batch)
    floor = peak / gflop
    rows = [
        {
            "sampler": name,
            "draws/s": statistics.median(rates),
            **spread(rates),
            f"times {PEER}": ratios(found, name, PEER)["median"],
            # The start of processes would count.
            "by CPU time": None if name == PEER_PROCESSES else ratios(cpu, PEER, name)["median"],
            "times every position": ratios(found, name, PEER_AS_WRITTEN)["median"],
            "share of floor": statistics.median(rates) / floor,
            "mean loss": means[name],
        }
        for name, rates in found.items()
    ]
    notes = [
        f"floor: {gflop:.2f} GFLOP of matrix products a draw at {peak:.0f} GFLOP/s measured: "
        f"{floor:.0f} draws/s",
        "the times in which processes start (devinterp) and code compiles (ours) are left out",
    ]
    if compile_seconds:
        notes.append(f"compiling took {compile_seconds[0]:.0f} s once")
    return {
        "rows": rows,
        "notes": notes,
        "draws_per_second": {name: summary(rates) for name, rates in found.items()},
        "ratio_to_devinterp": {name: ratios(found, name, PEER) for name in found},
        "ratio_to_devinterp_every_position": {
            name: ratios(found, name, PEER_AS_WRITTEN) for name in found
        },
        "cpu_ratio_to_devinterp": {name: ratios(cpu, PEER, name) for name in found},
        "floor": {
            "gflop_a_draw": gflop,
            "product_gflops": peak,
            "draws_per_second": floor,
        },
        "compile_seconds": compile_seconds,
    }


QUICK = {
    "prime": 5,
    "width": 8,
    "heads": 2,
    "mlp_width": 8,
    "chains": 2,
    "draws": 3,
    "batch": 8,
    "inputs": 20,
    "repeats": 2,
    "product_size": 64,
    "compiled": 0,
    "processes": 1,
}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    command("devinterp_sampler", run, QUICK, arguments)


if __name__ == "__main__":
    main()
