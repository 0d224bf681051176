"""Has hebbkern become slower? Compares its time in bare forward passes with the committed one.

    python bench/guard.py             exit status 1 where a step takes more forward passes than it did
    python bench/guard.py --update    measure, and write the committed ratios anew

Only ratios are compared, never times. Each is the median over pairs: hebbkern and the bare forward pass alternate at
once, so that other load slows both of a pair. Where the load is so heavy that it does not, the ratio of the fastest
runs is taken if it is smaller. All run on one thread: threads that wait for each other multiply the effect of other
load. A row fails when it is slower in each of several attempts. Ratios hold for one processor and instruction
set; on another the guard has nothing to compare with, and passes.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from hebbkern import benchmark
from hebbkern.benchmark.timing import keep_threads, seconds_of

COMMITTED = Path(__file__).parent.parent / "results" / "bench_guard.json"
SAME = ("machine", "instructions", "kernels", "screening", "backend")  # what must agree for ratios to be comparable
TOLERANCE = 1.25  # times the committed ratio
ATTEMPTS = 4
PAIRS, SECONDS = 41, 2.0  # an attempt ends after so many pairs, or after so long, with at least 5
GUARDED = (
    "rules: KrotovHopfield step, 1024 x 784 x 2000",
    "rules: KrotovHopfield step, 100 x 784 x 100",
    "rules: WTA step, 64x3x32x32 to 96 (5x5)",
    "rules: WTA step, 64x128x12x12 to 192 (3x3)",
    "rules: Sanger step, 64x96x14x14 to 128 (3x3)",
    "rules: Sanger step, 64 x 2304 x 4096",
    "rules: SoftWTA step, 64x3x32x32 to 96 (5x5)",
    "rules: HebbCL step with freezing, 100 x 784 x 500",
    "kwinners: k = 50 of 10000x500",
)


@keep_threads()
def ratio(ours, forward):
    """The median over the pairs, whose order alternates; or the ratio of the fastest runs, if smaller."""
    torch.set_num_threads(1)
    pairs, start = [], time.perf_counter()
    ours(), forward()
    while len(pairs) < 5 or (len(pairs) < PAIRS and time.perf_counter() - start < SECONDS):
        runs = (ours, forward) if len(pairs) % 2 else (forward, ours)
        seconds = {run: seconds_of(run) for run in runs}
        pairs.append((seconds[ours], seconds[forward]))
    fastest = [min(seconds) for seconds in zip(*pairs, strict=True)]
    return min(statistics.median(a / b for a, b in pairs), fastest[0] / fastest[1])


def measured(case):
    """A function that measures the ratio of the case once more."""
    with torch.no_grad():
        implementations = case.build()
    return lambda: ratio(implementations["hebbkern"].run, implementations["forward"].run)


def verdict(name, attempt, committed, attempts=ATTEMPTS):
    """(fails, sentence): fails where every attempt is slower than the tolerance."""
    ratios = []
    while len(ratios) < attempts:
        ratios.append(attempt())
        if ratios[-1] <= committed * TOLERANCE:
            return False, f"ok      {name}: {ratios[-1]:.2f} forward passes, committed {committed:.2f}"
    best = min(ratios)
    slower = 100 * (best / committed - 1)
    times = f"{best:.2f} forward passes at best of {attempts} attempts, committed {committed:.2f}"
    return True, f"SLOWER  {name}: {times}: {slower:.0f} % slower"


def guard(cases, committed, say=print):
    """The exit status: 1 where a row is slower than committed."""
    here = benchmark.about()
    differs = [f"{key} {here[key]}, committed {committed.get(key)}" for key in SAME if here[key] != committed.get(key)]
    if differs:
        say(f"The guard of speed has nothing to compare with here and passes: {'; '.join(differs)}.")
        return 0
    if here["torch"] != committed["torch"]:
        say(f"Note: torch {here['torch']}, committed {committed['torch']}; the forward pass may take another time.")
    slower = []
    for case in cases:
        if case.id not in committed["ratios"]:
            say(f"new     {case.id}: no committed ratio; `python bench/guard.py --update` writes it")
            continue
        fails, sentence = verdict(case.id, measured(case), committed["ratios"][case.id])
        say(sentence)
        slower += [case.id] * fails
    if slower:
        say(f"{len(slower)} of {len(cases)} steps have become slower. If that is intended, write new ratios: --update.")
        return 1
    tolerance = 100 * (TOLERANCE - 1)
    say(f"No step is slower than committed ({len(cases)} compared, tolerance {tolerance:.0f} %).")
    return 0


def update(cases, path, say=print):
    """Writes the median of three attempts for every case."""
    ratios = {}
    for case in cases:
        attempt = measured(case)
        ratios[case.id] = round(statistics.median(attempt() for _ in range(3)), 3)
        say(f"{case.id}: {ratios[case.id]:.2f} forward passes")
    about = benchmark.about() | {"threads": 1}
    report = {"command": "python bench/guard.py --update", **about, "ratios": ratios}
    path.write_text(json.dumps(report, indent=2) + "\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the committed ratios anew")
    parser.add_argument("--ratios", type=Path, default=COMMITTED, metavar="FILE", help="(default %(default)s)")
    arguments = parser.parse_args(argv)
    cases = [case for case in benchmark.CASES if case.id in GUARDED]
    if arguments.update:
        update(cases, arguments.ratios)
        return 0
    return guard(cases, json.loads(arguments.ratios.read_text()))


if __name__ == "__main__":
    sys.exit(main())
