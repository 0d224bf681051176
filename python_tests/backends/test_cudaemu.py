"""The emulator that runs CUDA kernels without a GPU: what it computes, and what faults it and the sanitizers notice."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sanitized

SOURCES = Path(__file__).parents[1] / "cudaemu"
VARIANTS = ["plain", "address", "thread"]

ERROR = 3  # the exit status of faults.cu where the emulator notices
PLAIN = ["plain"]
ALL = VARIANTS
RACE = {"plain": "wrong", "address": "wrong", "thread": "data race"}
UNSEEN_RACE = {"thread": "data race"}  # a thread runs undisturbed to the next barrier, so that the sums are right
FAULTS = {
    "no_barrier": RACE,
    "no_second_barrier": RACE,
    "no_warp_barrier": RACE,
    "no_barrier_before_reuse": RACE,
    "no_atomic_global": UNSEEN_RACE,
    "no_atomic_shared": UNSEEN_RACE,
    "no_wait": dict.fromkeys(ALL, "wrong"),
    "left_over": dict.fromkeys(["plain", "thread"], "wrong"),
    "past_static": {"address": "out of bounds"},
    "past_dynamic": {"address": "heap-buffer-overflow"},
    "past_matrix": {"address": "heap-buffer-overflow"},
    "misaligned": {"address": "misaligned address"},
    "divergent_barrier": dict.fromkeys(ALL, "Error: divergent barrier: thread"),
    "partial_warp": dict.fromkeys(ALL, "Error: partial warp: thread"),
    "two_branches": dict.fromkeys(ALL, "Error: divergent warp: thread"),
    "half_mask": dict.fromkeys(PLAIN, "Error: partial warp: thread"),
    "absent_lane": dict.fromkeys(PLAIN, "reads lane 20, which takes no part"),
    "short_warp": dict.fromkeys(PLAIN, "reads lane 16, which takes no part"),
    "foreign_mask": dict.fromkeys(PLAIN, "is not in the mask it gave"),
    "circle": dict.fromkeys(PLAIN, "Error: deadlock: thread"),
    "odd_row": dict.fromkeys(PLAIN, "misaligned address"),
    "odd_copy": dict.fromkeys(PLAIN, "misaligned address"),
    "half_product": dict.fromkeys(PLAIN, "needs all 32 lanes"),
    "trapped": dict.fromkeys(PLAIN, "thread (7,0,0) of block"),
    "deep": {"plain": "Error: stack overflow", "address": "AddressSanitizer: stack-"},
    "too_many": dict.fromkeys(PLAIN, "Error: invalid launch configuration"),
}
FUNCTIONS = ["arithmetic", "cub", "geometry", "halves", "ldmatrix", "mma", "order", "threads", "warps", "zfill"]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Compiles a source once a variant; gives the program or the library."""
    folder, built = tmp_path_factory.mktemp("cudaemu"), {}

    def build(source, variant, *flags):
        if not shutil.which("g++"):
            pytest.skip("no g++")
        if variant != "plain" and sanitized.why_not(variant):
            pytest.skip(f"{variant} sanitizer: {sanitized.why_not(variant)}")
        if (source, variant) not in built:
            output = folder / f"{source}-{variant}"
            flags = [*flags, *(["-O1"] if variant == "plain" else sanitized.flags(variant))]
            flags += ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
            command = ["g++", *flags, "-x", "c++", str(SOURCES / f"{source}.cu"), "-o", str(output)]
            done = subprocess.run(command, capture_output=True, text=True)
            built[source, variant] = output if done.returncode == 0 else done.stderr
        program = built[source, variant]
        assert isinstance(program, Path), program
        return program

    return build


def run(program, variant, *arguments):
    prefix = sanitized.prefix(variant) if variant != "plain" else []
    options = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([*prefix, program, *arguments], env=os.environ | options, capture_output=True, text=True)


@pytest.mark.slow(15)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_compute_what_cuda_does(name, build):
    done = run(build("functions", "plain"), "plain", name)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow(15)
@pytest.mark.parametrize("variant", ["address", "thread"])
def test_functions_please_the_sanitizers(variant, build):
    done = run(build("functions", variant), variant)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


@pytest.mark.slow(15)
@pytest.mark.parametrize("variant", VARIANTS)
def test_right_kernels_please_every_run(variant, build):
    done = run(build("faults", variant), variant)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow(20)
@pytest.mark.parametrize(("name", "variant"), [(name, variant) for name, by in FAULTS.items() for variant in by])
def test_faults_are_noticed(name, variant, build):
    done = run(build("faults", variant), variant, name)
    message = FAULTS[name][variant]
    assert message in done.stdout + done.stderr
    assert done.returncode == ERROR if "Error: " in done.stdout else done.returncode not in (0, ERROR)


PROCESS = """
import ctypes, sys
import torch
library = ctypes.CDLL(sys.argv[1])
library.turn_blocks.restype = ctypes.c_bool
x = torch.randn(4, 100) @ torch.randn(100, 64)
large = torch.empty(1 << 20).fill_(1).add_(x[0, 0]).sort().values.clone()
y = torch.zeros(256)
turn = lambda fault: library.turn_blocks(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), 4, fault)
assert not turn(3) and turn(0)
assert torch.equal(y.reshape(4, 64), x.roll(-1, 1))
turn(int(sys.argv[2]))
"""


@pytest.mark.slow(15)
@pytest.mark.parametrize(
    ("variant", "fault", "says"),
    [("address", 0, None), ("address", 2, "heap-buffer-overflow"), ("thread", 0, None), ("thread", 1, "data race")],
)
def test_libraries_are_watched_in_a_process_with_torch(variant, fault, says, build):
    library = build("extension", variant, "-shared", "-fPIC")
    command = [*sanitized.prefix(variant), sys.executable, "-c", PROCESS, str(library), str(fault)]
    done = subprocess.run(command, env=sanitized.environment(variant), capture_output=True, text=True)
    refusal, _, said = done.stderr.partition("\n")
    assert refusal.startswith("Error: divergent barrier")
    if says:
        assert says in said
        assert done.returncode != 0
    else:
        assert (done.returncode, said) == (0, "")
