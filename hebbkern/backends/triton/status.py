"""Counts of skipped steps: a step with a number that is not finite leaves the weights and is counted.

The count of a device lies in memory that its kernels write and the host reads without waiting.
"""

import torch
from torch import Tensor

from hebbkern import checks
from hebbkern._torch_private import has_values
from hebbkern.backends.triton.launch import readable

_reported: dict[torch.device, int] = {}  # the count that was reported last
_counts: dict[torch.device, Tensor] = {}  # int32 [1]; in pinned memory for a GPU


def skip_count(weight: Tensor) -> Tensor:
    """int32 [1] that the kernels of a step on ``weight`` increment if they skip it.

    Its own for a step whose weight can be read right after, else that of the device.
    """
    if readable(weight) or not has_values(weight):
        return torch.zeros(1, dtype=torch.int32, device=weight.device)
    if weight.device not in _counts:
        with torch.inference_mode(False):
            pinned = weight.device.type == "cuda"
            _counts[weight.device] = torch.zeros(1, dtype=torch.int32, pin_memory=pinned)
    return _counts[weight.device]


def raise_if_counted(op: str, weight: Tensor, count: Tensor) -> None:
    """Raise ValueError if ``count`` can be read and the step, whose arguments were found finite, was skipped."""
    if readable(weight) and int(count):
        checks.fail(op, "weight", "stay finite", "a step that overflows it")


def raise_if_skipped(weight: Tensor) -> None:
    """Raise RuntimeError if steps on the weight's device are known to have been skipped. Does not wait."""
    if has_values(weight):
        checks.none_skipped(skipped(weight.device), weight.device)


def skipped(device: torch.device) -> int:
    """How many steps on ``device`` were skipped since the last call; the count itself is written by kernels only."""
    count = int(_counts[device]) if device in _counts else 0
    number, _reported[device] = count - _reported.get(device, 0), count
    return number


def report_skipped(device: torch.device | None = None) -> None:
    """Wait for ``device``, by default for all with steps, and raise RuntimeError if steps there were skipped."""
    for known in list(_counts):
        if device is None or known == device:
            if known.type == "cuda":
                torch.cuda.synchronize(known)
            checks.none_skipped(skipped(known), known)
