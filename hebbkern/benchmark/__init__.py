"""`hebbkern bench`: how fast and how lean hebbkern is, measured against others and against the bare forward pass.

hebbkern bench             every operator and rule against NumPy, eager torch and the floor
hebbkern bench --peers     the learning steps against every formulation of them that is in use, and compiled
hebbkern bench --curves    how time and memory grow with patches, neurons, inputs and batch
"""

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path

import torch

from hebbkern import __version__, backends
from hebbkern.benchmark import curves, picture, properties, report
from hebbkern.benchmark.cases import CASES
from hebbkern.benchmark.timing import measure, no_compiler
from hebbkern.cli import doctor, options


def about():
    """What every report says of where it was made."""
    return {
        "version": __version__,
        "machine": doctor.processor(),
        "instructions": doctor.instructions(),
        "kernels": getattr(sys.modules.get("hebbkern._cpu"), "isa", doctor.kernels()),  # float32's, which are timed
        "screening": doctor.screening(),
        "backend": backends.current(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def run(cases, rounds, peers=False, say=lambda line: None):
    """Measure the cases and the properties: the report that is printed, as a dict that JSON can hold."""
    start, rows = time.perf_counter(), []
    if peers and no_compiler():
        say(f"torch.compile does not work here, its contestants are left out: {no_compiler()}")
    for case in cases:
        say(case.id)
        rows.append(measure(case, rounds, everybody=peers))
    say("memory, overhead, threads, determinism")
    found = properties.memory() + properties.overhead(rounds) + properties.scaling(rounds) + properties.determinism()
    seconds = round(time.perf_counter() - start)
    return {"peers": peers, **about(), "seconds": seconds, "rounds": rounds, "rows": rows, "properties": found}


def failures(found):
    """The rows in which a limit is missed."""
    missed = [row["case"] for row in found["rows"] if not all(row["holds"].values())]
    return missed + [row["case"] for row in found["properties"] if not row["holds"]]


def main(argv=None):
    argv = sys.argv[2:] if argv is None else argv
    parser = _parser()
    arguments = parser.parse_args(argv)
    _refuse_before_any_work(parser, arguments)
    rounds = arguments.rounds or (5 if arguments.quick else 9 if arguments.peers or arguments.curves else 15)
    found = {"command": shlex.join(["hebbkern", "bench", *argv])}
    if arguments.curves:
        growth = curves.GROWTH[:3] if arguments.quick else curves.GROWTH
        found |= about() | curves.run(rounds, growth, _say)
        print(f"{report.machine(found)}\n\n{curves.text(found)}")
    else:
        found |= run(_cases(parser, arguments), rounds, arguments.peers, _say)
        print(report.text(found))
    _write(found, arguments)
    return 1 if arguments.strict and failures(found) else 0


def _refuse_before_any_work(parser, arguments):
    """Ends the program where the options do not go together, or what they ask for could not be written."""
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


def _kind(arguments):
    """Which marks of a page are meant."""
    return " --curves" * arguments.curves + " --peers" * arguments.peers


def _parser():
    parser = argparse.ArgumentParser(
        prog="hebbkern bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", action="store_true", help="every formulation in use, also under torch.compile")
    parser.add_argument("--curves", action="store_true", help="time and memory against the sizes of the problem")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the cases whose name contains TEXT")
    parser.add_argument(
        "--quick", action="store_true", help="only the cases that have limits, the first sizes; with fewer samples"
    )
    parser.add_argument(
        "--rounds", type=options.count, metavar="N", help="samples (default 15, peers and curves 9, quick 5)"
    )
    options.add_json(parser)
    parser.add_argument("--markdown", metavar="FILE", help="put table and picture between their marks in FILE")
    parser.add_argument("--picture", type=options.new_file, metavar="FILE", help="draw what --peers or --curves found")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a limit is missed")
    return parser


def _cases(parser, arguments):
    """Those that the options name; a mistake ends the program."""
    pool = [case for case in CASES if (case.peers or not arguments.peers) and (case.limits or not arguments.quick)]
    cases = [case for case in pool if arguments.only in case.id]
    if not cases:
        names = "\n  ".join(case.id for case in pool)
        parser.error(f'--only must be part of the name of a case, got "{arguments.only}"; there are\n  {names}')
    return cases


def _say(line):
    print(f"... {line}", file=sys.stderr, flush=True)


def _write(found, arguments):
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n")
    if arguments.picture:
        (picture.draw_curves if arguments.curves else picture.draw_peers)(found, arguments.picture)
    if arguments.markdown:
        page = Path(arguments.markdown)
        table = curves.markdown(found) if arguments.curves else report.markdown(found)
        if arguments.picture:
            link = Path(os.path.relpath(arguments.picture, page.parent)).as_posix()
            table = f"![{picture.CAPTIONS[arguments.curves]}]({link})\n\n{table}"
        page.write_text(report.put_between_marks(page.read_text(), table, _kind(arguments)))
