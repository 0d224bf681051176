"""sanger: the stages of the dense rules by Triton's kernels, which hebbkern.dense composes."""

import sys

from hebbkern import dense
from hebbkern.triton.apply import commit
from hebbkern.triton.finish import finish
from hebbkern.triton.launch import readable
from hebbkern.triton.moments import moments as moments_of
from hebbkern.triton.on_chip import on_chip
from hebbkern.triton.patches import place
from hebbkern.triton.residual import residual
from hebbkern.triton.responses import activate
from hebbkern.triton.status import look

__all__ = [
    "activate", "commit", "finish", "look", "moments", "on_chip", "place", "readable", "residual", "sanger"
]  # fmt: skip


def moments(task):
    return moments_of(task.op, task.where, task.patches, weight=task.flat, total=task.patches != "raw")


def sanger(*arguments):
    """The operator of that name."""
    return dense.sanger(sys.modules[__name__], *arguments)
