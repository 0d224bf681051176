"""What the commands share: the parser, types of options, which are checked before any work is done, and --json."""

import argparse
import json
from pathlib import Path
from typing import Any, NoReturn

from hebbkern import files
from hebbkern.checks import wanted_of_file


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def count(text: str) -> int:
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return number


def seed(text: str) -> int:
    """A whole number from 0 to 2^63 - 1, which torch's generators take."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^63 - 1, got {text}")
    return int(text)


def some_file(text: str) -> str:
    """The path of a file, whose folder need not exist."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, got {text or 'nothing'}")
    return text


def new_file(text: str) -> str:
    """The path of a file that can be written: its folder exists."""
    if wanted := wanted_of_file(text):
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text}")
    return text


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds the option --json."""
    parser.add_argument("--json", type=new_file, metavar="FILE", help="also write the report to FILE, as JSON")


def write_json(report: dict[str, Any], file: str | None) -> None:
    """Writes the report to the file that --json names, if any."""
    if file is not None:
        files.write(file, json.dumps(report, indent=2) + "\n")
