"""The backend "cuda": CUDA C++ kernels (csrc/cuda), registered by hebbkern._cuda as overloads "cuda".

The dense operators are Python compositions of torch's products and compiled stages (stages.py). With
HEBBKERN_DEVELOPER=1 and HEBBKERN_CUDA_HOST=FILE the kernels of FILE, compiled for the CPU, serve CPU tensors: the tests
run them so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from hebbkern import checks
from hebbkern.backends import extensions


def why_not() -> str | None:
    """Why the backend cannot run here, or None. Looks for a GPU only where the extension is there."""
    module, reason = extensions.load("cuda")
    if module is None or extensions.emulated():
        return reason
    if not torch.cuda.is_available():
        return "no GPU is found"
    if _has_code_for(torch.cuda.current_device()):
        return None
    return "hebbkern._cuda was built for other GPUs; install again with TORCH_CUDA_ARCH_LIST unset"


def supports(tensor: Tensor) -> bool:
    """Whether the kernels take tensors of this one's device."""
    if extensions.emulated():
        return tensor.device.type == "cpu"
    return tensor.device.type == "cuda" and _has_code_for(tensor.device.index or 0)


@functools.cache
def _has_code_for(index: int) -> bool:
    """Whether the extension holds code for GPU `index`: of its generation and not newer, or PTX of an older one."""
    module, _ = extensions.load("cuda")
    if module is None or index >= torch.cuda.device_count():
        return False
    known = [int(number) // 10 for number in module.architectures.split(",")]
    major, minor = torch.cuda.get_device_capability(index)
    own = 10 * major + minor
    return any(number // 10 == major and number <= own for number in known) or own > max(known)


def kernels() -> dict[str, Callable]:
    """The kernels that are Python functions: the dense operators."""
    if extensions.load("cuda")[0] is None:
        return {}
    from hebbkern.backends.cuda import stages

    return {"dense_update": stages.dense_update, "dense_step_": stages.dense_step_}


def report_skipped(device: torch.device | None) -> None:
    """Wait for `device`, or all devices, and raise RuntimeError if steps were skipped there."""
    module, _ = extensions.load("cuda")
    if module is None:
        return
    for index in module.stepped():
        known = torch.device("cpu") if extensions.emulated() else torch.device("cuda", index)
        if device is None or known == device:
            if known.type == "cuda":
                torch.cuda.synchronize(known)
            checks.none_skipped(module.skipped(index), known)
