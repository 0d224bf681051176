"""dense_step_: hebbkern.backends.dense by the stages of dense_update."""

from hebbkern.backends import dense
from hebbkern.backends.triton import dense_update as stages


def dense_step_(*arguments):
    """The operator of that name."""
    dense.dense_step_(stages, *arguments)
