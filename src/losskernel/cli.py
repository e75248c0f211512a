"""The command line: tools for a user's own model and traces, and the steps of the workflow.

Every function of a module of :mod:`losskernel.commands` is a command; so is, below ``workflow``,
every function of :mod:`losskernel.experiments` that has an ``output``. ``losskernel workflow
arithmetic.sample train --seed 0 --settings '{...}' --output weights.safetensors`` calls
:func:`losskernel.experiments.arithmetic.sample.train` with those arguments: options follow its
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
from importlib.metadata import version
from pathlib import Path

from losskernel.errors import ConfigError, LossKernelError, needs
from losskernel.files import check_writable

# A user's groups of commands, modules of losskernel.commands, each with an example.
EXAMPLES = {
    "trace": "losskernel trace sample --model mine.py:build --inputs data.npz --output trace.nc",
    "kernel": "losskernel kernel --model mine.py:build --inputs data.npz --gamma 1000 "
    "--output kernel.npz",
    "map": "losskernel map --trace trace.nc --output map.html",
    "mislabel": "losskernel mislabel folder --images photos --model timm:resnet18 "
    "--weights mine.safetensors --output suspects.csv",
    "weights": "losskernel weights convert --caffemodel bvlc_googlenet.caffemodel "
    "--output bvlc_googlenet.safetensors",
    "limit": "losskernel limit gradients --model mine.py:build --inputs data.npz "
    "--folder gradients",
}
HERE = Path(__file__).parent
log = logging.getLogger("losskernel")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status is 0, or 1 after an error, told in one line."""
    parser = argparse.ArgumentParser(
        prog="losskernel",
        description="The loss kernel: covariances of per-input losses under local weight noise.",
        epilog="examples:\n" + "\n".join(f"  {example}" for example in EXAMPLES.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"losskernel {version('losskernel')}"
    )
    groups = parser.add_subparsers(metavar="group", required=True)
    for name in EXAMPLES:
        _add_group(groups, name, f"commands.{name}", "losskernel")
    steps = groups.add_parser(
        "workflow",
        help="Steps of the replication, as its rules call them.",
        description="Steps of the replication; each group is a module of losskernel.experiments.",
    ).add_subparsers(metavar="group", required=True)
    for path in sorted((HERE / "experiments").glob("**/*.py")):
        if "output: Path" in path.read_text(encoding="utf-8"):  # else it has no step
            name = ".".join(path.relative_to(HERE / "experiments").with_suffix("").parts)
            _add_group(steps, name, f"experiments.{name}", "losskernel workflow")
    known, rest = parser.parse_known_args(arguments)
    try:
        # Experiments import all that they need; commands do so when they are called.
        with needs("workflow"):
            module = importlib.import_module(known.module)
    except LossKernelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    chosen = _command_parser(module, known.program).parse_args(rest)
    return _run(chosen.function, {k: v for k, v in vars(chosen).items() if k != "function"})


def _add_group(groups, name: str, module: str, program: str) -> None:
    """A group of commands, which its own parser names: its module is imported only when called."""
    with open(HERE.joinpath(*module.split(".")).with_suffix(".py")) as file:
        described = file.readline().strip().strip('"')
    group = groups.add_parser(name, help=described, add_help=False)
    group.set_defaults(module=f"losskernel.{module}", program=f"{program} {name}")


def _commands(module) -> dict[str, typing.Callable]:
    """The public functions of a module; of an experiment those that write a result."""
    steps = module.__name__.startswith("losskernel.experiments.")
    return {
        name: value
        for name, value in inspect.getmembers(module, inspect.isfunction)
        if value.__module__ == module.__name__
        and not name.startswith("_")
        and ("output" in inspect.signature(value).parameters or not steps)
    }


def _command_parser(module, program: str) -> argparse.ArgumentParser:
    functions = _commands(module)
    if [f"losskernel.commands.{name}" for name in functions] == [module.__name__]:
        # A group of one command, of the same name, is that command.
        return _options(argparse.ArgumentParser, *functions.values(), prog=program)
    parser = argparse.ArgumentParser(prog=program, description=_plain(module.__doc__))
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
    text = _plain(inspect.getdoc(function) or "")
    section = re.search(r"^Args:\n((?: .*\n?|\n)+)", text, re.MULTILINE)
    if section is None:
        return text, {}
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section[1], re.MULTILINE)
    told = {name: " ".join(entry.split()).replace("%", "%%") for name, entry in entries}
    return text[: section.start()] + text[section.end() :], told


def _plain(text: str) -> str:
    """A docstring without the marks that Sphinx reads."""
    return re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", "")


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


def _files(arguments: dict, written: bool) -> list[Path]:
    found = []
    for name, value in arguments.items():
        if name.startswith(("output", "page")) == written:
            values = value if isinstance(value, list) else [value]
            found += [item for item in values if isinstance(item, Path)]
    return found


def _check_outputs(arguments: dict) -> None:
    """Refuse outputs that cannot be written, before anything is computed.

    Raises:
        ConfigError: two outputs are one file, or one would overwrite an input.
        LossKernelError: an output cannot be written.
    """
    read = {path.resolve() for path in _files(arguments, written=False)}
    seen: set[Path] = set()
    for path in _files(arguments, written=True):
        place = path.resolve()
        if place in read or place in seen:
            what = "an input" if place in read else "another output"
            raise ConfigError(f"{path}: an output that is {what} too; give it a name of its own")
        seen.add(place)
        check_writable(path)


def _paths(arguments: dict, written: bool) -> str:
    found = [str(path) for path in _files(arguments, written)]
    if len(found) > 3:
        found = [*found[:2], f"... ({len(found)} files)"]
    return ", ".join(found) or "nothing"


def _run(function, arguments: dict) -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)  # ours alone: other packages tell of every glyph of a font
    started = time.perf_counter()
    try:
        _check_outputs(arguments)
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
