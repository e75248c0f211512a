"""Settings, paths and helpers that the rules of every experiment use."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "workflow" / "lib"))
from settings import validated
from source_modules import sources

config = validated(config, Path(workflow.basedir) / "workflow/schemas/config.schema.yaml")
RESULTS = config["results"]
FIGURES = config["figures"]
REFERENCE = "results/reference"


def code(*functions):
    """Source files behind functions of the library, as rule input: a change re-runs the rule."""
    return sorted({file for function in functions for file in sources(function)})


def settings(*path, **extra):
    """A part of the config as JSON for the command line; a change of it re-runs the rule."""
    section = config
    for key in path:
        section = section[key]
    return json.dumps({**section, **extra}, sort_keys=True)


def figures(*names):
    """PDF and PNG of figures."""
    return [f"{FIGURES}/{name}.{kind}" for name in names for kind in ("pdf", "png")]
