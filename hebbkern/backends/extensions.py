"""The compiled extensions, hebbkern._cpu and hebbkern._cuda. Loading one registers its kernels with torch."""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import warnings
from types import ModuleType

COMPILERS = {"cpu": "a C++ compiler", "cuda": "nvcc"}


@functools.cache
def emulated() -> str | None:
    """The file of CUDA kernels that were compiled for the CPU, as the tests do to run them without a GPU; else None.

    Loading the file runs its code, so HEBBKERN_CUDA_HOST alone, which may be set by accident, has no effect.
    """
    file = os.environ.get("HEBBKERN_CUDA_HOST")
    if file and os.environ.get("HEBBKERN_DEVELOPER") != "1":
        warnings.warn(
            "hebbkern: HEBBKERN_CUDA_HOST has no effect without HEBBKERN_DEVELOPER=1", RuntimeWarning, stacklevel=2
        )
        return None
    return file or None


@functools.cache
def load(name: str) -> tuple[ModuleType | None, str | None]:
    """The extension "cpu" or "cuda" and None, or None and the reason why it is not there."""
    try:
        if name == "cuda" and (file := emulated()):
            loader = importlib.machinery.ExtensionFileLoader("_cuda_host", file)
            specification = importlib.util.spec_from_file_location("_cuda_host", file, loader=loader)
            assert specification is not None
            return sys.modules.setdefault("_cuda_host", importlib.util.module_from_spec(specification)), None
        return importlib.import_module(f"hebbkern._{name}"), None
    except ModuleNotFoundError:
        return None, f"hebbkern._{name} was not built; install again where {COMPILERS[name]} is found"
    except ImportError as error:
        return None, f"hebbkern._{name} does not load: {error}"


def loaded() -> list[ModuleType]:
    """The extensions that are there."""
    return [module for module, _ in map(load, COMPILERS) if module]
