"""`hebbkern doctor`: what is installed, which backends run here, and what to do about what is missing."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hebbkern import __version__, backends
from hebbkern.benchmark.machine import KERNELS, architectures, instructions, kernels, processor, screening
from hebbkern.cli import options

# The backends of a device, the preferred one first; the first that is available runs.
PREFERENCE = {"cpu": ("cpu", "eager"), "cuda": ("cuda", "triton", "eager")}
EXTRAS = {  # {extra of pyproject.toml: (what needs it, its packages)}; torchvision is in the extra dev only
    "train": ("hebbkern train", ("pytorch-ignite", "tqdm", "safetensors", "jsonargparse")),
    "log": ("hebbkern train --tensorboard", ("tensorboard",)),
    "eval": ("the clusters and intervals of hebbkern.evaluation", ("scikit-learn", "scipy")),
    "demo": ("hebbkern demo and pictures", ("matplotlib", "mlxtend")),
    "torchvision": ("torchvision's data sets", ("torchvision",)),
}
VARIABLES = ("HEBBKERN_CPU", "HEBBKERN_SCREENING", "HEBBKERN_BACKEND", "TRITON_INTERPRET", "HEBBKERN_CUDA_HOST")
REINSTALL = (
    "run `pip install --force-reinstall --no-deps .` in the checkout (for an editable install: "
    "`python setup.py build_ext --inplace`)"
)


def main(argv: list[str]) -> int:
    """Runs `hebbkern doctor`."""
    parser = options.Parser(prog="hebbkern doctor", description=__doc__)
    options.add_json(parser)
    arguments = parser.parse_args(argv)
    report = inspect()
    print(show(report))
    options.write_json(report, arguments.json)
    return 0


def inspect() -> dict[str, Any]:
    """Everything that `hebbkern doctor` prints."""
    available = backends.available()
    report: dict[str, Any] = {
        "found": {
            "hebbkern": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "CUDA of torch": torch.version.cuda,
            "processor": processor(),
            "instructions": instructions(),
            "threads": torch.get_num_threads(),
            "C++ compiler": next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None),
            "nvcc": _nvcc(),
            "GPUs": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "triton": _version("triton"),
            "CPU kernels": kernels(),
            "screening": screening(),
            "CUDA kernels for": architectures(),
            **{name: os.environ.get(name) for name in VARIABLES},
        },
        "backends": available,
        "runs": {device: _backend_of(device, available) for device in PREFERENCE},
        "packages": {name: _version(name) for _, names in EXTRAS.values() for name in names},
    }
    return report | {"advice": [*_kernel_advice(report), *_variable_advice(report), *_package_advice(report)]}


def show(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    found = {name: ", ".join(v) if isinstance(v, list) else v for name, v in report["found"].items()}
    runs = report["runs"] if found["GPUs"] else report["runs"] | {"cuda": "- (no GPU is found)"}
    sections = {
        "Found": {name: value or "-" for name, value in found.items() if name not in VARIABLES},
        "Environment": {name: found[name] or "not set" for name in VARIABLES},
        "Backends": {name: reason or "available" for name, reason in report["backends"].items()},
        "Backend that runs": {f"for {device} tensors": name for device, name in runs.items()},
        "Packages": {name: version or "not installed" for name, version in report["packages"].items()},
    }
    lines = []
    for title, rows in sections.items():
        lines += [title, *(f"  {name:20}{value}" for name, value in rows.items())]
    return "\n".join([*lines, "Advice", *(f"  {line}" for line in report["advice"] or ["Nothing is missing."])])


def _kernel_advice(report: dict[str, Any]) -> list[str]:
    found, missing, advice = report["found"], report["backends"], []
    no_cuda = found["GPUs"] and missing.get("cuda", True)
    if missing.get("cpu"):
        compiler = "" if found["C++ compiler"] else "install a C++ compiler (g++ or clang), then "
        advice.append(f"The compiled CPU kernels are missing. To build them, {compiler}{REINSTALL}.")
    if no_cuda and missing.get("triton", True):
        reason = missing.get("triton", "triton is not installed; run `pip install triton`")
        advice.append(f"GPU tensors run on plain torch, which is slow. The Triton kernels cannot run: {reason}.")
    if no_cuda and found["nvcc"] and found["CUDA of torch"]:
        advice.append(f"nvcc is installed, so the compiled CUDA kernels can be built: {REINSTALL}.")
    if found["nvcc"] and not found["GPUs"] and not found["CUDA of torch"]:
        advice.append("nvcc is installed, but this torch has no CUDA. To use a GPU, install a CUDA build of torch.")
    return advice


def _variable_advice(report: dict[str, Any]) -> list[str]:
    found, advice = report["found"], []
    if found["GPUs"] and found["TRITON_INTERPRET"] == "1":
        advice.append("TRITON_INTERPRET=1 runs the Triton kernels on the CPU, for tests. Unset it to use the GPU.")
    if found["HEBBKERN_CUDA_HOST"]:
        advice.append("HEBBKERN_CUDA_HOST is for tests: beside HEBBKERN_DEVELOPER=1 its code is loaded. Unset it.")
    if found["HEBBKERN_CPU"] and found["HEBBKERN_CPU"] not in (names := (*KERNELS, "amx")):
        advice.append(f"HEBBKERN_CPU must be {' or '.join(names)}, got {found['HEBBKERN_CPU']}, which has no effect.")
    if found["HEBBKERN_BACKEND"] not in (None, "", "auto"):
        backend = found["HEBBKERN_BACKEND"]
        advice.append(f"HEBBKERN_BACKEND={backend} selects the backend. Unset it to select by the tensors' device.")
    return advice


def _package_advice(report: dict[str, Any]) -> list[str]:
    advice = []
    for extra, (purpose, names) in EXTRAS.items():
        if absent := [name for name in names if report["packages"][name] is None]:
            wanted = extra if extra in names else f"'hebbkern[{extra}]'"
            advice.append(f"To use {purpose}, run `pip install {wanted}` (missing: {', '.join(absent)}).")
    return advice


def _backend_of(device: str, available: dict[str, str | None]) -> str:
    """The backend that runs on tensors of a device."""
    selected, interpreted = backends.current(), os.environ.get("TRITON_INTERPRET") == "1"
    if selected == "eager" or (selected == "triton" and (device == "cpu") == interpreted):
        return selected
    names = [name for name in PREFERENCE[device] if not (interpreted and name == "triton")]
    return next(name for name in names if name in available and available[name] is None)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc", path=str(Path(home, "bin"))) if home else shutil.which("nvcc")
