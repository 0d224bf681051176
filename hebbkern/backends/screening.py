"""Screening of float32 competitions: a choice for the whole process that the kernels read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from hebbkern.backends import extensions

MODES = {"off": 0, "auto": 1, "always": 2}

_mode = "auto"


def set_screening(mode: str) -> None:
    """Choose for the whole process whether float32 competitions are screened: "auto", "off" or "always".

    Raises:
        ValueError: mode is none of these.
    """
    global _mode
    if mode not in MODES:
        raise ValueError(f"hebbkern.screening: mode must be one of {', '.join(MODES)}, got {mode!r}")
    for module in extensions.loaded():
        module.screening(MODES[mode])
    _mode = mode


def get_screening() -> str:
    """The mode that ``set_screening`` chose last."""
    return _mode


@contextlib.contextmanager
def screening(mode: bool | str) -> Iterator[None]:
    """Context that switches the screening of float32 competitions on or off, in all threads of the process.

    On a processor with a bfloat16 matrix unit (AMX, a GPU's tensor cores), ``compete`` can find by bfloat16 products
    and a proven bound which neurons cannot win, and compute the float32 responses of the others only. The winners are
    the same. The responses of the compiled kernels have the same bits; those of Triton's are summed in another order.

    Args:
        mode: True or "auto" screens where it is faster (the default: by shape on the CPU, never on a GPU), False or
            "off" never, "always" wherever it can be done. HEBBKERN_SCREENING sets the default.

    Raises:
        ValueError: mode is none of these.
    """
    before = _mode
    set_screening(mode if isinstance(mode, str) else "auto" if mode else "off")
    try:
        yield
    finally:
        set_screening(before)


set_screening(os.environ.get("HEBBKERN_SCREENING") or "auto")
