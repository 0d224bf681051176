"""`hebbkern doctor`: what runs where, and what to do about what is missing."""

import importlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hebbkern import backends
from hebbkern.benchmark import machine
from hebbkern.cli import doctor


def test_report_names_torch_processor_and_backends(tmp_path, capsys):
    with backends.backend("auto"):
        assert doctor.main(["--json", str(tmp_path / "doctor.json")]) == 0
    printed, report = capsys.readouterr().out, json.loads((tmp_path / "doctor.json").read_text())
    assert report["found"]["torch"] == torch.__version__ and torch.__version__ in printed
    assert report["backends"].keys() == backends.available().keys()
    assert report["runs"]["cpu"] == ("eager" if backends.available()["cpu"] else "cpu")
    for sentence in report["advice"]:
        assert sentence in printed


@pytest.mark.parametrize("compiler", [None, "/usr/bin/c++"])
def test_missing_kernels_are_named_with_a_remedy(monkeypatch, compiler):
    monkeypatch.setattr(backends, "available", lambda: {"eager": None, "cpu": "was not built"})
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: compiler)
    report = doctor.inspect()
    assert report["runs"] == {"cpu": "eager", "cuda": "eager"}
    assert "was not built" in doctor.show(report)
    (remedy,) = [sentence for sentence in report["advice"] if "CPU kernels" in sentence]
    assert ("install a C++ compiler" in remedy) == (compiler is None)
    assert "--no-deps ." in remedy and "build_ext --inplace" in remedy


def test_an_override_is_what_runs(monkeypatch):
    monkeypatch.setenv("HEBBKERN_BACKEND", "eager")
    with backends.backend("eager"):
        report = doctor.inspect()
    assert report["runs"] == {"cpu": "eager", "cuda": "eager"}
    assert any("HEBBKERN_BACKEND=eager" in sentence for sentence in report["advice"])


AVX2 = "flags : fpu avx2 fma"
AVX512 = f"{AVX2} avx512f avx512bw avx512dq avx512vl"
BF16 = f"{AVX512} avx512_bf16"


@pytest.mark.parametrize(
    ("flags", "asked", "runs"),
    [
        ("flags : fpu avx2", None, "baseline"),
        (AVX2, None, "avx2"),
        (AVX2, "avx512", "avx2"),
        (AVX512, None, "avx512"),
        (AVX512, "avx2", "avx2"),
        (AVX512, "baseline", "baseline"),
        (AVX512, "sse", "avx512"),
        (BF16, None, "avx512bf16"),
        (BF16, "avx512", "avx512"),
        (AVX512, "avx512bf16", "avx512"),
    ],
)
def test_which_cpu_kernels_run(monkeypatch, flags, asked, runs):
    monkeypatch.setattr(machine, "_cpuinfo", lambda: [flags])
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("HEBBKERN_CPU", asked or "")
    report = doctor.inspect()
    assert report["found"]["CPU kernels"] == runs
    unknown = "HEBBKERN_CPU must be baseline or avx2 or avx512 or avx512bf16 or amx, got sse, which has no effect."
    assert (unknown in report["advice"]) == (asked == "sse")


@pytest.mark.parametrize("interpreted", ["1", ""])
def test_triton_serves_the_gpu_unless_it_is_interpreted(monkeypatch, interpreted):
    monkeypatch.setenv("TRITON_INTERPRET", interpreted)
    monkeypatch.setattr(backends, "available", lambda: {"eager": None, "triton": None, "cpu": None})
    monkeypatch.setattr(backends, "current", lambda: "auto")
    monkeypatch.setattr(doctor.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(doctor.torch.cuda, "get_device_name", lambda index: "a GPU")
    report = doctor.inspect()
    assert report["runs"] == {"cpu": "cpu", "cuda": "eager" if interpreted else "triton"}
    assert any("TRITON_INTERPRET=1" in sentence for sentence in report["advice"]) == bool(interpreted)
    monkeypatch.setattr(backends, "current", lambda: "triton")
    runs = doctor.inspect()["runs"]
    assert runs == ({"cpu": "triton", "cuda": "eager"} if interpreted else {"cpu": "cpu", "cuda": "triton"})


@pytest.mark.parametrize("nvcc", [None, "/usr/local/cuda/bin/nvcc"])
def test_cuda_kernels_that_could_be_built_are_advised(monkeypatch, nvcc):
    missing = {"eager": None, "cpu": None, "triton": None, "cuda": "hebbkern._cuda was not built"}
    monkeypatch.setattr(backends, "available", lambda: missing)
    monkeypatch.setattr(doctor, "_nvcc", lambda: nvcc)
    monkeypatch.setattr(doctor.torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(doctor.torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    report = doctor.inspect()
    assert report["runs"]["cuda"] == "triton"
    assert any("the compiled CUDA kernels can be built" in each for each in report["advice"]) == bool(nvcc)


def test_architectures_of_the_cuda_kernels(monkeypatch):
    monkeypatch.setattr(machine, "import_module", lambda name: SimpleNamespace(architectures="800,900,1000,1210"))
    assert machine.architectures() == ["8.0", "9.0", "10.0", "12.1"]
    monkeypatch.setattr(machine, "import_module", importlib.import_module)
    monkeypatch.setitem(sys.modules, "hebbkern._cuda", None)  # as if it had not been built
    assert machine.architectures() is None


def test_without_triton_the_remedy_is_named(monkeypatch):
    missing = {"eager": None, "cpu": None, "triton": "triton is not installed; pip install triton"}
    monkeypatch.setattr(backends, "available", lambda: missing)
    monkeypatch.setattr(doctor.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(doctor.torch.cuda, "get_device_name", lambda index: "a GPU")
    (remedy,) = [sentence for sentence in doctor.inspect()["advice"] if "plain torch" in sentence]
    assert remedy.endswith("The Triton kernels cannot run: triton is not installed; pip install triton.")


def test_missing_packages_are_named_with_their_extra(monkeypatch):
    def version(package):
        if package in ("safetensors", "jsonargparse", "torchvision"):
            raise doctor.metadata.PackageNotFoundError(package)
        return "1.2.3"

    monkeypatch.setattr(doctor.metadata, "version", version)
    report = doctor.inspect()
    assert report["packages"]["pytorch-ignite"] == "1.2.3" and report["packages"]["torchvision"] is None
    for remedy in (
        "To use hebbkern train, run `pip install 'hebbkern[train]'` (missing: safetensors, jsonargparse).",
        "To use torchvision's data sets, run `pip install torchvision` (missing: torchvision).",
    ):
        assert remedy in report["advice"] and remedy in doctor.show(report)
    assert not any("hebbkern[log]" in sentence for sentence in report["advice"])


def test_the_extras_are_those_of_the_package():
    """Each package that doctor names is required by the extra it names."""
    tomllib = pytest.importorskip("tomllib")
    project = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    for extra, (_, names) in doctor.EXTRAS.items():
        if extra != "torchvision":
            required = {re.match(r"[\w-]+", line)[0] for line in extras[extra]} - {"hebbkern"}
            assert required == set(names)
