"""Which tests a run holds: by default those that a seed draws, of which the commit is one.

A test without parameters always runs. Of a test with parameters, on each backend, so many combinations are drawn that
each value of each parameter is there; on fast backends so many that each two values meet. Successive commits draw other
combinations. Of a test that is marked ``slow`` one combination is drawn, and none where it has no parameters.
"""

import contextlib
import hashlib
import itertools
import os
import subprocess
import tempfile
from pathlib import Path

# Of the combinations in which two values meet for the first time, the share that is drawn. Interpreted and emulated
# kernels take a hundred times as long as compiled ones.
SHARE_OF_PAIRS = {"cpu": 1.0, "eager": 0.0, "triton": 0.0, "cuda": 0.0, None: 0.0}


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
def turn(alone):
    """Within, the test runs beside those of xdist's other workers, or alone.

    All queue at one lock, and take there the lock under which they run: one that waits to be alone is not overtaken.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if not run:
        yield
        return
    import fcntl

    with (
        open(Path(tempfile.gettempdir(), f"hebbkern-queue-{run}"), "w") as queue,
        open(Path(tempfile.gettempdir(), f"hebbkern-turn-{run}"), "w") as turns,
    ):
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(turns, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
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


def drawn(items, kernels_of, seed):
    """The set of items that this seed draws; ``kernels_of(item)`` is the backend of the item, or None."""
    tests, kept = {}, set()
    for item in items:
        if hasattr(item, "callspec"):
            tests.setdefault((item.path, item.originalname, kernels_of(item)), []).append(item)
        elif not item.get_closest_marker("slow"):
            kept.add(item)
    for (*_, kernels), combinations in tests.items():
        combinations.sort(key=lambda item: rank(seed, item))
        if combinations[0].get_closest_marker("slow"):
            kept.add(combinations[0])
            continue
        each = covering(combinations, 1)
        pairs = covering(each + combinations, 2)[len(each) :]
        kept.update(each, pairs[: round(len(pairs) * SHARE_OF_PAIRS[kernels])])
    return kept
