"""What the tests of Triton's kernels share: guarded results, recorded launches, values that must not be read."""

import contextlib
import dataclasses
import importlib
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

triton = pytest.importorskip("triton", reason="triton is not installed")
launchers = importlib.import_module("hebbkern.backends.triton.launchers")
launching = importlib.import_module("hebbkern.backends.triton.launch")

GUARD = 12345  # what surrounds every result
WIDTH = 64

needs_interpreter = pytest.mark.skipif(
    not launching.INTERPRETED.value, reason="runs in Triton's interpreter (TRITON_INTERPRET=1)"
)


@contextlib.contextmanager
def guarded(monkeypatch):
    """A context in which new_empty and empty_like allocate poisoned memory between guards, checked on leaving.

    The interpreter lets a kernel store beyond a tensor, over whatever lies there.
    """
    allocated = []

    def between_guards(allocate):
        def allocation(*arguments, **options):
            inner = allocate(*arguments, **options)
            if type(inner) is not torch.Tensor or inner.numel() == 0:  # a fake one has no memory
                return inner
            room = inner.untyped_storage().nbytes() // inner.element_size()
            whole = torch.full((room + 2 * WIDTH,), GUARD, dtype=inner.dtype, device=inner.device)
            whole[WIDTH : WIDTH + room] = torch.nan if inner.is_floating_point() else torch.iinfo(inner.dtype).max
            allocated.append((whole, room))
            return whole.as_strided(inner.shape, inner.stride(), WIDTH)

        return allocation

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", between_guards(torch.Tensor.new_empty))
        patch.setattr(torch, "empty_like", between_guards(torch.empty_like))
        yield allocated
    assert allocated
    for whole, room in allocated:
        outside = torch.cat([whole[:WIDTH], whole[WIDTH + room :]])
        assert (outside == torch.full((), GUARD, dtype=whole.dtype)).all(), "a kernel stored beyond its result"


def launches(operator, *arguments):
    """Names of the kernels that the operator would launch on a GPU for these arguments."""
    return [launch.kernel.__name__ for launch in recorded(operator, *arguments)]


def recorded(operator, *arguments):
    """What the operator would launch on a GPU for tensors like these; needs no GPU and reads no values."""
    with FakeTensorMode(allow_non_fake_inputs=False) as mode, launching.recorded() as launches:
        on_gpu = [mode.from_tensor(a).to("cuda") if isinstance(a, torch.Tensor) else a for a in arguments]
        launchers.LAUNCHERS[operator](*on_gpu)
    return launches


@contextlib.contextmanager
def unreadable(monkeypatch):
    """A context in which launchers treat CPU tensors as a GPU's: no value is read."""

    def unread(tensor):
        return False

    with monkeypatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("hebbkern.backends.triton.") and hasattr(module, "readable"):
                patch.setattr(module, "readable", unread)
        stages = importlib.import_module("hebbkern.backends.triton.dense")
        patch.setattr(stages, "STAGES", dataclasses.replace(stages.STAGES, readable=unread))
        yield
