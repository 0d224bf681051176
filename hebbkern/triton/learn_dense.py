"""learn_dense_: sanger whose last kernel takes the step, then one launch that writes it if it is finite everywhere."""

import torch

from hebbkern.ops import checks
from hebbkern.ops.learn_dense import check
from hebbkern.triton import responses, status
from hebbkern.triton.apply import commit
from hebbkern.triton.launch import readable
from hebbkern.triton.sanger import outputs_of, refuse_overflow


@torch.no_grad()
def learn_dense_(weight, x, activation, decay, lr, patches, stride, padding, dilation, frozen):
    """The operator of that name."""
    op, where = "learn_dense_", (patches, stride, padding, dilation, frozen)
    check(weight, x, activation, decay, lr, *where)
    status.look(weight)
    if readable(x):
        checks.finite(op, x=x, weight=weight)
    task = responses.task(op, x, weight, activation, decay, 1.0, *where, lr)
    if task.where.patches == 0:
        return
    outputs = outputs_of(task)
    if readable(x) and not outputs.moved.isfinite().all():
        refuse_overflow(task, outputs_of(task._replace(lr=None)).sums)  # says so if the sum is to blame
    commit(op, weight, outputs.moved, outputs.sound, task.frozen)
