"""learn_dense_: hebbkern.dense by the stages of sanger."""

from hebbkern import dense
from hebbkern.triton import sanger as stages


def learn_dense_(*arguments):
    """The operator of that name."""
    dense.learn_dense_(stages, *arguments)
