"""Settings, paths and helpers that the rules of every experiment use."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "workflow" / "lib"))
from settings import refuse_repeated_keys, validated
from source_modules import sources

for file in workflow.configfiles:
    refuse_repeated_keys(file)
config = validated(config, Path(workflow.basedir) / "workflow/schemas/config.schema.yaml")
RESULTS = config["results"]
FIGURES = config["figures"]
REFERENCE = "results/reference"


# Software of every rule, for `--software-deployment-method conda`; relative to the rules.
ENVIRONMENT = "../../envs/environment.yaml"


def code(*functions):
    """Source files behind functions of the library, an input: a change of them is a reason to run."""
    return sorted({file for function in functions for file in sources(function)})


def settings_in_order(section, *keys, **extra):
    """As :func:`settings`, with keys in the order of the config, where that means something."""
    found = config
    for name in section.split("."):
        found = found[name]
    return json.dumps({**{key: found[key] for key in keys or found}, **extra})


def settings(section, *keys, **extra):
    """Chosen keys of a section of the config as JSON; a change of them is a reason to run.

    Without keys, the whole section. A section within a section is named with a dot.
    """
    return json.dumps(json.loads(settings_in_order(section, *keys, **extra)), sort_keys=True)


def file_options(names):
    """A rule's parameter: options that name those of its input files that there are."""
    return lambda wildcards, input: " ".join(
        f"--{name} {input[name]}" for name in names if input[name]
    )


def gpus(sampling):
    """GPUs that a job with these sampling settings asks for: one if it samples on CUDA."""
    return int(sampling.get("device", "cpu").startswith("cuda"))


def figures(*names):
    """PDF and PNG of figures."""
    return [f"{FIGURES}/{name}.{kind}" for name in names for kind in ("pdf", "png")]
