"""What the compilers made of every GPU kernel, and how fast an H100 could run the steps. Needs no GPU.

    python -m bench.gpu_report               the tables; exit status 1 where a kernel has a problem
    python -m bench.gpu_report --json FILE   also write the report to FILE
    python -m bench.gpu_report --all         every kernel that the shapes need, not one of each configuration

Every workload runs without a GPU as far as its launches. Triton's kernels are compiled for sm_80, sm_90 and sm_100. The
kernels of csrc/cuda are read from the library that the build made (hebbkern/_cuda), and their launches recorded from
the same kernels compiled for the CPU (python_tests/helpers/cuda_host.py). The report fails on a spill and, for Triton,
on more shared memory than a block may have and on products of halves or of tf32 without tensor cores. The times are
predictions of a model (roofline.py); bench/gpu.py measures them on a GPU.
"""

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

# Set before hebbkern is imported: an interpreted kernel cannot be compiled, and no backend need be available.
os.environ.pop("TRITON_INTERPRET", None)
os.environ.pop("HEBBKERN_BACKEND", None)
EMULATED = Path(__file__).resolve().parents[2] / "build" / "cuda_host" / "_cuda_host.abi3.so"
if EMULATED.exists():
    os.environ.setdefault("HEBBKERN_CUDA_HOST", str(EMULATED))
    os.environ["HEBBKERN_DEVELOPER"] = "1"  # without it HEBBKERN_CUDA_HOST has no effect


def make_report(every_shape=False):
    """{"kernels": rows of machine code, "every_kernel": names, "cuda": see `cuda_report`, "roofline": predictions}."""
    from . import roofline, triton_code
    from .triton_recording import trace
    from .variants import VARIANTS
    from .workloads import STEPS

    traces = {workload.id: trace(workload) for workload in (*STEPS, *VARIANTS)}
    builds = triton_code.builds(traces)
    cuda, launches = cuda_report((*STEPS, *VARIANTS))
    return {
        "kernels": triton_code.rows(builds if every_shape else triton_code.one_of_each(builds)),
        "every_kernel": triton_code.every_kernel(),
        "cuda": cuda,
        "roofline": [roofline.row(step, traces[step.id], launches.get(step.id)) for step in STEPS],
    }


def cuda_report(workloads):
    """The report on csrc/cuda, and {workload: its trace}.

    The report has "rows", "left_out" (sentences), "unknown" (kernels that are launched but not compiled) and "launched"
    ({workload: names of kernels}).
    """
    from . import cuda_code, cuda_recording

    library, reason, launches = cuda_code.library(), cuda_recording.missing(), {}
    left_out = (
        [] if library else ["the machine code of the CUDA kernels: hebbkern/_cuda is not built, which needs nvcc"]
    )
    left_out += [f"the launches of the CUDA kernels: {reason}"] if reason else []
    for workload in () if reason else workloads:
        try:
            launches[workload.id] = cuda_recording.trace(workload)
        except NotImplementedError as error:
            left_out.append(f"{workload.id}: {error}")
    rows = cuda_code.rows(library) if library else []
    unknown = cuda_code.launched(rows, launches)
    names = {name: [launch.kernel for launch in cuda_recording.launches(order)] for name, order in launches.items()}
    return {"rows": rows, "left_out": left_out, "unknown": unknown if rows else [], "launched": names}, launches


def failures(report):
    """A sentence for each problem of a report."""
    sentences = [
        f"{row['kernel']} ({row['dtype']}, {row['settings']}) on {row['chip']}: {problem}"
        for row in report["kernels"]
        for problem in row["problems"]
    ]
    sentences += [
        f"{row['instance']} on {row['chip']}: {problem}"
        for row in report["cuda"]["rows"]
        for problem in row["problems"]
    ]
    sentences += [f"{name} is launched but not in the compiled library" for name in report["cuda"]["unknown"]]
    reached = {row["kernel"] for row in report["kernels"]}
    return sentences + [f"{name}: no workload reaches it" for name in report["every_kernel"] if name not in reached]


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to FILE, as JSON")
    parser.add_argument("--all", action="store_true", help="every shape's kernel, not one of each configuration")
    arguments = parser.parse_args(argv)
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed: there are no kernels to report on.")
        return 0
    from . import cuda_code, roofline, triton_code

    report = make_report(arguments.all)
    print(f"{triton_code.text(report['kernels'])}\n")
    if report["cuda"]["rows"]:
        print(f"{cuda_code.text(report['cuda']['rows'])}\n")
    print(f"{roofline.text(report['roofline'])}\n\n{roofline.beside(report['roofline'])}")
    for sentence in report["cuda"]["left_out"]:
        print(f"LEFT OUT  {sentence}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    for sentence in failures(report):
        print(f"FAILS  {sentence}")
    return 1 if failures(report) else 0


if __name__ == "__main__":
    sys.exit(main())
