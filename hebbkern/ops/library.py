"""The definition of an operator: one schema, without autograd, in one overload per backend and the overload "default".

``torch.ops.hebbkern.<operator>.<backend>`` runs the kernel of that backend, ``.default`` that of the backend which
hebbkern.backends chooses for the first argument. Kernels written in Python are registered here, behind the operator's
check; the compiled ones register themselves when their extension is loaded.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hebbkern import _torch_private, backends, checks
from hebbkern.backends import AUTO, BACKENDS, Backend, triton

LIBRARY = torch.library.Library("hebbkern", "FRAGMENT")
GEOMETRY = (
    "str patches, int[] stride, int[] padding, int[] dilation, int groups"  # of every operator that reads patches
)
Pair = int | tuple[int, int]  # a number, or (vertical, horizontal)
# Operators whose Triton launches cannot become nodes of a graph: those in place count skipped steps in memory that no
# graph knows of, and a graph would compute dense_update's products with whatever precision is set when it runs.
OPAQUE = ("apply_", "dense_step_", "dense_update", "winner_step_")


def define(schema: str, check: Callable, fake: Callable) -> None:
    """Define the operator ``schema`` ("name(arguments) -> results").

    Args:
        schema: of torch.library, with the operator's name.
        check: takes the operator's arguments and raises ValueError if shapes or settings do not fit; reads no value.
        fake: takes the same arguments, which were checked, and returns results of the right shapes without values.
    """
    name, signature = schema.split("(", 1)
    for backend in (AUTO, *BACKENDS.values()):
        overload = "default" if backend is AUTO else backend.name
        qualified = name if backend is AUTO else f"{name}.{overload}"
        LIBRARY.define(f"{qualified}({signature}", tags=torch.Tag.pt2_compliant_tag)
        # No autograd: results never require grad, and a Parameter may be written in place.
        LIBRARY.impl(qualified, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"hebbkern::{qualified}", _checked(check, fake), lib=LIBRARY)
        run = _chosen(name) if backend is AUTO else _python_kernel(name, backend, check)
        LIBRARY.impl(qualified, run, "CompositeExplicitAutograd")
        backend.kernels[name] = getattr(getattr(torch.ops.hebbkern, name), overload)
    _torch_private.decompose_in_graphs(LIBRARY, f"hebbkern::{name}", _resolve(name))
    if name not in OPAQUE:
        _torch_private.decompose_in_graphs(LIBRARY, f"hebbkern::{name}.triton", _trace(name, check))


def _checked(check: Callable, run: Callable) -> Callable:
    @functools.wraps(run)
    def checked(*arguments: Any) -> Any:
        check(*arguments)
        return run(*arguments)

    return checked


def _python_kernel(name: str, backend: Backend, check: Callable) -> Callable:
    """The kernel of a backend for any device: its Python function, if the operator has one, else a refusal."""
    function = backend.room.kernels().get(name) if backend.room else None

    def run(tensor: Tensor, *arguments: Any) -> Any:
        if function is None or not backend.supports(tensor):
            backend.refuse(name, tensor)
        check(tensor, *arguments)
        return function(tensor, *arguments)

    return run


def _chosen(name: str) -> Callable:
    def run(tensor: Tensor, *arguments: Any) -> Any:
        return backends.serving(name, tensor).kernels[name](tensor, *arguments)

    return run


def _resolve(name: str) -> Callable:
    """In a graph of torch.compile the overload "default" becomes that of the chosen backend; torch.export keeps it."""

    def rule(mode: Any, operator: Any, types: Any, arguments: tuple, named: dict) -> Any:
        if named or _torch_private.exporting():
            return mode.__torch_dispatch__(operator, types, arguments, named)
        with mode:
            return backends.serving(name, arguments[0]).kernels[name](*arguments)

    return rule


def _trace(name: str, check: Callable) -> Callable:
    """torch.compile sees into the Triton kernels of an operator, as into those of torch.library.triton_op."""

    def rule(mode: Any, operator: Any, types: Any, arguments: tuple, named: dict) -> Any:
        if named or arguments[0].device.type != "cuda" or _torch_private.exporting():
            return mode.__torch_dispatch__(operator, types, arguments, named)
        check(*arguments)
        with mode:
            return triton.trace(name, *arguments)

    return rule


def call(operator: str, *arguments: Any, overload: Callable | None = None) -> Any:
    """Run ``operator`` with the arguments of its schema, on the backend that serves the first one.

    Args:
        overload: runs instead; it takes the same arguments.

    Raises:
        ValueError: as the operator does, and if an argument is not the tensor that the schema wants. Only a call that
            has failed is looked at: the dispatcher says it otherwise, and takes None for an empty tensor.
    """
    try:
        return (overload or backends.kernel(operator, arguments[0]))(*arguments)
    except Exception:
        check_tensors(operator, arguments)
        raise


def check_tensors(operator: str, arguments: tuple[Any, ...]) -> None:
    """Raises ValueError if an argument of ``operator`` is not the tensor that its schema wants."""
    for argument, value in zip(AUTO.kernels[operator]._schema.arguments, arguments, strict=True):
        kind = str(argument.type)
        if kind == "Tensor" or (kind == "Optional[Tensor]" and value is not None):
            checks.check_tensor(operator, argument.name, value)


def bump_version(weight: Tensor) -> None:
    """Count a write in place, on which saved tensors rely; the operators have no autograd kernel to do so."""
    if not torch.compiler.is_compiling() and not weight.is_inference():
        torch.autograd.graph.increment_version(weight)


def pair(value: Any) -> tuple[int, int]:
    """(vertical, horizontal) from one number or a pair, of anything that counts as an integer (NumPy's too)."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, (tuple, list)):
        return value if all(type(number) is int for number in value) else tuple(map(whole, value))  # type: ignore[return-value]
    number = whole(value)
    return number, number


def whole(number: Any) -> Any:
    """An int of what counts as one; the rest (torch's symbols, and what torch refuses) unchanged."""
    if type(number) is int:
        return number
    is_integer = hasattr(number, "__index__") and not isinstance(number, torch.SymInt)
    return operator.index(number) if is_integer else number
