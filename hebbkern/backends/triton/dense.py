"""dense_update and dense_step_: hebbkern.backends.dense by the stages of this package."""

from typing import Any

from torch import Tensor

from hebbkern.backends import dense
from hebbkern.backends.triton.apply import commit
from hebbkern.backends.triton.finish import finish
from hebbkern.backends.triton.launch import readable
from hebbkern.backends.triton.moments import Moments, moments_of
from hebbkern.backends.triton.on_chip import on_chip
from hebbkern.backends.triton.patches import patch_view
from hebbkern.backends.triton.residual import residual
from hebbkern.backends.triton.responses import activate
from hebbkern.backends.triton.status import raise_if_skipped


def moments(task: dense.Task) -> Moments:
    return moments_of(task.op, task.view, task.patches, weight=task.flat, total=task.patches != "raw")


STAGES = dense.Stages(readable, raise_if_skipped, patch_view, moments, activate, on_chip, residual, finish, commit)


def dense_update(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The operator ``dense_update`` on Triton's kernels."""
    return dense.dense_update(STAGES, *arguments)


def dense_step_(*arguments: Any) -> None:
    """The operator ``dense_step_`` on Triton's kernels."""
    dense.dense_step_(STAGES, *arguments)
