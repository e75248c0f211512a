"""The command line: the steps of :mod:`losskernel.experiments`, and tools for a saved trace.

``losskernel arithmetic train --seed 0 --settings '{...}' --output weights.safetensors`` calls
:func:`losskernel.experiments.arithmetic.sample.train` with those arguments; options follow its
signature, their help the section ``Args:`` of its docstring.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import logging
import re
import sys
import time
import typing
from pathlib import Path

from losskernel.errors import LossKernelError

# Name of a group of commands -> its module.
GROUPS = {
    "map": "commands.map",
    "trace": "commands.trace",
    "mislabel": "commands.mislabel",
    "limit": "commands.limit",
    "arithmetic": "experiments.arithmetic.sample",
    "arithmetic-separation": "experiments.arithmetic.analyze",
    "arithmetic-search": "experiments.arithmetic.search",
    "imagenet": "experiments.imagenet.sample",
    "controls": "experiments.imagenet.controls",
    "semantic": "experiments.imagenet.analyze",
    "semantic-reports": "experiments.imagenet.reports",
    "gamma-sweep": "experiments.gamma_sweep.analyze",
    "gamma-sweep-small": "experiments.gamma_sweep.small",
    "gamma-claims": "experiments.gamma_sweep.claims",
    "gain": "experiments.gain.analyze",
    "mislabel-memorized": "experiments.mislabel.memorized",
    "mislabel-probe-time": "experiments.mislabel.probe_time",
    "mislabel-claims": "experiments.mislabel.claims",
    "development": "experiments.development.sample",
    "development-measure": "experiments.development.measure",
    "development-analysis": "experiments.development.analyze",
    "development-arithmetic": "experiments.development.arithmetic",
    "compare": "experiments.comparison",
    "figure-arithmetic": "experiments.arithmetic.figures",
    "figure-imagenet": "experiments.imagenet.figures",
    "figure-gamma-sweep": "experiments.gamma_sweep.figures",
    "figure-gain": "experiments.gain.figures",
    "figure-mislabel": "experiments.mislabel.figures",
    "figure-development": "experiments.development.figures",
}
log = logging.getLogger("losskernel")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status is 0, or 1 after an error, told in one line."""
    parser = argparse.ArgumentParser(
        prog="losskernel",
        description="Experiments of the replication, and tools for a saved trace: trace, mislabel.",
        epilog="losskernel <group> --help names its commands.",
    )
    groups = parser.add_subparsers(metavar="group", required=True)
    for group, name in GROUPS.items():
        # Its --help is the command parser's, which names the commands.
        commands = groups.add_parser(group, help=_first_line(name), add_help=False)
        commands.set_defaults(module=f"losskernel.{name}", group=group)
    known, rest = parser.parse_known_args(arguments)
    module = importlib.import_module(known.module)
    chosen = _command_parser(module, known.group).parse_args(rest)
    return _run(chosen.function, {k: v for k, v in vars(chosen).items() if k != "function"})


def _first_line(module: str) -> str:
    """Of a module's docstring, without importing it, which would import torch."""
    with open(Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")) as file:
        return file.readline().strip().strip('"')


def _public_functions(module) -> dict[str, typing.Callable]:
    return {
        name: value
        for name, value in inspect.getmembers(module, inspect.isfunction)
        if value.__module__ == module.__name__ and not name.startswith("_")
    }


def _command_parser(module, name: str) -> argparse.ArgumentParser:
    functions = _public_functions(module)
    if list(functions) == [name]:  # a group of one command is that command
        return _options(argparse.ArgumentParser, functions[name], prog=f"losskernel {name}")
    parser = argparse.ArgumentParser(prog=f"losskernel {name}", description=module.__doc__)
    commands = parser.add_subparsers(metavar="command", required=True)
    for command, function in functions.items():
        first = _documented(function)[0].split("\n")[0]
        _options(commands.add_parser, function, name=command.replace("_", "-"), help=first)
    return parser


def _options(make, function, **named) -> argparse.ArgumentParser:
    """A parser, by what makes it, with an option for each parameter of a function."""
    summary, arguments = _documented(function)
    layout = argparse.RawDescriptionHelpFormatter
    parser = make(**named, description=summary, formatter_class=layout)
    parser.set_defaults(function=function)
    hints = typing.get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        told = arguments.get(parameter.name, "")
        _add_option(parser, parameter, hints[parameter.name], told)
    return parser


def _documented(function) -> tuple[str, dict[str, str]]:
    """A function's docstring without its section ``Args:``, and what that says of each."""
    text = inspect.getdoc(function) or ""
    section = re.search(r"^Args:\n((?: .*\n?|\n)+)", text, re.MULTILINE)
    if section is None:
        return text, {}
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section[1], re.MULTILINE)
    told = {name: " ".join(entry.split()).replace("%", "%%") for name, entry in entries}
    return text[: section.start()] + text[section.end() :], told


def _add_option(parser: argparse.ArgumentParser, parameter, hint, told: str) -> None:
    required = parameter.default is inspect.Parameter.empty
    options: dict = {"required": required, "dest": parameter.name, "help": told}
    if not required:
        options["default"] = parameter.default
        if parameter.default is not None:
            options["help"] = f"{told} (default: %(default)s)".strip()
    hint = (
        next((a for a in typing.get_args(hint) if a is not type(None)), hint)
        if (type(None) in typing.get_args(hint))
        else hint
    )
    if typing.get_origin(hint) is list:
        options |= {"nargs": "+", "action": "extend", "type": typing.get_args(hint)[0]}
    elif hint is dict:
        options["type"] = json.loads
        options["help"] = f"{told} (JSON)".strip()
    elif hint is bool:
        options = {"dest": parameter.name, "action": "store_true", "help": told}
    elif typing.get_origin(hint) is typing.Literal:
        options["choices"] = typing.get_args(hint)
    else:
        options["type"] = hint
    parser.add_argument(f"--{parameter.name.replace('_', '-')}", **options)


def _paths(arguments: dict, written: bool) -> str:
    found = []
    for name, value in arguments.items():
        if name.startswith("output") == written:
            values = value if isinstance(value, list) else [value]
            found += [str(item) for item in values if isinstance(item, Path)]
    if len(found) > 3:
        found = [*found[:2], f"... ({len(found)} files)"]
    return ", ".join(found) or "nothing"


def _run(function, arguments: dict) -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)  # ours alone: other packages tell of every glyph of a font
    started = time.perf_counter()
    try:
        function(**arguments)
    except (LossKernelError, OSError) as error:  # OSError: a file that is missing or not readable
        print(f"error: {error}", file=sys.stderr)
        return 1
    log.info(
        "%s: read %s; wrote %s; %.1f s",
        function.__name__,
        _paths(arguments, written=False),
        _paths(arguments, written=True),
        time.perf_counter() - started,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
