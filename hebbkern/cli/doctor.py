"""`hebbkern doctor`: what was built, what was found, which backend runs where, and what to do about what is missing."""

import argparse
import json
import os
import platform
import shutil
import sys
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

import torch

from hebbkern import __version__, backends
from hebbkern.cli import options

# What serves a device, the preferred first; the first that is available runs.
PREFERENCE = {"cpu": ("cpu", "eager"), "cuda": ("cuda", "triton", "eager")}
INSTRUCTIONS = {"AVX2": "avx2", "AVX-512": "avx512f", "AVX-512 BF16": "avx512_bf16", "AMX BF16": "amx_bf16"}
KERNELS = {"baseline": (), "avx2": ("avx2", "fma"), "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl")}
KERNELS["avx512bf16"] = (*KERNELS["avx512"], "avx512_bf16")
EXTRAS = {  # of pyproject.toml, and torchvision, which none but dev has: what for, and its packages
    "train": ("hebbkern train", ("pytorch-ignite", "tqdm", "safetensors", "jsonargparse")),
    "log": ("--tensorboard", ("tensorboard",)),
    "eval": ("clusters and intervals of hebbkern.evaluation", ("scikit-learn", "scipy")),
    "demo": ("hebbkern demo and pictures", ("matplotlib", "mlxtend")),
    "torchvision": ("its data sets by name", ("torchvision",)),
}
REINSTALL = (
    "in the checkout, pip install --force-reinstall --no-deps . (or, for an editable install, "
    "python setup.py build_ext --inplace)"
)


def processor():
    """The processor's name as the operating system gives it."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def instructions():
    """The vector instruction sets, of those that the kernels could use, that this processor has."""
    flags = _flags()
    return [name for name, flag in INSTRUCTIONS.items() if flag in flags]


def kernels():
    """Which of the CPU kernels run here: the widest that the processor has, or what HEBBKERN_CPU limits it to."""
    flags, names = _flags(), list(KERNELS)
    if platform.machine() not in ("x86_64", "AMD64"):
        return "baseline"
    widest = 0
    while widest + 1 < len(names) and flags.issuperset(KERNELS[names[widest + 1]]):
        widest += 1
    asked = os.environ.get("HEBBKERN_CPU")
    return names[min(widest, names.index(asked)) if asked in names else widest]


def screening():
    """The matrix unit that certified winners are screened on; None where there is none, or it is switched off."""
    if backends.available().get("cpu", True) is not None or backends.get_screening() == "off":
        return None
    return import_module("hebbkern._cpu").matrix_unit or None


def architectures():
    """The compute capabilities that the CUDA kernels were compiled for; None where there are none that load."""
    try:
        numbers = import_module(backends.COMPILED["cuda"]).architectures
    except ImportError:
        return None
    return [f"{int(number) // 100}.{int(number) // 10 % 10}" for number in numbers.split(",") if number]


def inspect():
    """Everything that `hebbkern doctor` prints, as a dict that JSON can hold."""
    available = backends.available()
    runs = {device: _serves(device, available) for device in PREFERENCE}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = {
        "hebbkern": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch's CUDA": torch.version.cuda,
        "processor": processor(),
        "instructions": instructions(),
        "threads": torch.get_num_threads(),
        "C++ compiler": next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None),
        "nvcc": _nvcc(),
        "GPUs": gpus,
        "triton": metadata.version("triton") if find_spec("triton") else None,
        "CPU kernels": kernels(),
        "bf16 screening": screening(),
        "CUDA kernels for": architectures(),
        "HEBBKERN_CPU": os.environ.get("HEBBKERN_CPU"),
        "HEBBKERN_SCREENING": os.environ.get("HEBBKERN_SCREENING"),
        "HEBBKERN_BACKEND": os.environ.get("HEBBKERN_BACKEND"),
        "TRITON_INTERPRET": os.environ.get("TRITON_INTERPRET"),
    }
    packages = {name: _version(name) for _, names in EXTRAS.values() for name in names}
    report = {"found": found, "backends": available, "runs": runs, "packages": packages}
    return report | {"advice": advice(report)}


def advice(report):
    """What to do about what is missing, a sentence each; empty where nothing is."""
    found, missing = report["found"], report["backends"]
    advised = []
    if missing.get("cpu"):
        compiler = "" if found["C++ compiler"] else "install a C++ compiler (g++ or clang), then "
        advised.append(f"For the compiled CPU kernels: {compiler}{REINSTALL}.")
    if found["GPUs"] and missing.get("cuda", True) and missing.get("triton", True):
        advised.append(
            f"The GPU runs plain torch. For Triton's kernels: {missing.get('triton', 'pip install triton')}."
        )
    if found["GPUs"] and missing.get("cuda", True) and found["nvcc"] and found["torch's CUDA"]:
        advised.append(f"For the compiled CUDA kernels (nvcc is here): {REINSTALL}.")
    if found["GPUs"] and found["TRITON_INTERPRET"] == "1":
        advised.append("TRITON_INTERPRET=1 interprets Triton's kernels on the CPU, for tests; unset it to use the GPU.")
    if found["nvcc"] and not found["GPUs"] and not found["torch's CUDA"]:
        advised.append("nvcc is here but torch is a build without CUDA: install a CUDA build of torch to use a GPU.")
    if found["HEBBKERN_CPU"] and found["HEBBKERN_CPU"] not in (*KERNELS, "amx"):
        advised.append(
            f"HEBBKERN_CPU must be {' or '.join((*KERNELS, 'amx'))}, got {found['HEBBKERN_CPU']}: it limits nothing."
        )
    if found["HEBBKERN_BACKEND"] not in (None, "", "auto"):
        advised.append(f"HEBBKERN_BACKEND={found['HEBBKERN_BACKEND']} overrides the choice; unset it to go back.")
    for extra, (purpose, names) in EXTRAS.items():
        if absent := [name for name in names if report["packages"][name] is None]:
            wanted = extra if extra in names else f"'hebbkern[{extra}]'"
            advised.append(f"For {purpose} ({', '.join(absent)} missing): pip install {wanted}.")
    return advised


def show(report):
    """The report as lines of text."""
    lines = ["Found"]
    for name, value in report["found"].items():
        value = ", ".join(value) if isinstance(value, list) else value
        lines.append(f"  {name:20}{value if value not in (None, '') else '-'}")
    lines.append("Backends")
    lines += [f"  {name:20}{reason or 'available'}" for name, reason in report["backends"].items()]
    lines.append("Runs")
    lines += [f"  {device + ' tensors':20}{name}" for device, name in report["runs"].items()]
    lines.append("Packages")
    lines += [f"  {name:20}{version or 'not installed'}" for name, version in report["packages"].items()]
    lines.append("Advice")
    lines += [f"  {sentence}" for sentence in report["advice"] or ["nothing is missing here."]]
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hebbkern doctor", description=__doc__)
    options.add_json(parser)
    arguments = parser.parse_args(argv)
    report = inspect()
    print(show(report))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _serves(device, available):
    """The backend that runs tensors on ``device``."""
    chosen, interpreted = backends.current(), os.environ.get("TRITON_INTERPRET") == "1"
    if chosen == "eager" or (chosen == "triton" and (device == "cpu") == interpreted):
        return chosen
    names = [name for name in PREFERENCE[device] if not (interpreted and name == "triton")]
    return next(name for name in names if name in available and available[name] is None)


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _flags():
    return next((set(line.split()) for line in _cpuinfo() if line.startswith(("flags", "Features"))), set())


def _cpuinfo():
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc", path=str(Path(home, "bin"))) if home else shutil.which("nvcc")


if __name__ == "__main__":
    sys.exit(main())
