"""Tests of the tests: a bug planted in a kernel of csrc/cuda turns the suite red on the backend "cuda-host".

Each bug replaces one line of a kernel. The library is compiled again in a temporary folder, and the named tests, which
pass on the sound library, must fail on it.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import cuda_host

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Bug:
    description: str
    file: str
    before: str  # occurs once
    after: str
    tests: str  # a file and, behind "::", what pytest's -k selects of it

    @property
    def id(self):
        return f"{self.file}: {self.description}"


BUGS = [
    # A missing barrier.
    Bug("the warps' sums of a list are added before all are written", "gather.cu",
        "if (lane == 0) shared.shares[warp] = share;\n  __syncthreads();",
        "if (lane == 0) shared.shares[warp] = share;",
        "test_cuda_accumulate.py::lists_that_just_fit"),
    Bug("a team combines values that are not written yet", "rows.cuh",
        "of_warps[warp] = value;\n  __syncthreads();", "of_warps[warp] = value;", "test_apply.py::test_steps"),
    Bug("a tile of weights is multiplied while it is written", "finish.cu",
        "put((step + 1) % 2);\n      __syncthreads();", "put((step + 1) % 2);",
        "test_cuda_dense_update.py::general and every_algorithm"),
    Bug("the number of equal entries before is read before it is counted", "kwinners.cu",
        "shared.equals[warp][row] = mine;\n  __syncthreads();", "shared.equals[warp][row] = mine;",
        "test_cuda_kwinners.py::test_widths"),
    Bug("a stage is written while others still multiply it", "walk.cu",
        "__syncthreads();  // all copies have arrived, and no thread reads the step before", "",
        "test_cuda_compete.py::any_order"),
    # A missing wait for a copy.
    Bug("weights are multiplied before they have arrived", "residual.cu",
        "cp_async_wait<stages - 2>();", "cp_async_wait<stages - 1>();",
        "test_cuda_dense_update.py::residual and every_algorithm"),
    Bug("patches are searched before they have arrived", "nearest_patch.cu",
        "cp_async_wait<stages<S, T> - 2>", "cp_async_wait<stages<S, T> - 1>",
        "test_cuda_nearest_patch.py::test_several_tiles"),
    # A bound that is off by one.
    Bug("the last input is not stored", "gather.cu",
        "if (column < view.inputs) *reint", "if (column < view.inputs - 1) *reint",
        "test_cuda_accumulate.py::lists_that_just_fit"),
    Bug("a list of exactly one piece is cut", "gather.cu", "size > piece ||", "size >= piece ||",
        "test_cuda_accumulate.py::lists_that_just_fit"),
    Bug("the last input of a row is not stepped", "rows.cuh",
        "if (n + i < weight.inputs) *weight.spot(j, n + i) = all.at[i];",
        "if (n + i < weight.inputs - 1) *weight.spot(j, n + i) = all.at[i];", "test_apply.py::test_steps"),
    Bug("the last neuron does not compete", "products.cuh",
        "const bool there = neuron < end && entry", "const bool there = neuron < end - 1 && entry",
        "test_cuda_screen.py::screened_winners"),
    Bug("the last neuron of a group does not compete", "few.cu", "contends = j < each &&", "contends = j < each - 1 &&",
        "test_cuda_compete.py::wins_alone"),
    Bug("neurons of the groups before compete", "walk.cu", "begin = group * neurons + share;", "begin = share;",
        "test_cuda_compete.py::wins_alone"),
    Bug("patches of the next group are searched", "nearest_patch.cu",
        "min(begin + run, before + query.view.of_a_group())", "min(begin + run, int64_t(query.view.patches))",
        "test_cuda_nearest_patch.py::finds_alone"),
    Bug("the last neuron's response is left out of a softmax", "activate.cu",
        "neuron < layer.neurons; neuron += 32)", "neuron < layer.neurons - 1; neuron += 32)",
        "test_cuda_dense_update.py::softmax_in_several_tiles"),
    # A tie that is decided wrongly.
    Bug("of equal responses the last wins", "walk.cu", "k == 1 && responses[i][j] > bar[i]",
        "k == 1 && responses[i][j] >= bar[i]", "test_cuda_compete.py::everybody_enters"),
    Bug("of equal entries the last are kept", "kwinners.cuh", "equal & lower_lanes", "equal & ~lower_lanes",
        "test_cuda_kwinners.py::test_widths"),
    Bug("of equally near patches the last is nearest", "nearest_patch.cu",
        "if (distance < value) {", "if (distance <= value) {", "test_cuda_nearest_patch.py::test_of_equals"),
    Bug("quotients are products with a rounded inverse", "nearest_patch.cu",
        "quotient((squares[i] - dot) + (length.square - dot), whole)",
        "((squares[i] - dot) + (length.square - dot)) * (1 / whole)",
        "test_cuda_nearest_patch.py::equal_quotients"),
    Bug("of equal responses the last wins a softmax", "dense_update.cuh",
        "beats(other.best, other.winner, best, winner) ?", "other.best >= best ?",
        "test_dense_update.py::softmax_ties"),
    # An error bound that is too narrow, a step that is not all or nothing, a lost sign.
    Bug("the rounding of weights is left out of the bound", "bound.cuh", "+ of.wide * slip;", ";",
        "test_cuda_screen.py::what_rounding_takes"),
    Bug("an entry whose step is zero is written", "apply.cu", "else if (row.rate * delta != 0)", "else",
        "test_apply.py::test_rows_that_do_not_move"),
    Bug("frozen rows are examined", "apply.cu", "  if (row.tall < 0) return;\n", "", "test_apply.py::test_frozen"),
    Bug("a skipped step is not counted", "apply.cu", "*skipped += 1", "*skipped += 0", "test_apply.py::overflow"),
]  # fmt: skip


def planted(bug, folder):
    """The library with the bug, in ``folder``; all but one file come from the sound one's objects."""
    shutil.copytree(cuda_host.SOURCES.parent, folder / "csrc")
    shutil.copytree(cuda_host.FOLDER, folder / "build", ignore=shutil.ignore_patterns("*.so"))
    (source,) = (folder / "csrc" / "cuda").rglob(bug.file)
    text = source.read_text()
    assert text.count(bug.before) == 1, f"{bug.id}: the line occurs {text.count(bug.before)} times"
    source.write_text(text.replace(bug.before, bug.after))
    return cuda_host.build(folder / "build", sources=folder / "csrc" / "cuda")


def outcome(library, tests):
    """pytest's exit status and output on the backend cuda-host served by ``library``."""
    file, _, chosen = tests.partition("::")
    if not file.startswith("test_cuda"):  # whose tests are of this backend alone
        chosen = f"cuda-host and ({chosen})"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "--all",
        "-p",
        "no:cacheprovider",
        str(next(TESTS.rglob(file))),
        "-k",
        chosen,
    ]
    environment = os.environ | {
        "HEBBKERN_CUDA_HOST": str(library),
        "HEBBKERN_DEVELOPER": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout[-3000:]


@pytest.mark.slow(60)
@pytest.mark.skipif(cuda_host.built() is None, reason="csrc/cuda was not compiled for the CPU (cuda_host.py)")
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_a_planted_bug_turns_the_suite_red(bug, tmp_path):
    status, output = outcome(planted(bug, tmp_path), bug.tests)
    assert status == 1, f"pytest says {status}: {output}"
