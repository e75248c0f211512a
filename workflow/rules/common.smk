"""Settings, paths and helpers that the rules of every experiment use."""

import hashlib
import json
import os
import sys
from functools import partial
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.io import apply_wildcards

# Not workflow.basedir, which is another workflow's where this one is its module.
REPOSITORY = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parents[1]
sys.path[:0] = [str(REPOSITORY / "workflow" / "lib"), str(REPOSITORY / "src")]
from settings import refuse_repeated_keys, typed, validated
from source_modules import command_line, digest, parameters

from losskernel.data.listing import visible_files
from losskernel.errors import DataError

for file in workflow.configfiles:
    refuse_repeated_keys(file)
config = typed(config, workflow.config_settings.config or {})
config = validated(config, REPOSITORY / "workflow/schemas/config.schema.yaml")
RESULTS = config["results"]
FIGURES = config["figures"]
SEED = config["seed"]
REFERENCE = os.path.relpath(REPOSITORY / "results/reference")
HIERARCHY = f"{REFERENCE}/imagenet/hierarchy.json"


def call(function, **options):
    """The parameters of a step: the command that calls a function, and what is a reason to run.

    ``function`` is of ``losskernel.experiments``, unless it begins with ``commands``.
    The command's options are the named inputs; its outputs, of which that named ``x`` is the
    parameter ``output_x``, or ``output`` if there is no such parameter; the wildcards that are
    parameters; and ``options``, values or functions of the wildcards. Unnamed inputs are waited for
    and no more. A change of an option, or of a source file behind the function, is a reason to run.
    """
    function = function if function.startswith("commands.") else f"experiments.{function}"
    known = parameters(function)

    def line(wildcards, input, output):
        found = {name: value for name, value in wildcards.items() if name in known}
        found |= dict(input.items())
        for name, value in output.items():
            found[f"output_{name}" if f"output_{name}" in known else "output"] = value
        found.setdefault("output", output)
        for name, value in options.items():
            value = value(wildcards) if callable(value) else value
            found[name] = apply_wildcards(value, wildcards) if isinstance(value, str) else value
        return command_line(function, found)

    return {"code": digest(function), **options, "call": line}


def stamp(folder):
    """A digest of names, sizes and times of the files in a folder of the user, or None.

    None also for a folder that the workflow makes, whose own time is enough.
    """
    if folder in (None, "generated") or not Path(folder).is_dir():
        return None
    found = hashlib.sha256()
    try:
        for path in visible_files(folder):
            status = path.stat()
            found.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    except (DataError, OSError) as error:
        raise WorkflowError(str(error)) from error
    return found.hexdigest()


def settings(section, keys="", **extra):
    """Chosen keys of a section of the config, and others, as JSON.

    Args:
        section: name; of a section within a section, with a dot.
        keys: names, with spaces between them; the whole section if not given.
    """
    found = config
    for name in section.split("."):
        found = found[name]
    return json.dumps({key: found[key] for key in keys.split() or found} | extra)


def outputs(rule, names):
    """Named outputs of another rule as inputs of the same names."""
    return {name: getattr(rule.output, name) for name in names.split()}


def log(name):
    """The log of a rule."""
    return f"{RESULTS}/logs/{name}.log"


def benchmark(name):
    """Time and memory of a rule that samples."""
    return f"{RESULTS}/benchmarks/{name}.tsv"


def gpus(sampling):
    """GPUs that a job with these sampling settings asks for: one if it samples on CUDA."""
    return int(sampling.get("device", "cpu").startswith("cuda"))


def figure(name, category):
    """A figure as PDF, and as PNG, which is in the report with its caption."""
    shown = {"category": category, "caption": f"../report/{name}.rst"}
    labels = {"figure": name.replace("_", " ")}
    return {
        "pdf": f"{FIGURES}/{name}.pdf",
        "png": report(f"{FIGURES}/{name}.png", labels=labels, **shown),
    }


def figures(*names):
    """PDF and PNG of figures."""
    return [f"{FIGURES}/{name}.{kind}" for name in names for kind in ("pdf", "png")]
