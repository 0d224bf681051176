"""The private functions of torch that hebbkern uses, each with the public substitute that it waits for.

python_tests/packaging/test_torch_private.py calls each of them and names the one that a new torch has moved.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore[reportMissingImports] (compiled)
from torch._subclasses.fake_tensor import FakeTensor  # waits for: a public way to ask whether a tensor has values
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.amp.grad_scaler import OptState
from torch.fx.experimental.proxy_tensor import get_proxy_mode  # waits for: a public way to ask what make_fx records

__all__ = [
    "FakeTensor",
    "FunctionalTensor",
    "FunctionalTensorMode",
    "decompose_in_graphs",
    "exporting",
    "has_kernel",
    "has_unscaled",
    "has_values",
    "in_backward",
    "is_recorded",
    "is_tracing",
    "is_transformed",
]


def has_values(tensor: torch.Tensor) -> bool:
    """Whether `tensor` holds values: it is neither a fake tensor nor one that torch.compile traces.

    Waits for: a public predicate for fake tensors.
    """
    return not isinstance(tensor, (FakeTensor, FunctionalTensor))


def is_tracing() -> bool:
    """Whether torch.jit.trace records in this thread.

    Waits for: torch.jit.is_tracing among the names that torch.jit exports.
    """
    return torch._C._is_tracing()


def is_recorded(tensor: torch.Tensor) -> bool:
    """Whether make_fx records the operators on `tensor`, or it has no values: nothing is to be learnt from it.

    Waits for: a public form of torch.fx's get_proxy_mode.
    """
    return not has_values(tensor) or get_proxy_mode() is not None


def has_kernel(operator: str, key: str) -> bool:
    """Whether `operator` ("hebbkern::compete.cpu") has a kernel of its own for a dispatch key ("CPU").

    Waits for: a public form of torch._C._dispatch_has_kernel_for_dispatch_key.
    """
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator, key)


def in_backward() -> bool:
    """Whether this thread is inside a backward pass of autograd, where torch.utils.checkpoint recomputes.

    Waits for: a public form of torch._C._current_graph_task_id.
    """
    return torch._C._current_graph_task_id() != -1


def is_transformed(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is one of torch.func's transforms: batched by vmap, or tracked by grad or jvp.

    Waits for: a public form of torch._C._functorch.is_functorch_wrapped_tensor.
    """
    return is_functorch_wrapped_tensor(tensor)


def has_unscaled(scaler: torch.amp.GradScaler) -> bool:
    """Whether `scaler` has divided the gradients of all optimizers that it knows by its scale, in this step.

    Waits for: a public form of the stages of a GradScaler's optimizers.
    """
    stages = [state["stage"] for state in scaler._per_optimizer_states.values()]
    return bool(stages) and all(stage is OptState.UNSCALED for stage in stages)


def exporting() -> bool:
    """Whether torch.export traces, which keeps operators whole instead of looking into their Triton kernels.

    Waits for: a public form of torch.export's custom_triton_ops_decomposition_disabled. Its module is imported only
    here, where something is being compiled.
    """
    from torch.export._trace import custom_triton_ops_decomposition_disabled

    return custom_triton_ops_decomposition_disabled()


def decompose_in_graphs(library: torch.library.Library, operator: str, rule: Callable) -> None:
    """Register `rule(mode, operator, types, args, kwargs)` for `operator` where torch.compile functionalises a graph.

    Waits for: torch.library.triton_op on an overload that is already defined.
    """
    torch.library.register_torch_dispatch(operator, FunctionalTensorMode, rule, lib=library)
