"""What the benchmarks share: the machine, alternating repeats, a table and a JSON file."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def product_rate(size: int = 4096, device: str = "cpu", repeats: int = 5) -> float:
    """Best rate of a float32 product of two ``size x size`` matrices, in GFLOP/s."""
    a, b = torch.randn(2, size, size, device=device)

    def product() -> float:
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # fetching a value waits for a GPU
        return time.perf_counter() - start

    return 2 * size**3 / min(product() for _ in range(repeats)) / 1e9


def machine() -> dict:
    """What the numbers depend on; the load tells whether the machine was idle."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "torch_threads": torch.get_num_threads(),
        "load_1_5_15_minutes": [round(load, 2) for load in os.getloadavg()],
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def alternate(
    functions: dict[str, Callable[[], float]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Call each function in turn, over and over: A, B, A, B, ...

    A machine that slows down slows all of them down, so ratios within a round stay fair.

    Returns:
        What each function returned, by name, and the seconds of CPU time that each call took,
        processes that it started and saw end among them: those count what other programs on the
        machine do not take away.
    """
    found: dict[str, list[float]] = {name: [] for name in functions}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            before = _cpu_seconds()
            found[name].append(function())
            seconds[name].append(_cpu_seconds() - before)
    return found, seconds


def _cpu_seconds() -> float:
    return sum(os.times()[:4])  # user and system, its own and its children's


def spread(values: list[float]) -> dict:
    """Columns of a table beside a median."""
    return {"lowest": min(values), "highest": max(values)}


def summary(values: list[float]) -> dict:
    """Median and range, and the values themselves."""
    return {
        "median": statistics.median(values),
        **spread(values),
        "values": values,
    }


def ratios(found: dict[str, list[float]], name: str, peer: str) -> dict:
    """``name`` over ``peer``, round by round."""
    return summary([a / b for a, b in zip(found[name], found[peer], strict=True)])


def report(name: str, result: dict, output: Path) -> None:
    """Print a result's rows as a table and write it with the machine's description."""
    output.mkdir(parents=True, exist_ok=True)
    result = {"benchmark": name, "machine": machine(), **result}
    (output / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    cells = _cells(result["rows"])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{name}")
    for row in cells:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    for note in result["notes"]:
        print(f"  - {note}")


def page(folder: Path = RESULTS) -> str:
    """All results in a folder as Markdown: a table each, its notes and the machine."""
    parts = ["# Results of the benchmarks", "", "Made by `make bench` from the files beside it."]
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        machine = result["machine"]
        load = machine["load_1_5_15_minutes"][0]
        head, *rest = _cells(result["rows"])
        lines = ["| " + " | ".join(row) + " |" for row in (head, ["-"] * len(head), *rest)]
        parts += ["", f"## {result['benchmark']}", "", *lines, ""]
        parts += [f"- {note}" for note in result["notes"]]
        parts.append(
            f"- on {machine['gpu'] or machine['cpu']}, {machine['cores']} cores, load {load} at "
            f"the end; PyTorch {machine['torch']}, NumPy {machine['numpy']}"
        )
    return "\n".join(parts) + "\n"


def _cells(rows: list[dict]) -> list[list[str]]:
    """A head and a line a row, of all columns that a row has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [columns] + [[_cell(row.get(column)) for column in columns] for row in rows]


def _cell(value) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def command(
    name: str, run: Callable[..., dict], quick: dict, arguments: list[str] | None = None
) -> None:
    """The command line of one benchmark: an option for each argument of ``run``.

    Args:
        name: of the benchmark and of its JSON file.
        run: measures; returns ``rows``, ``notes`` and whatever else is worth keeping.
        quick: arguments of ``run`` for ``--quick``, which shows that it runs, not how fast.
        arguments: of the command line; those of the process if not given.
    """
    parser = argparse.ArgumentParser(description=inspect.getdoc(run))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON files")
    defaults = {key: value.default for key, value in inspect.signature(run).parameters.items()}
    for key, default in defaults.items():
        many = isinstance(default, tuple)
        parser.add_argument(
            "--" + key.replace("_", "-"),
            type=type(default[0] if many else default),
            nargs="+" if many else None,
            help=f"default {default}",
        )
    given = vars(parser.parse_args(arguments))
    chosen = defaults | (quick if given["quick"] else {})
    chosen |= {key: given[key] for key in defaults if given[key] is not None}
    result = run(**chosen)
    report(name, {"quick": given["quick"], "settings": chosen, **result}, given["output"])
