"""Where operators are defined: one schema, without autograd, in four overloads.

``torch.ops.hebbkern.<op>.default`` takes the kernel of the tensors' device; ``.eager`` always the plain torch one,
``.triton`` the Triton one and ``.cuda`` the one compiled for GPUs where they can run, that of the device elsewhere.
The public functions call ``serving(<op>, tensor)``, ``chosen[<op>]``: choosing a backend costs one look-up, and
torch.compile guards on it. On GPUs known to run ``.cuda`` it is that overload: the kernel of ``.default`` asks in
Python which kernels serve a GPU, and a step of 17 arguments takes some 10 µs of the host to pass through it.
"""

from operator import index as operator_index

import torch

LIBRARY = torch.library.Library("hebbkern", "FRAGMENT")
# All with the same arguments: torch aborts at exit where another signature follows two that are alike.
OVERLOADS = ("default", "eager", "triton", "cuda")

chosen = {}  # operator name -> the overload that was chosen for the public functions
compiled = {}  # operator name -> ``.cuda``
straight = set()  # GPUs, by number, on which ``.default`` was seen to call ``.cuda``; empty while another is chosen


def define(schema, fake):
    """Define ``schema`` (``name(arguments) -> results``) with its fake kernel, which computes shapes and no values."""
    name, signature = schema.split("(", 1)
    for overload in OVERLOADS:
        qualified = name if overload == "default" else f"{name}.{overload}"
        LIBRARY.define(f"{qualified}({signature}", tags=torch.Tag.pt2_compliant_tag)
        # No autograd: outputs never require grad, and a Parameter may be written in place.
        LIBRARY.impl(qualified, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"hebbkern::{qualified}", fake, lib=LIBRARY)
    chosen[name], compiled[name] = operator(name), operator(name, "cuda")


def stage(schema):
    """Define an operator that only this package calls, to reach compiled kernels; nothing traces it. Returns it."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
    return operator(name)


def operator(name, overload="default"):
    """The torch operator ``hebbkern::name.overload``."""
    return getattr(getattr(torch.ops.hebbkern, name), overload)


def serving(name, tensor):
    """The overload of operator ``name`` that a public function calls, whose first tensor this is."""
    if torch.compiler.is_compiling() or not straight:  # a graph keeps the overload that takes any device
        return chosen[name]
    known = isinstance(tensor, torch.Tensor) and tensor.get_device() in straight
    return compiled[name] if known else chosen[name]


def choose(overload):
    """Let every public function call this overload from now on."""
    straight.clear()
    for name in chosen:
        chosen[name] = operator(name, overload)


def counted(weight):
    """Counts a write in place: the operators have no autograd kernel to do so, and saved tensors rely on it."""
    if not torch.compiler.is_compiling() and not weight.is_inference():
        torch.autograd.graph.increment_version(weight)


def pair(value):
    """(vertical, horizontal) from one number or a pair, of anything that counts as an integer (NumPy's too)."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, (tuple, list)):
        return value if all(type(number) is int for number in value) else tuple(map(whole, value))
    number = whole(value)
    return number, number


def whole(number):
    """An int of what counts as one; the rest (torch's symbols, and what torch refuses) as it is."""
    return operator_index(number) if hasattr(number, "__index__") and not isinstance(number, torch.SymInt) else number
