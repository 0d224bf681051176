"""Tests and times hebbkern's kernels, compiled and Triton's, on the GPU of this machine.

    python bench/gpu.py                  the suite, then the table; writes results/gpu.json
    python bench/gpu.py --skip-tests     the table only
    python bench/gpu.py --markdown FILE  puts the table of results/gpu.json between its marks in FILE; measures nothing

Every step, by the compiled kernels and by Triton's, is compared with the CPU's result, then timed against the bare
forward pass and eager torch. Exit status 1 where a test fails or a result differs. Without a GPU nothing is measured.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

# Unset before hebbkern is imported: interpreted and emulated kernels run on the CPU.
os.environ.pop("TRITON_INTERPRET", None)
os.environ.pop("HEBBKERN_BACKEND", None)
os.environ.pop("HEBBKERN_CUDA_HOST", None)

import torch

import hebbkern as hk
from gpu_report import timing
from gpu_report.workloads import STEPS
from hebbkern.benchmark import report
from hebbkern.benchmark.machine import processor
from hebbkern.cli import options

ROOT = Path(__file__).parent.parent


def suite():
    """Runs the tests of both backends on this GPU: {"passed": bool, "summary": the last line of pytest}."""
    command = [sys.executable, "-m", "pytest", "-q", "--all", "-m", "triton or cuda", str(ROOT / "python_tests")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]]
    print("\n".join(lines[-20:]))
    return {"passed": done.returncode == 0, "summary": lines[-1]}


def about():
    """Where the figures come from."""
    card = torch.cuda.get_device_properties(0)
    versions = {"torch": torch.__version__, "triton": metadata.version("triton"), "version": hk.__version__}
    return {"gpu": card.name, "multiprocessors": card.multi_processor_count, "l2": card.L2_cache_size, **versions}


def timed(steps, rounds, l2):
    """A row for each step; the row of a step that fails has the reason."""
    rows = []
    for step in steps:
        print(f"... {step.id}", file=sys.stderr, flush=True)
        try:
            rows.append(timing.measure(step, rounds, l2=l2))
        except Exception as error:  # the other steps are still timed
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
        table = timing.markdown(json.loads(arguments.json.read_text()))
        arguments.markdown.write_text(report.put_between_marks(arguments.markdown.read_text(), table, ": make gpu"))
        return 0
    if not torch.cuda.is_available():
        print("There is no GPU here: nothing is tested or timed.")
        return 0
    results = {"command": shlex.join(["python", "bench/gpu.py", *argv]), **about(), "processor": processor()}
    results["suite"] = None if arguments.skip_tests else suite()
    steps = [step for step in STEPS if arguments.only in step.id]
    results["rows"] = timed(steps, arguments.rounds, results["l2"])
    print(
        f"{results['gpu']}, torch {results['torch']}, hebbkern {results['version']}\n\n{timing.text(results['rows'])}"
    )
    arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    failed = any("failed" in row for row in results["rows"]) or not (results["suite"] or {"passed": True})["passed"]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
