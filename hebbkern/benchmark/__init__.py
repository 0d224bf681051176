"""What `hebbkern bench` measures: how fast and how lean hebbkern is, against NumPy, eager torch and a forward pass.

In the order of the imports: case.py (what is compared); operators.py, steps.py and cases.py (on which inputs);
timing.py, properties.py and curves.py (how it is measured); report.py and picture.py (how it is shown).
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

from hebbkern.benchmark import properties
from hebbkern.benchmark.case import Case
from hebbkern.benchmark.cases import CASES
from hebbkern.benchmark.machine import about
from hebbkern.benchmark.timing import measure, no_compiler

__all__ = ["CASES", "about", "failures", "run"]


def run(
    cases: Iterable[Case], rounds: int, peers: bool = False, say: Callable[[str], object] = lambda line: None
) -> dict[str, Any]:
    """Measures the cases and the properties.

    Args:
        cases: some of CASES.
        rounds: samples of each implementation.
        peers: measure every formulation, also under torch.compile, instead of NumPy, eager and the forward pass only.
        say: receives a line of progress before each case.

    Returns:
        The report, which JSON can hold.
    """
    start, rows = time.perf_counter(), []
    if peers and no_compiler():
        say(f"torch.compile does not work here, so compiled implementations are left out: {no_compiler()}")
    for case in cases:
        say(case.id)
        rows.append(measure(case, rounds, peers))
    say("memory, overhead, threads, determinism")
    measured = properties.memory() + properties.overhead(rounds) + properties.scaling(rounds) + properties.determinism()
    seconds = round(time.perf_counter() - start)
    return {"peers": peers, **about(), "seconds": seconds, "rounds": rounds, "rows": rows, "properties": measured}


def failures(report: dict[str, Any]) -> list[str]:
    """The names of the rows that miss a limit."""
    missed = [row["case"] for row in report["rows"] if not all(row["holds"].values())]
    return missed + [row["case"] for row in report["properties"] if not row["holds"]]
