"""Steps that were skipped because a number in them was not finite: kernels count them, whoever asks is told.

The count of a device lies in memory that its kernels write and the host reads without waiting.
"""

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from hebbkern import checks
from hebbkern.backends.triton.launch import readable

_told = {}  # device -> the count that was told last
_counts = {}  # device -> int32 [1]; in pinned memory for a GPU


def _real(tensor):
    """Whether it has memory: fake tensors, and those that torch.compile traces, have none."""
    return not isinstance(tensor, (FakeTensor, FunctionalTensor))


def flag(weight):
    """Where the kernels of one step of ``weight`` count if they skip it: alone if it can be read right after."""
    if readable(weight) or not _real(weight):
        return torch.zeros(1, dtype=torch.int32, device=weight.device)
    if weight.device not in _counts:
        with torch.inference_mode(False):
            pinned = weight.device.type == "cuda"
            _counts[weight.device] = torch.zeros(1, dtype=torch.int32, pin_memory=pinned)
    return _counts[weight.device]


def settle(op, weight, flag):
    """Raises where it can be seen at once that the step was skipped, its inputs having been found finite before."""
    if readable(weight) and int(flag):
        checks.fail(op, "weight", "stay finite", "a step that overflows it")


def look(weight):
    """Raises if earlier steps on the device of ``weight`` are known to have been skipped. Waits for nothing."""
    if _real(weight):
        _tell(weight.device)


def skipped(device):
    """How many steps on ``device`` were skipped since last asked; the count itself is its kernels' to write."""
    count = int(_counts[device]) if device in _counts else 0
    number, _told[device] = count - _told.get(device, 0), count
    return number


def _tell(device):
    checks.none_skipped(skipped(device), device)


def tell(device=None):
    """Waits for ``device``, by default all on which steps were taken, and raises if some of them were skipped."""
    for known in list(_counts):
        if device is None or known == device:
            if known.type == "cuda":
                torch.cuda.synchronize(known)
            _tell(known)
