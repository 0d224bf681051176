"""What hebbkern uses of torch's private functions: all of it in one file, and each still there in this torch."""

import re
from pathlib import Path

import pytest
import torch

import hebbkern
from hebbkern import _torch_private

PACKAGE = Path(hebbkern.__file__).parent
PRIVATE = re.compile(r"\b(?:from )?torch(?:\.\w+)*\._(?!_)\w+")
# Our own operators, and types in annotations, which nothing calls.
ALLOWED = re.compile(r"torch\.ops\.hebbkern\.\w+|torch\._ops\.OpOverload")


def test_private_functions_are_used_in_one_file_only():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        if path.name != "_torch_private.py":
            text = ALLOWED.sub("", path.read_text())
            if uses := PRIVATE.findall(text):
                found[str(path.relative_to(PACKAGE))] = uses
    assert not found


def test_fake_and_functional_tensors_have_no_values():
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert _torch_private.has_values(torch.ones(2)), "FakeTensor or FunctionalTensor has moved"
    with FakeTensorMode():
        assert not _torch_private.has_values(torch.ones(2)), "FakeTensor has moved"
    with _torch_private.FunctionalTensorMode():
        functional = _torch_private.FunctionalTensor.to_functional(torch.ones(2))
        assert not _torch_private.has_values(functional), "FunctionalTensor has moved"


def test_a_kernel_is_known_by_its_dispatch_key():
    assert _torch_private.has_kernel("aten::add.Tensor", "CPU"), "_dispatch_has_kernel_for_dispatch_key has changed"
    assert not _torch_private.has_kernel("hebbkern::kwinners", "CPU")


def test_exporting_is_false_outside_an_export():
    assert _torch_private.exporting() is False, "custom_triton_ops_decomposition_disabled has moved"


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_recorders_are_known():
    from torch.fx.experimental.proxy_tensor import make_fx

    seen, x = [], torch.ones(2)

    def look(x):
        seen.append((_torch_private.is_tracing(), _torch_private.is_recorded(x)))
        return x * 2

    look(x)
    make_fx(look)(x)
    torch.jit.trace(look, (x,), check_trace=False)
    assert seen == [(False, False), (False, True), (True, False)], "get_proxy_mode or _is_tracing has changed"


def test_a_backward_pass_is_known():
    from torch.utils.checkpoint import checkpoint

    seen = []

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(_torch_private.in_backward())
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            seen.append(_torch_private.in_backward())
            return grad * 2

    x = torch.ones(3, requires_grad=True)
    Seen.apply(x).sum().backward()
    assert seen == [False, True], "_current_graph_task_id has changed"
    for reentrant in (True, False):
        seen.clear()
        checkpoint(lambda x: Seen.apply(x).exp(), x, use_reentrant=reentrant).sum().backward()
        assert seen[:2] == [False, True], "torch.utils.checkpoint has changed"


def test_tensors_of_torch_func_are_known():
    seen = []
    torch.vmap(lambda x: (seen.append(_torch_private.is_transformed(x)), x)[1])(torch.ones(2))
    assert seen == [True] and not _torch_private.is_transformed(torch.ones(2))


def test_a_scaler_knows_what_it_has_unscaled():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer, scaler = torch.optim.SGD([weight], lr=0.1), torch.amp.GradScaler("cpu")
    assert not _torch_private.has_unscaled(scaler), "_per_optimizer_states has changed"
    for _ in range(2):
        scaler.scale(weight.sum()).backward()
        assert not _torch_private.has_unscaled(scaler)
        scaler.unscale_(optimizer)
        assert _torch_private.has_unscaled(scaler), "OptState has changed"
        scaler.step(optimizer)
        scaler.update()
