"""The suite on the backend "cuda-host" with its kernels watched by a sanitizer.

    python python_tests/helpers/cuda_sanitized.py address [ARGUMENTS]    accesses out of bounds, undefined behaviour
    python python_tests/helpers/cuda_sanitized.py thread [ARGUMENTS]     races of threads and of blocks

ARGUMENTS are pytest's. Exit status 0 where all tests pass and nothing was found. Of parameters each two values meet in
some test (conftest.py).
"""

import subprocess
import sys

import cuda_host
import sanitized

# What a test's layer may multiply at most: emulated barriers take ThreadSanitizer two hundred times as long.
PRODUCTS = {"address": 4e6, "thread": 1e5}


def command(sanitizer, library, arguments=()):
    """The command, and its environment."""
    run = [*sanitized.prefix(sanitizer), sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    run += ["-m", "cuda and not slow", f"--thin={PRODUCTS[sanitizer]}", *arguments]
    without_a_gpu = {"HEBBKERN_CUDA_HOST": str(library), "HEBBKERN_DEVELOPER": "1", "CUDA_VISIBLE_DEVICES": ""}
    return run, sanitized.environment(sanitizer) | without_a_gpu


def main(sanitizer, *arguments):
    if reason := sanitized.why_not(sanitizer):
        print(f"The {sanitizer} sanitizer cannot run here: {reason}")
        return 1
    folder = cuda_host.FOLDER.with_name(f"cuda_host_{sanitizer}")
    run, environment = command(sanitizer, cuda_host.build(folder, sanitized.flags(sanitizer)), arguments)
    return subprocess.run(run, cwd=cuda_host.ROOT, env=environment).returncode


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in sanitized.FLAGS:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
