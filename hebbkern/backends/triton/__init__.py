"""The operators on a GPU by Triton's kernels, which need no compiler: pip installs all they need.

One stem a stage, as in csrc/: each module holds the kernels of one operator and its launcher, a function with the
arguments of the operator's schema. Shapes are checked before anything runs. Values are not, on a GPU, where looking
would mean to wait: what is not finite is found in ``apply``, which then skips the step, counts it and lets a later
call say so (``hebbkern.synchronize``). With TRITON_INTERPRET=1 the same kernels run on CPU tensors, slowly, and bad
values raise at once.
"""

from importlib import import_module

import torch

from hebbkern.backends.triton.launch import INTERPRETED, traced
from hebbkern.ops import library

# Module apply holds operator apply_, and so on.
LAUNCHERS = {
    name: getattr(import_module(f"hebbkern.backends.triton.{name.rstrip('_')}"), name) for name in library.chosen
}


def serves(tensor):
    """Whether these kernels can run on ``tensor`` in this process."""
    return tensor.device.type == ("cpu" if INTERPRETED.value else "cuda")


def run(name, *arguments):
    """The operator ``name``; the first of its arguments is the tensor on whose device it runs."""
    first = arguments[0]
    if first.device.type != "cuda":
        return LAUNCHERS[name](*arguments)
    with torch.cuda.device(first.device):
        return LAUNCHERS[name](*arguments)


def trace(name, *arguments):
    """The same as nodes of the graph that torch.compile is making."""
    with traced():
        return LAUNCHERS[name](*arguments)
