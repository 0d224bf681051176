"""`hebbkern bench`: every operator and every rule's step against NumPy, eager torch and the bare forward pass."""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from hebbkern import __version__, doctor, options
from hebbkern.benchmark import properties, report
from hebbkern.benchmark.cases import CASES
from hebbkern.benchmark.timing import measure


def run(cases, rounds, say=lambda line: None):
    """Measure the cases and the two properties: the report that is printed, as a dict that JSON can hold."""
    start, rows = time.perf_counter(), []
    for case in cases:
        say(case.id)
        rows.append(measure(case, rounds))
    say("extra memory, determinism")
    memory = properties.memory()
    return {
        "command": "hebbkern bench",
        "version": __version__,
        "machine": doctor.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - start),
        "rows": rows,
        "properties": ([memory] if memory else []) + properties.determinism(),
    }


def failures(found):
    """The rows in which a limit is missed."""
    missed = [row["case"] for row in found["rows"] if not all(row["holds"].values())]
    return missed + [row["case"] for row in found["properties"] if not row["holds"]]


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hebbkern bench", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="only the cases whose name contains TEXT")
    parser.add_argument("--quick", action="store_true", help="only the cases that have limits, with fewer samples")
    parser.add_argument("--rounds", type=options.count, metavar="N", help="samples a contestant (default 15, quick 5)")
    options.add_json(parser)
    parser.add_argument("--markdown", metavar="FILE", help="put the table between the marks in FILE (README.md)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a limit is missed")
    arguments = parser.parse_args(argv)
    cases = [case for case in CASES if arguments.only in case.id and (case.limits or not arguments.quick)]
    if not cases:
        names = "\n  ".join(case.id for case in CASES if case.limits or not arguments.quick)
        parser.error(f'--only must be part of the name of a case, got "{arguments.only}"; there are\n  {names}')
    rounds = arguments.rounds or (5 if arguments.quick else 15)
    found = run(cases, rounds, lambda line: print(f"... {line}", file=sys.stderr, flush=True))
    print(report.text(found))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n")
    if arguments.markdown:
        page = Path(arguments.markdown)
        page.write_text(report.put_between_marks(page.read_text(), report.markdown(found)))
    return 1 if arguments.strict and failures(found) else 0
