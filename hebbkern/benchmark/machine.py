"""The machine that a report comes from: its processor, and the compiled kernels that run on it."""

import os
import platform
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import hebbkern
from hebbkern import backends

INSTRUCTIONS = {"AVX2": "avx2", "AVX-512": "avx512f", "AVX-512 BF16": "avx512_bf16", "AMX BF16": "amx_bf16"}
AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
KERNELS = {"baseline": (), "avx2": ("avx2", "fma"), "avx512": AVX512, "avx512bf16": (*AVX512, "avx512_bf16")}


def about() -> dict[str, Any]:
    """The part of every report about the machine and the versions that it comes from."""
    cpu = _extension("_cpu")
    return {
        "version": hebbkern.__version__,
        "machine": processor(),
        "instructions": instructions(),
        "kernels": getattr(cpu, "isa", kernels()),  # of float32, which is timed
        "screening": screening(),
        "backend": backends.current(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """The name of the processor, as the operating system reports it."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def instructions() -> list[str]:
    """The vector instruction sets of this processor that the kernels can use."""
    flags = _flags()
    return [name for name, flag in INSTRUCTIONS.items() if flag in flags]


def kernels() -> str:
    """The CPU kernels that run here: the widest that the processor supports and HEBBKERN_CPU allows."""
    flags, names = _flags(), list(KERNELS)
    if platform.machine() not in ("x86_64", "AMD64"):
        return "baseline"
    widest = 0
    while widest + 1 < len(names) and flags.issuperset(KERNELS[names[widest + 1]]):
        widest += 1
    limit = os.environ.get("HEBBKERN_CPU")
    return names[min(widest, names.index(limit)) if limit in names else widest]


def screening() -> str | None:
    """The matrix unit that screens competitions; None where there is none or screening is off."""
    cpu = _extension("_cpu")
    return None if cpu is None or backends.get_screening() == "off" else cpu.matrix_unit or None


def architectures() -> list[str] | None:
    """The compute capabilities that the CUDA kernels were compiled for; None where no CUDA kernels load."""
    cuda = _extension("_cuda")
    if cuda is None:
        return None
    return [f"{int(number) // 100}.{int(number) // 10 % 10}" for number in cuda.architectures.split(",") if number]


def _extension(name: str) -> Any:
    """The compiled extension hebbkern._cpu or hebbkern._cuda; None where it does not load."""
    try:
        return import_module(f"hebbkern.{name}")
    except ImportError:
        return None


def _flags() -> set[str]:
    return next((set(line.split()) for line in _cpuinfo() if line.startswith(("flags", "Features"))), set())


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
