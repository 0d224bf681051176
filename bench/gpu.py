"""Tests and times hebbkern's kernels on the GPU of this machine, compiled and Triton's; where there is none it says so.

    python bench/gpu.py                  the suite, then the table; writes results/gpu.json
    python bench/gpu.py --skip-tests     the table only
    python bench/gpu.py --markdown FILE  puts the table of results/gpu.json between its marks in FILE; measures nothing

Every step is compared with the CPU's result before it is timed, by the compiled kernels and by Triton's, against its
floor (the bare forward pass) and against eager torch. Exit status 1 where a test fails or a result differs.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

# Before hebbkern is imported: interpreted kernels would run on the CPU, and without a GPU there is no such backend.
os.environ.pop("TRITON_INTERPRET", None)
os.environ.pop("HEBBKERN_BACKEND", None)
os.environ.pop("HEBBKERN_CUDA_HOST", None)

import torch

import hebbkern as hk
from hebbkern.benchmark import gpu, report
from hebbkern.benchmark.workloads import STEPS
from hebbkern.cli import doctor, options

ROOT = Path(__file__).parent.parent


def suite():
    """What pytest says of the tests of both backends on this GPU: {"passed": bool, "summary": its last line}."""
    command = [sys.executable, "-m", "pytest", "-q", "--all", "-m", "triton or cuda", str(ROOT / "python_tests")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]]
    print("\n".join(lines[-20:]))
    return {"passed": done.returncode == 0, "summary": lines[-1]}


def about():
    """Where the figures were taken."""
    card = torch.cuda.get_device_properties(0)
    versions = {"torch": torch.__version__, "triton": metadata.version("triton"), "version": hk.__version__}
    return {"gpu": card.name, "multiprocessors": card.multi_processor_count, "l2": card.L2_cache_size, **versions}


def timed(steps, rounds, l2):
    """A row for each step; a step that fails is a row that says why."""
    rows = []
    for step in steps:
        print(f"... {step.id}", file=sys.stderr, flush=True)
        try:
            rows.append(gpu.measure(step, rounds, l2=l2))
        except Exception as error:  # of one step; the others are still worth their time
            rows.append({"case": step.id, "failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
    return rows


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-tests", action="store_true", help="do not run the suite first")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the steps whose name contains TEXT")
    parser.add_argument("--rounds", type=options.count, default=15, metavar="N", help="samples (default %(default)s)")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "gpu.json", metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="only put the table of --json into this page")
    arguments = parser.parse_args(argv)
    if arguments.markdown:
        table = gpu.markdown(json.loads(arguments.json.read_text()))
        arguments.markdown.write_text(report.put_between_marks(arguments.markdown.read_text(), table, ": make gpu"))
        return 0
    if not torch.cuda.is_available():
        print("No GPU is found here: nothing was tested, nothing was timed.")
        return 0
    found = {"command": shlex.join(["python", "bench/gpu.py", *argv]), **about(), "processor": doctor.processor()}
    found["suite"] = None if arguments.skip_tests else suite()
    steps = [step for step in STEPS if arguments.only in step.id]
    found["rows"] = timed(steps, arguments.rounds, found["l2"])
    print(f"{found['gpu']}, torch {found['torch']}, hebbkern {found['version']}\n\n{gpu.text(found['rows'])}")
    arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    failed = any("failed" in row for row in found["rows"]) or not (found["suite"] or {"passed": True})["passed"]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
