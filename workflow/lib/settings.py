"""Validation of the config: one line for a typo, a key given twice or a value out of range."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from snakemake.exceptions import WorkflowError


def refuse_repeated_keys(path: Path | str) -> None:
    """Check a config file for keys that are there twice, of which YAML would keep the second.

    Raises:
        WorkflowError: naming the file, the key and both lines.
    """
    pending = [yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)]
    while pending:
        node = pending.pop()
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if lines.setdefault(key.value, line) != line:
                    raise WorkflowError(
                        f"{path}, line {line}: '{key.value}' is there a second time, after line "
                        f"{lines[key.value]}; put its settings together"
                    )
                pending.append(value)


def typed(config: dict, given: dict) -> dict:
    """The config with numbers for numbers in what ``--config`` gave inside braces.

    Snakemake reads ``imagenet="{per_class: 5}"`` as a mapping of texts; a file it reads as it is.

    Args:
        config: with ``given`` merged into it.
        given: what ``--config`` gave.
    """
    found = dict(config)
    for key in given.keys() & config.keys():
        if isinstance(given[key], dict) and isinstance(config[key], dict):
            found[key] = typed(config[key], given[key])
        elif given[key] == config[key]:
            found[key] = _parsed(given[key])
    return found


def _parsed(value):
    if isinstance(value, list):
        return [_parsed(item) for item in value]
    if isinstance(value, dict):
        return {key: _parsed(item) for key, item in value.items()}
    return yaml.safe_load(value) if isinstance(value, str) and value else value


def validated(config: dict, schema_path: Path) -> dict:
    """The config, if it fits the schema.

    Raises:
        WorkflowError: naming the key, the value and what is allowed.
    """
    schema = yaml.safe_load(schema_path.read_text())
    error = best_match(Draft202012Validator(schema).iter_errors(config))
    if error is None:
        return config
    key = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = next(name for name in error.instance if name not in known)
        close = get_close_matches(unknown, known, 1)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
        name = ".".join(filter(None, (key, unknown)))
        raise WorkflowError(f"config: unknown key '{name}'; {hint}")
    if error.validator == "required":
        where = key or "top level"
        raise WorkflowError(f"config: {where}: {error.message}; see config/config.yaml")
    described = error.schema.get("description")
    raise WorkflowError(
        f"config: {key} = {error.instance!r} is not valid ({error.message})"
        + (f"; {key} is: {described}" if described else "")
    )
