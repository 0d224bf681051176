"""What compilers make of every GPU kernel, and what the report predicts. No GPU is needed."""

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from gpu_report import cubin, cuda_code, cuda_traffic, triton_code, workloads

ROOT = Path(__file__).parents[2]
compiles_all = pytest.mark.slow(430)  # every kernel for every chip
RULES = [step for step in workloads.STEPS if step.name.startswith("rules: ") and "HebbCL" not in step.name]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report, made once by a process in which kernels are compiled, not interpreted."""
    found = tmp_path_factory.mktemp("kernels") / "report.json"
    command = [sys.executable, "-m", "bench.gpu_report", "--json", str(found)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.exists(), f"no report: {done.stderr[-2000:]}"
    return json.loads(found.read_text()) | {"status": done.returncode, "printed": done.stdout}


@pytest.fixture(scope="module")
def rows(report):
    """The kernels that compile; another test names those that do not."""
    return [row for row in report["kernels"] if "registers" in row]


def named(row):
    return f"{row['kernel']} {row['dtype']} {row['chip']} {row['settings']}"


@compiles_all
def test_every_kernel_compiles_for_every_chip(report, rows):
    assert not [f"{named(row)}: {row['problems']}" for row in report["kernels"] if "registers" not in row]
    chips = {chip.name for chip in cubin.CHIPS}
    for kernel in {row["kernel"] for row in rows}:
        assert {row["chip"] for row in rows if row["kernel"] == kernel} == chips


@compiles_all
def test_no_kernel_spills(rows):
    assert not [f"{named(row)}: {row['local']}" for row in rows if row["local"]]


@compiles_all
def test_shared_memory_fits_and_every_kernel_can_be_resident(rows):
    most = {chip.name: chip.block_shared for chip in cubin.CHIPS}
    assert not [f"{named(row)}: {row['shared']}" for row in rows if row["shared"] > most[row["chip"]]]
    assert not [named(row) for row in rows if row["occupancy"] == 0]


@compiles_all
def test_products_of_halves_and_of_tf32_are_on_tensor_cores(rows):
    products = [row for row in rows if row["product"]]
    assert not [named(row) for row in products if not row["tensor core"]]


@compiles_all
@pytest.mark.parametrize("chip", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])  # fp32: tf32, under torch.set_float32_matmul_precision("high")
def test_competitions_are_on_tensor_cores(rows, dtype, chip):
    competing = {row["kernel"] for row in rows if any("compete" in name or "WTA" in name for name in row["workloads"])}
    found = [row for row in rows if row["chip"] == chip and row["dtype"] == dtype and row["kernel"] in competing]
    assert [row for row in found if row["tensor core"]]


@compiles_all
def test_some_workload_reaches_every_kernel(report, rows):
    assert set(report["every_kernel"]) == {row["kernel"] for row in rows}
    assert "moments.moments_kernel" in report["every_kernel"]


@compiles_all
def test_a_competition_moves_little_more_than_it_must(report):
    (row,) = [row for row in report["roofline"] if row["step"] == "compete: k = 2, 1024 x 784 x 2000"]
    assert row["unavoidable"] == 4 * (1024 * 784 + 2000 * 784 + 1024 * 2)
    assert row["of_unavoidable"] <= 1.3


@compiles_all
@pytest.mark.parametrize("step", RULES, ids=lambda step: step.id)
def test_a_step_of_a_rule_takes_at_most_six_launches(report, step):
    (row,) = [row for row in report["roofline"] if row["step"] == step.id]
    assert 1 <= row["launches"] <= 6, row["kernels"]


@compiles_all
def test_the_report_says_what_it_found(report):
    assert (report["status"] == 0) == ("FAILS" not in report["printed"])
    assert "Predictions for an H100 SXM from bytes and flops, not measurements." in report["printed"]
    assert all(row["kernel"] in report["printed"] for row in report["kernels"])


@pytest.fixture(scope="module")
def compiled(report):
    """The instances of the kernels of csrc/cuda, for every architecture that they were compiled for."""
    if not report["cuda"]["rows"]:
        pytest.skip("the CUDA kernels are not compiled (HEBBKERN_BUILD=cuda)")
    return report["cuda"]["rows"]


@pytest.fixture(scope="module")
def launched(report, compiled):
    """Those that a workload launches."""
    if not report["cuda"]["launched"]:
        pytest.skip("the emulated kernels are not built (python_tests/helpers/cuda_host.py)")
    return [row for row in compiled if row["blocks"]]


def of_cuda(row):
    return f"{row['instance']} {row['chip']}"


@compiles_all
def test_no_compiled_kernel_spills_or_has_a_stack(compiled):
    assert not [f"{of_cuda(row)}: {row['local']}, {row['stack']}" for row in compiled if row["local"] or row["stack"]]


@compiles_all
def test_every_compiled_kernel_can_be_resident_as_it_is_launched(launched):
    assert not [of_cuda(row) for row in launched for block in row["blocks"] if block["occupancy"] == 0]


@compiles_all
def test_every_launch_is_of_a_compiled_kernel_that_is_described(report, launched):
    assert report["cuda"]["unknown"] == []
    assert {name for names in report["cuda"]["launched"].values() for name in names} <= cuda_traffic.TRAFFIC.keys()


@compiles_all
def test_some_workload_launches_every_compiled_kernel(compiled, launched):
    assert {row["kernel"] for row in compiled} == {row["kernel"] for row in launched}


# Kernels by their instances' names, and what issue and documents promise of their instructions.
PROMISED = [
    ("128-bit loads", r"gather_kernel<(2, double|4, float|8, )"),
    ("128-bit loads", r"(survey|step)_kernel<(float|double), \w+, true>"),
    ("128-bit loads", r"rows_kernel<"),
    ("async copies", r"(walk|mma|screen)_kernel"),
    ("128-bit loads", r"(walk|screen)_kernel"),
    ("tensor core", r"(mma|screen)_kernel"),
]


@compiles_all
@pytest.mark.parametrize(("kind", "pattern"), PROMISED, ids=lambda value: value)
def test_compiled_kernels_have_the_instructions_that_are_promised(compiled, kind, pattern):
    promised = [row for row in compiled if re.match(pattern, row["instance"])]
    assert promised, "no such kernel"
    assert not [of_cuda(row) for row in promised if not row[kind]]


@compiles_all
def test_predictions_stand_beside_tritons(report, launched):
    for row in report["roofline"]:
        assert row["cuda"], f"{row['step']}: {report['cuda']['left_out']}"
        assert row["cuda"]["predicted"] >= row["least"] * 0.99, row["step"]
    assert "CUDA by stage" in report["printed"]


SPILLS = """
namespace hebbkern { namespace {
__global__ void wide_kernel(float* p, int n) {
  float a[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) a[i] = p[i * n + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) p[i * n + threadIdx.x] = a[i] * a[63 - i];
}
} }
void run(float* p) { hebbkern::wide_kernel<<<1, 32>>>(p, 32); }
"""


@pytest.mark.parametrize("registers", [32, 255])
def test_a_planted_spill_is_noticed(tmp_path, registers):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on the path")
    source, made = tmp_path / "wide.cu", tmp_path / "wide.o"
    source.write_text(SPILLS)
    lenient = os.environ | {"NVCC_APPEND_FLAGS": ""}  # make test has spills stop the compiler
    command = [nvcc, "-arch=sm_90", f"-maxrregcount={registers}", "-c", source, "-o", made]
    subprocess.run(command, check=True, env=lenient)
    (row,) = cuda_code.rows(made)
    assert (row["kernel"], row["chip"]) == ("wide_kernel", "sm_90")
    assert [problem.partition(":")[0] for problem in row["problems"]] == ["spills"] * (registers == 32)


@pytest.mark.parametrize(
    ("demangled", "noted"),
    [
        ("a_kernel<c10::Half, float>(hebbkern::Place<c10::Half>)", "a_kernel<c10::Half, float>"),
        ("a_kernel<4, (bool)1, unsigned short>(int)", "a_kernel<4, true, short unsigned int>"),
        ("a_kernel<(int)-1, 8u>(int)", "a_kernel<-1, 8>"),
        ("few_kernel(int const*, int)", "few_kernel"),
    ],
)
def test_instances_are_spelled_alike_for_both_compilers(demangled, noted):
    assert cuda_code.instance(f"void hebbkern::(anonymous namespace)::{demangled}") == cuda_code.spelled(noted)
    assert cuda_code.instance("void cub::detail::scan_kernel<int>(int)") is None


GOOD = {"local": 0, "stack": 0, "shared": 100, "product": True, "tensor core": 8}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"local": 3}, "spills: 3 local loads and stores, 0 bytes of stack"),
        ({"stack": 16}, None),  # reserved, never used
        ({"shared": (163 << 10) + 1}, "166913 bytes of shared memory, a block of sm_80 has 166912"),
        ({"tensor core": 0}, "multiplies halves or tf32 without tensor cores"),
        ({"tensor core": 0, "product": False}, None),
    ],
)
def test_what_must_not_be_is_named_and_fails_the_report(monkeypatch, change, problem):
    row = GOOD | change
    found = triton_code.problems(row, cubin.CHIPS[0])
    assert found == ([problem] if problem else [])
    with monkeypatch.context() as kept:
        for name in ("TRITON_INTERPRET", "HEBBKERN_BACKEND"):
            kept.setenv(name, os.environ.get(name, ""))
        script = importlib.import_module("gpu_report.__main__")
    named = {"kernel": "some_kernel", "dtype": "fp32", "settings": "BLOCK=1", "chip": "sm_80", "problems": found}
    cuda = {"rows": [], "unknown": []}
    sentences = script.failures({"kernels": [named], "every_kernel": ["some_kernel"], "cuda": cuda})
    assert sentences == [f"some_kernel (fp32, BLOCK=1) on sm_80: {problem}"] * bool(problem)
    lost = {"kernels": [], "every_kernel": ["lost_kernel"], "cuda": {"rows": [], "unknown": ["f_kernel<4>"]}}
    assert script.failures(lost) == [
        "f_kernel<4> is launched but not in the compiled library",
        "lost_kernel: no workload reaches it",
    ]


def test_instructions_are_counted_by_kind():
    names = ["LDC", "LDG.E.128", "LDG.E.128.CONSTANT", "LDG.E.64", "LDGSTS.E.BYPASS.128", "HMMA.16816.F32.BF16"]
    names += ["HGMMA.64x64x8.F32.TF32", "UTCHMMA", "BAR.SYNC.DEFER_BLOCKING", "STL", "LDL.64", "STG.E.128", "NOP"]
    found = cubin.kinds(names)
    counts = {"tensor core": 3, "128-bit loads": 3, "async copies": 1, "barriers": 1, "local": 2}
    assert found == {"instructions": 12} | counts


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "expected"),
    [
        (32, 0, 4, 1.0),  # 16 blocks of 4 warps
        (40, 64, 4, 0.75),  # 12 warps a scheduler
        (255, 0, 4, 0.125),  # 2 warps a scheduler
        (128, 0, 8, 0.25),
        (32, 100 << 10, 8, 0.125),  # one block of the 164 KB
        (32, (163 << 10) + 1, 8, 0.0),  # more than a block may have
        (16, 0, 1, 0.5),  # 32 blocks at most
    ],
)
def test_occupancy_by_the_limits_of_the_chip(registers, shared, warps, expected):
    assert cubin.occupancy(cubin.CHIPS[0], registers, shared, warps) == expected
