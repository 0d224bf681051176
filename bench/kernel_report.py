"""What the compilers made of every kernel for GPUs, and how fast an H100 could run the steps. Needs no GPU.

    python bench/kernel_report.py               the tables; exit status 1 where something must not be
    python bench/kernel_report.py --json FILE   the same for programs
    python bench/kernel_report.py --all         not one kernel of each configuration, but all that the shapes ask for

Every workload of hebbkern.benchmark is run without a GPU as far as its launches. Triton's kernels are compiled for
sm_80, sm_90 and sm_100. Those of csrc/cuda are read from the library that the build made (hebbkern/_cuda), and what is
launched of them from the same compiled for the CPU (python_tests/helpers/cuda_host.py). It fails on a spill, and of
Triton's on more shared memory than a block may have and where a product of halves or of tf32 is not on tensor cores;
for csrc/cuda python_tests/benchmark/test_kernels.py asks for the promised instructions. The times are
predictions of a model (hebbkern/benchmark/roofline.py), not measurements: those are made by bench/gpu.py, on a machine
with a GPU.
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
EMULATED = Path(__file__).resolve().parent.parent / "build" / "cuda_host" / "_cuda_host.abi3.so"
if EMULATED.exists():
    os.environ.setdefault("HEBBKERN_CUDA_HOST", str(EMULATED))


def report(everything=False):
    """{"kernels": rows of machine code, "every_kernel": names, "cuda": of_cuda, "roofline": rows of predictions}."""
    from hebbkern.benchmark import kernels, roofline
    from hebbkern.benchmark.recording import trace
    from hebbkern.benchmark.variants import VARIANTS
    from hebbkern.benchmark.workloads import STEPS

    traces = {workload.id: trace(workload) for workload in (*STEPS, *VARIANTS)}
    wanted = kernels.builds(traces)
    cuda, launches = of_cuda((*STEPS, *VARIANTS))
    return {
        "kernels": kernels.rows(wanted if everything else kernels.chosen(wanted)),
        "every_kernel": kernels.every_kernel(),
        "cuda": cuda,
        "roofline": [roofline.row(step, traces[step.id], launches.get(step.id)) for step in STEPS],
    }


def of_cuda(workloads):
    """Of csrc/cuda {"rows", "left_out": sentences, "unknown": launched, not compiled}, and {workload: order}."""
    from hebbkern.benchmark import cuda_code, cuda_recording

    file, reason, launches = cuda_code.library(), cuda_recording.missing(), {}
    left_out = [] if file else ["the CUDA kernels are not compiled (nvcc): nothing is said of their machine code"]
    left_out += [f"nothing is known of launches of CUDA kernels: {reason}"] if reason else []
    for workload in () if reason else workloads:
        try:
            launches[workload.id] = cuda_recording.trace(workload)
        except NotImplementedError as lacking:
            left_out.append(f"{workload.id}: {lacking}")
    rows = cuda_code.rows(file) if file else []
    unknown = cuda_code.launched(rows, launches)
    names = {name: [launch.kernel for launch in cuda_recording.launches(order)] for name, order in launches.items()}
    found = {"rows": rows, "left_out": left_out, "unknown": unknown if rows else [], "launched": names}
    return found, launches


def failures(found):
    """A sentence for all that must not be."""
    missed = [
        f"{row['kernel']} ({row['dtype']}, {row['settings']}) on {row['chip']}: {problem}"
        for row in found["kernels"]
        for problem in row["problems"]
    ]
    missed += [
        f"{row['instance']} on {row['chip']}: {problem}" for row in found["cuda"]["rows"] for problem in row["problems"]
    ]
    missed += [f"{name} is launched but not in the compiled library" for name in found["cuda"]["unknown"]]
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
    from hebbkern.benchmark import cuda_code, kernels, roofline

    found = report(arguments.all)
    print(f"{kernels.text(found['kernels'])}\n")
    if found["cuda"]["rows"]:
        print(f"{cuda_code.text(found['cuda']['rows'])}\n")
    print(f"{roofline.text(found['roofline'])}\n\n{roofline.beside(found['roofline'])}")
    for sentence in found["cuda"]["left_out"]:
        print(f"LEFT OUT  {sentence}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    for sentence in failures(found):
        print(f"FAILS  {sentence}")
    return 1 if failures(found) else 0


if __name__ == "__main__":
    sys.exit(main())
