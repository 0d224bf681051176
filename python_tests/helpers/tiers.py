"""Which tests a run holds: by default those that a seed draws, of which the commit is one.

A test without parameters always runs. Of a test with parameters, on each backend, so many combinations are drawn that
each value of each parameter is there; on the CPU's compiled kernels so many that each two values meet; of interpreted
and emulated kernels a third of the fewest tests that hold each value once a file. Successive commits draw other
combinations. Of the tests that are marked ``slow(seconds)``, with parameters or without, so many are drawn as BUDGET
holds, one of each test before a second of any.
"""

import collections
import contextlib
import hashlib
import itertools
import math
import subprocess
from pathlib import Path

INTERPRETED = ("triton", "cuda")  # or emulated, which takes a hundred times as long as compiled kernels
SHARE = 1 / 3  # of the fewest tests of a file on such kernels, another share for each seed, and one at least
PAIRWISE = ("cpu",)  # quick enough
BUDGET = 150  # seconds of slow tests; all of them take an hour
LOCKED = (Path(__file__), Path(__file__).with_name("oracle.py"))  # any two files that every process has


def commit():
    """The commit's hash, or "0" outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "0"


def seconds(text):
    """Of "90", "90s" or "10m"."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("s", "m") else (text, "s")
    return float(number) * {"s": 1, "m": 60}[unit]


@contextlib.contextmanager
def turn(alone, files=LOCKED):
    """Within, the test runs beside those of other processes that call this with the same files, or alone.

    All queue at the lock of one file, and take there that of the other: one that waits to be alone is not overtaken.
    """
    import fcntl  # not on Windows

    with open(files[0]) as queue, open(files[1]) as room:
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield


def rank(seed, item):
    """The item's place in the order of this seed."""
    return hashlib.blake2b(f"{seed} {item.nodeid}".encode(), digest_size=8).digest()


def values(item):
    """The values of the item's parameters; those of one ``parametrize`` with several names are one value."""
    left, found = dict(item.callspec.params), []
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs["argnames"]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        found.append((",".join(names), repr([left.pop(name, None) for name in names])))
    return sorted(found + [(name, repr(value)) for name, value in left.items()])


def covering(items, size):
    """In their order, those items in which ``size`` values of parameters meet for the first time."""
    met, kept = set(), []
    for item in items:
        found = values(item)
        meetings = set(itertools.combinations(found, min(size, len(found))))
        if not meetings <= met:
            met |= meetings
            kept.append(item)
    return kept


def fewest(items):
    """Few items that hold every test and every value of a parameter, found greedily, of equals the first."""
    new = {item: {item.originalname, *values(item)} for item in items}
    kept = []
    while new:
        best = max(new, key=lambda item: len(new[item]))
        found = new.pop(best)
        kept.append(best)
        new = {item: left for item in new if (left := new[item] - found)}
    return kept


def taken(items, seconds_of, seed, budget=BUDGET):
    """The set of those slow items that the seed draws: together they take no longer than the budget (seconds)."""
    turns, order = collections.Counter(), []
    for item in sorted(items, key=lambda item: rank(seed, item)):
        test = item.path, item.originalname
        order.append((turns[test], rank(seed, item), item))
        turns[test] += 1
    kept = set()
    for *_, item in sorted(order, key=lambda entry: entry[:2]):
        if seconds_of(item) <= budget:
            budget -= seconds_of(item)
            kept.add(item)
    return kept


def drawn(items, kernels_of, seconds_of, seed, cost=lambda item: 0):
    """The set of items that this seed draws.

    Args:
        items: pytest's, or what looks like them.
        kernels_of: function of an item: its backend, or None.
        seconds_of: function of an item: how long it takes if it is slow, else None.
        seed: anything; the same draws the same.
        cost: function of an item: of those that are otherwise equal the cheaper are drawn on interpreted kernels.
    """
    tests, slow, kept = {}, [], set()
    for item in items:
        kernels = kernels_of(item)
        if seconds_of(item) is not None:
            slow.append(item)
        elif hasattr(item, "callspec"):
            test = item.path if kernels in INTERPRETED else (item.path, item.originalname)
            tests.setdefault((test, kernels), []).append(item)
        else:
            kept.add(item)
    for (_, kernels), combinations in tests.items():
        expense = cost if kernels in INTERPRETED else lambda item: 0
        combinations.sort(key=lambda item: (expense(item), rank(seed, item)))
        few = fewest(combinations)
        if kernels in INTERPRETED:
            few = sorted(few, key=lambda item: rank(seed, item))[: math.ceil(SHARE * len(few))]
        kept.update(covering(few + combinations, 2) if kernels in PAIRWISE else few)
    return kept | taken(slow, seconds_of, seed)
