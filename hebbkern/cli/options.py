"""Types of command line options: what does not fit is refused by argparse, before any work is done."""

import argparse
from pathlib import Path


def count(text):
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return number


def new_file(text):
    """The path of a file that can be written: its folder exists."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        wanted = "a file" if path.is_dir() else "in a folder that exists"
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text}")
    return text


def add_json(parser):
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write what was printed to FILE, for programs")
