"""Tests of the tests: a bug planted in a kernel of csrc/cuda turns the suite red on the backend "cuda-host".

Each bug is one line of a kernel, replaced; the library is compiled anew beside the sound one and the named tests are
run on it, of which some must fail. That they pass on the sound one the suite itself has shown.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import cuda_host

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Bug:
    what: str
    file: str
    before: str  # occurs once
    after: str
    tests: str  # a file and, behind "::", what pytest's -k selects of it

    @property
    def id(self):
        return f"{self.file}: {self.what}"


BUGS = []


def planted(bug, folder):
    """The library with the bug, in ``folder``; all but one file come from the sound one's objects."""
    shutil.copytree(cuda_host.SOURCES.parent, folder / "csrc")
    shutil.copytree(cuda_host.FOLDER, folder / "build", ignore=shutil.ignore_patterns("*.so"))
    source = folder / "csrc" / "cuda" / bug.file
    text = source.read_text()
    assert text.count(bug.before) == 1, f"{bug.id}: the line occurs {text.count(bug.before)} times"
    source.write_text(text.replace(bug.before, bug.after))
    return cuda_host.build(folder / "build", sources=folder / "csrc" / "cuda")


def outcome(library, tests):
    """pytest's exit status and output on the backend cuda-host served by ``library``."""
    file, _, chosen = tests.partition("::")
    chosen = f"cuda-host and ({chosen})" if chosen else "cuda-host"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / file), "-k", chosen]
    environment = os.environ | {"HEBBKERN_CUDA_HOST": str(library)}
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout[-3000:]


@pytest.mark.skipif(cuda_host.built() is None, reason="csrc/cuda was not compiled for the CPU (cuda_host.py)")
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_a_planted_bug_turns_the_suite_red(bug, tmp_path):
    status, output = outcome(planted(bug, tmp_path), bug.tests)
    assert status == 1, f"pytest says {status}: {output}"
