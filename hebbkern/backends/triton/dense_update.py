"""dense_update: the stages of the dense rules by Triton's kernels, which hebbkern.backends.dense composes."""

import sys

from hebbkern.backends import dense
from hebbkern.backends.triton.apply import commit
from hebbkern.backends.triton.finish import finish
from hebbkern.backends.triton.launch import readable
from hebbkern.backends.triton.moments import moments as moments_of
from hebbkern.backends.triton.on_chip import on_chip
from hebbkern.backends.triton.patches import place
from hebbkern.backends.triton.residual import residual
from hebbkern.backends.triton.responses import activate
from hebbkern.backends.triton.status import look

__all__ = [
    "activate",
    "commit",
    "dense_update",
    "finish",
    "look",
    "moments",
    "on_chip",
    "place",
    "readable",
    "residual"
]  # fmt: skip


def moments(task):
    return moments_of(task.op, task.where, task.patches, weight=task.flat, total=task.patches != "raw")


def dense_update(*arguments):
    """The operator of that name."""
    return dense.dense_update(sys.modules[__name__], *arguments)
