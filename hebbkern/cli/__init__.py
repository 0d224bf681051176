"""The command line: hebbkern demo, train, bench and doctor. `--json FILE` writes the report of a command as JSON."""

import argparse
import os
import re
import sys
from importlib import import_module

from hebbkern import __version__
from hebbkern.cli import options

# The module of each command, whose main(argv) runs it. It is imported when the command is called.
COMMANDS = {
    "demo": ("hebbkern.cli.demo", "learn digits, measure the accuracy, time the step and draw the weights"),
    "train": ("hebbkern.training.run", "train a network by local rules, with checkpoints and exact resume"),
    "bench": ("hebbkern.cli.bench", "time every operator and rule against NumPy, eager torch and the forward pass"),
    "doctor": ("hebbkern.cli.doctor", "report what is installed, which kernels run, and what to do about the rest"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0, or after one line on stderr 1 or 2 for a mistake that the user can correct, and 130 for
        Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    command = " ".join(["hebbkern", *argv[:1]])
    try:
        try:
            if not argv or argv[0] not in COMMANDS:
                argv = [_parser().parse_args(argv).command]  # --help, --version and mistakes end the process
            return import_module(COMMANDS[argv[0]][0]).main(argv[1:])
        finally:
            _flush()
    except KeyboardInterrupt:
        line, status = "interrupted", 130
    except BrokenPipeError:  # whoever read the output has seen enough
        return 1
    except (ValueError, RuntimeError, OSError, ImportError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not re.match("hebbkern|.*(allocate|out of memory)", str(error)):
            raise
        line, status = str(error).partition("\n")[0] or "out of memory", 1
    rank = os.environ.get("RANK", "0")
    print(f"{command}{f' (process {rank})' if rank != '0' else ''}: {line}", file=sys.stderr)
    return status


def _flush() -> None:
    """Writes what was printed, while an error can still be told."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again at the end
        raise OSError(error.errno, error.strerror, "standard output") from error


def _parser() -> argparse.ArgumentParser:
    parser = options.Parser(prog="hebbkern", description="Neural layers that learn by local (Hebbian) rules.")
    parser.add_argument("--version", action="version", version=f"hebbkern {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, description) in COMMANDS.items():
        commands.add_parser(name, help=description)
    return parser
