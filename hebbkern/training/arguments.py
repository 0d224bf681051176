"""The arguments of `hebbkern train`: jsonargparse makes them from the fields of `Config`."""

from __future__ import annotations

import argparse
import dataclasses
import re

from hebbkern.cli import options
from hebbkern.training.config import Config

DESCRIPTION = """Train layers by local rules. Leaves a run folder with its configuration, metrics, pictures and
checkpoints, from which --resume goes on exactly; under torchrun, processes share the batches."""


def parse(argv: list[str]) -> tuple[Config, str | None]:
    """The run that the arguments of `hebbkern train` describe, and the file to write its report to (--json).

    A flag counts for more than the file of --config, wherever it stands. --help and --print_config end the process.

    Raises:
        ValueError: in one sentence that names what is unknown or wrong.
        ImportError: jsonargparse is missing.
    """
    try:
        from jsonargparse import ArgumentError, ArgumentParser
    except ImportError as error:
        raise ImportError("hebbkern.training: jsonargparse is missing: pip install 'hebbkern[train]'") from error
    parser = ArgumentParser(prog="hebbkern train", description=DESCRIPTION, exit_on_error=False)
    parser.add_argument("--config", action="config", help="a YAML file of the fields below; flags count for more")
    parser.add_class_arguments(Config)
    parser.add_argument("--json", type=options.new_file, metavar="FILE", help="write the report to FILE too")
    switches = [each.name for each in dataclasses.fields(Config) if each.type == "bool"]
    for action in parser._actions:
        if action.dest in switches:  # --resume alone means --resume true
            action.nargs, action.const = "?", True
    try:
        parsed = vars(parser.instantiate(parser.parse_args(_config_first(argv))))
    except (ArgumentError, argparse.ArgumentError, ValueError) as error:
        raise ValueError(_sentence(str(error))) from error
    known = {each.name for each in dataclasses.fields(Config)}
    return Config(**{name: value for name, value in parsed.items() if name in known}), parsed["json"]


def _config_first(argv: list[str]) -> list[str]:
    """The arguments with --config FILE in front, for jsonargparse lets later ones count for more."""
    files, rest, left = [], [], list(argv)
    while left:
        argument = left.pop(0)
        place = files if argument.partition("=")[0] == "--config" else rest
        place.append(argument)
        if argument == "--config" and left:
            files.append(left.pop(0))
    return files + rest


def _sentence(message: str) -> str:
    """What jsonargparse says over several lines, in one sentence that names the field."""
    key = match[1] if (match := re.search(r'key "([^"]+)"', message)) else None
    if unknown := re.search(r"Option '([^']+)' is not accepted", message):
        flag = f"--{key}.help" if key in ("layers", "head") else "--help"
        return f'"{unknown[1]}" is no field of {key or "a run"}; hebbkern train {flag} lists them'
    if own := re.search(r"(hebbkern\.\w+: .*)", message):
        return own[1]
    given = re.search(r"(?:Given value|Got value): (.*)", message)
    classes = re.findall(r"Expected a <class '(\w+)'>", message)
    choices = re.findall(r"'(\w+)'", match[1]) if (match := re.search(r"typing\.Literal\[(.*?)\]", message)) else []
    if key and given and (wanted := choices or classes):
        return f"{key} must be {' or '.join(wanted).replace('NoneType', 'null')}, got {given[1]}"
    return " ".join(message.split())
