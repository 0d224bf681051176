"""`hebbkern bench`: how fast and how lean hebbkern is.

hebbkern bench             every operator and rule against NumPy, eager torch and the bare forward pass
hebbkern bench --peers     the learning steps against every formulation of them in use, also under torch.compile
hebbkern bench --curves    how time and memory grow with patches, neurons, inputs and batch
"""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from hebbkern import benchmark
from hebbkern.benchmark import curves, picture, report
from hebbkern.benchmark.case import Case
from hebbkern.cli import options


def main(argv: list[str]) -> int:
    """Runs `hebbkern bench`; returns 1 where --strict is given and a limit is missed, else 0."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    _check(parser, arguments)
    rounds = arguments.rounds or (5 if arguments.quick else 9 if arguments.peers or arguments.curves else 15)
    results: dict[str, Any] = {"command": shlex.join(["hebbkern", "bench", *argv])}
    if arguments.curves:
        growth = curves.GROWTH[:3] if arguments.quick else curves.GROWTH
        results |= benchmark.about() | curves.run(rounds, growth, _say)
        print(f"{report.machine(results)}\n\n{curves.text(results)}")
    else:
        results |= benchmark.run(_cases(parser, arguments), rounds, arguments.peers, _say)
        print(report.text(results))
    options.write_json(results, arguments.json)
    if arguments.picture:
        (picture.draw_curves if arguments.curves else picture.draw_peers)(results, arguments.picture)
    if arguments.markdown:
        _write_table(results, arguments)
    return 1 if arguments.strict and benchmark.failures(results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = options.Parser(
        prog="hebbkern bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--peers", action="store_true", help="every formulation in use, also under torch.compile")
    add("--curves", action="store_true", help="time and memory against the sizes of the problem")
    add("--only", default="", metavar="TEXT", help="only the cases whose name contains TEXT")
    add("--quick", action="store_true", help="only the cases that have limits, only the first sizes, fewer samples")
    add("--rounds", type=options.count, metavar="N", help="samples (default 15, with --peers or --curves 9, quick 5)")
    options.add_json(parser)
    add("--markdown", metavar="FILE", help="replace the table (and picture) between its marks in the page FILE")
    add("--picture", type=options.new_file, metavar="FILE", help="draw the result of --peers or --curves")
    add("--strict", action="store_true", help="exit with status 1 where a limit is missed")
    return parser


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the program, before any work, where options exclude each other or a result could not be written."""
    if arguments.picture and not (arguments.peers or arguments.curves):
        parser.error("--picture needs --peers or --curves")
    if arguments.curves and (arguments.peers or arguments.only or arguments.strict):
        parser.error("--curves does not go with --peers, --only or --strict")
    try:
        if arguments.picture:
            picture.figure(1, 1)
        if arguments.markdown:
            report.put_between_marks(Path(arguments.markdown).read_text(), "", _kind(arguments))
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))


def _cases(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[Case]:
    """The cases that the options select; ends the program where there is none."""
    pool = [case for case in benchmark.CASES if case.peers or not arguments.peers]
    pool = [case for case in pool if case.limits or not arguments.quick]
    cases = [case for case in pool if arguments.only in case.id]
    if not cases:
        names = "\n  ".join(case.id for case in pool)
        parser.error(f'--only must be part of the name of a case, got "{arguments.only}"; there are\n  {names}')
    return cases


def _kind(arguments: argparse.Namespace) -> str:
    """The marks of the page: " --curves", " --peers" or none."""
    return " --curves" * arguments.curves + " --peers" * arguments.peers


def _say(line: str) -> None:
    print(f"... {line}", file=sys.stderr, flush=True)


def _write_table(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    page = Path(arguments.markdown)
    table = curves.markdown(results) if arguments.curves else report.markdown(results)
    if arguments.picture:
        caption = picture.CURVES_CAPTION if arguments.curves else picture.PEERS_CAPTION
        table = f"![{caption}]({Path(os.path.relpath(arguments.picture, page.parent)).as_posix()})\n\n{table}"
    page.write_text(report.put_between_marks(page.read_text(), table, _kind(arguments)))
