"""Nearest neighbors by R: time and peak memory of ours against numpy.corrcoef and a full sort."""

from __future__ import annotations

import math
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.harness import command, product_rate, spread, summary
from losskernel.kernel.neighbors import nearest_neighbors

PEER, OURS = "numpy.corrcoef and sort", "losskernel"


def _resident(field: str) -> float:
    """A memory field of this process in GB: VmRSS now, VmHWM the most there was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(field + ":")]
    return int(line.split()[1]) * 1024 / 1e9


def measure(method: str, inputs: int, draws: int, k: int) -> dict:
    """Seconds, GB of memory at the peak beyond the interpreter's own, neighbors of some inputs."""
    empty = _resident("VmRSS")
    rng = np.random.default_rng(0)
    losses = rng.standard_normal((draws, inputs), np.float32)
    losses += rng.standard_normal((draws, 1), np.float32)
    start = time.perf_counter()
    if method == OURS:
        found, _ = nearest_neighbors(losses, k)
    else:
        similarity = np.corrcoef(losses, rowvar=False)
        np.fill_diagonal(similarity, -np.inf)
        found = np.argsort(-similarity, axis=1)[:, :k]
    seconds = time.perf_counter() - start
    checked = found[:: max(1, inputs // 100)]
    return {
        "seconds": seconds,
        "memory": _resident("VmHWM") - empty,
        "found": checked.tolist(),
    }


def run(
    sizes: tuple = (2000, 10_000, 50_000),
    draws: int = 2000,
    k: int = 15,
    repeats: int = 3,
    product_size: int = 4096,
) -> dict:
    """The ``k`` nearest of every input, exactly, each search in a process of its own.

    The peer needs two matrices of ``inputs x inputs`` float64 and one of int64; it is left out
    where they do not fit into memory, and so are repeats of what takes over a minute.
    """
    peak = product_rate(product_size)
    # Each search is a process of its own, whose memory starts small, forked from one that has
    # loaded the libraries and computed nothing.
    fresh = get_context("forkserver")
    fresh.set_forkserver_preload([__spec__.name])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    rows, notes, measured = [], [], []
    for inputs in sizes:
        found: dict[str, list[dict]] = {PEER: [], OURS: []}
        needed = (3 * 8 * inputs**2 + 3 * 8 * draws * inputs) / 1e9
        if needed > 0.8 * memory:
            del found[PEER]
            notes.append(f"{inputs} inputs: {PEER} needs {needed:.0f} GB of {memory:.0f}: left out")
        for _ in range(repeats):
            for method, runs in found.items():
                if runs and runs[0]["seconds"] > 60:
                    continue
                with ProcessPoolExecutor(1, fresh) as pool:
                    runs.append(pool.submit(measure, method, inputs, draws, k).result())
        floor = inputs**2 * draws / peak / 1e9  # half of R's 2 n^2 d operations: it is symmetric
        for method, runs in found.items():
            seconds = [run["seconds"] for run in runs]
            row = {
                "inputs": inputs,
                "search": method,
                "s": statistics.median(seconds),
                **spread(seconds),
                "peak GB": max(run["memory"] for run in runs),
                "GB of losses": 4 * draws * inputs / 1e9,
                "share of floor": floor / statistics.median(seconds),
            }
            if PEER in found:
                pairs = zip(found[PEER], runs, strict=True)
                row["times faster"] = statistics.median(
                    a["seconds"] / b["seconds"] for a, b in pairs
                )
                same = np.array(runs[0]["found"]) == np.array(found[PEER][0]["found"])
                row["same neighbors"] = float(same.mean())
            rows.append(row)
            measured.append({"inputs": inputs, "search": method, "seconds": summary(seconds)})
    for method in (PEER, OURS):
        mine = [row for row in rows if row["search"] == method]
        for small, large in zip(mine, mine[1:], strict=False):
            size = math.log(large["inputs"] / small["inputs"])
            time_power = math.log(large["s"] / small["s"]) / size
            note = (
                f"{method}, {small['inputs']} to {large['inputs']} inputs: time grows with the "
                f"power {time_power:.2f}"
            )
            if small["peak GB"] > 0.01:  # less is within what an interpreter takes by the way
                memory_power = math.log(large["peak GB"] / small["peak GB"]) / size
                note += f", memory with {memory_power:.2f}"
            notes.append(note)
    notes.append(f"floor: n^2 d operations (R is symmetric) at {peak:.0f} GFLOP/s measured")
    return {
        "rows": rows,
        "notes": notes,
        "measured": measured,
        "floor": {"product_gflops": peak},
    }


QUICK = {"sizes": (50, 100), "draws": 20, "k": 3, "repeats": 2, "product_size": 64}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    command("kernel_neighbors", run, QUICK, arguments)


if __name__ == "__main__":
    main()
