"""What the compiler made of every Triton kernel, and how fast an H100 could run the steps. Needs no GPU.

    python bench/kernel_report.py               the tables; exit status 1 where something must not be
    python bench/kernel_report.py --json FILE   the same for programs
    python bench/kernel_report.py --all         not one kernel of each configuration, but all that the shapes ask for

Every workload of hebbkern.benchmark is run without a GPU as far as its launches, and their kernels are compiled for
sm_80, sm_90 and sm_100. It fails on a spill, on more shared memory than a block may have, and where a product of
halves or of tf32 is not done on tensor cores. The times are predictions of a model (hebbkern/benchmark/roofline.py),
not measurements: those are made by bench/gpu.py, on a machine with a GPU.
"""

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

# Before hebbkern is imported: an interpreted kernel cannot be compiled, and no backend need be there.
os.environ.pop("TRITON_INTERPRET", None)
os.environ.pop("HEBBKERN_BACKEND", None)


def report(everything=False):
    """{"kernels": rows of machine code, "every_kernel": names, "roofline": rows of predictions}."""
    from hebbkern.benchmark import kernels, roofline
    from hebbkern.benchmark.recording import trace
    from hebbkern.benchmark.variants import VARIANTS
    from hebbkern.benchmark.workloads import STEPS

    traces = {workload.id: trace(workload) for workload in (*STEPS, *VARIANTS)}
    wanted = kernels.builds(traces)
    return {
        "kernels": kernels.rows(wanted if everything else kernels.chosen(wanted)),
        "every_kernel": kernels.every_kernel(),
        "roofline": [roofline.row(step, traces[step.id]) for step in STEPS],
    }


def failures(found):
    """A sentence for all that must not be."""
    missed = [
        f"{row['kernel']} ({row['dtype']}, {row['settings']}) on {row['chip']}: {problem}"
        for row in found["kernels"]
        for problem in row["problems"]
    ]
    reached = {row["kernel"] for row in found["kernels"]}
    return missed + [f"{name}: no workload reaches it" for name in found["every_kernel"] if name not in reached]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON too")
    parser.add_argument("--all", action="store_true", help="every shape's kernel, not one of each configuration")
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed: there are no kernels to report on.")
        return 0
    arguments = parser.parse_args(argv)
    from hebbkern.benchmark import kernels, roofline

    found = report(arguments.all)
    print(f"{kernels.text(found['kernels'])}\n\n{roofline.text(found['roofline'])}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    for sentence in failures(found):
        print(f"FAILS  {sentence}")
    return 1 if failures(found) else 0


if __name__ == "__main__":
    sys.exit(main())
