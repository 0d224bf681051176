"""What the tests of csrc/cuda's own kernels share; importing it skips a module where these cannot run."""

import contextlib
import sys

import pytest

from hebbkern import backends

if reason := backends.available()["cuda"]:
    pytest.skip(reason, allow_module_level=True)

HOST = sys.modules.get("_cuda_host")  # the kernels compiled for the CPU, of which launches and order can be told
DEVICE = "cpu" if HOST else "cuda"
needs_emulation = pytest.mark.skipif(HOST is None, reason="asks what only kernels compiled for the CPU tell")
RUN, NOTE, ONLY_NOTE, UNSEEN = range(4)  # of HOST.note


@contextlib.contextmanager
def noted(mode):
    """Within, launches are noted down."""
    HOST.note(mode)
    try:
        yield
    finally:
        HOST.note(RUN)
