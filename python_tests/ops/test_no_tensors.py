"""NumPy arrays, lists and None where tensors belong: one sentence that names the operator and the argument."""

import numpy as np
import pytest
import torch

import calls
import hebbkern as hk
from cases import random
from hebbkern.backends import AUTO

BAD = {"ndarray": np.ones((3, 4), dtype=np.float32), "list": [[1.0, 2.0]], "None": None, "float": 1.0}
bad = pytest.mark.parametrize("got", BAD)


def tensors(operator):
    """(name, whether it may be None) of the tensors of an operator's schema."""
    kinds = [(argument.name, str(argument.type)) for argument in AUTO.kernels[operator]._schema.arguments]
    return [(name, kind == "Optional[Tensor]") for name, kind in kinds if "Tensor" in kind]


@bad
@pytest.mark.parametrize("operator", calls.OPERATORS)
def test_operators_name_what_is_no_tensor(backend, operator, got):
    for name, optional in tensors(operator):
        arguments = calls.call(operator, device=backend.device)
        if optional and got == "None":
            continue
        before = {key: calls.raw(value) for key, value in arguments.items() if isinstance(value, torch.Tensor)}
        with pytest.raises(ValueError) as error:
            getattr(hk.ops, operator)(**arguments | {name: BAD[got]})
        assert str(error.value) == f"hebbkern.{operator}: {name} must be a tensor, got {got}"
        assert {key: calls.raw(arguments[key]) for key in before} == before


RULES = [hk.KrotovHopfield(), hk.WTA(coefficient="response"), hk.Sanger(), hk.SoftWTA(), hk.Supervised()]


@bad
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}], ids=["plain", "dtype"])
def test_steps_and_updates_name_what_is_no_tensor(rule, options, got):
    weight, x, labels = random((3, 4)), random((5, 4)), torch.zeros(5, dtype=torch.int64)
    good, before = {"weight": weight, "x": x}, weight.clone()
    for name in ("weight", "x", "frozen"):
        if (name, got) == ("frozen", "None"):
            continue
        with pytest.raises(ValueError, match=rf"hebbkern.\w+: {name} must be a tensor, got {got}$"):
            rule.step_(**good | {name: BAD[got]}, lr=0.1, labels=labels, **options)
        with pytest.raises(ValueError, match=rf"hebbkern.\w+: {name} must be a tensor, got {got}$"):
            rule.update(**good | {name: BAD[got]}, labels=labels)
    with pytest.raises(ValueError, match=rf"hebbkern.apply_: weight must be a tensor, got {got}$"):
        rule.apply_(BAD[got], rule.update(weight, x, labels=labels), lr=0.1)
    if rule.uses_labels:
        with pytest.raises(ValueError, match=rf"labels must be int64 or int32 of shape \[5\].*, got {got}$"):
            rule.step_(weight, x, lr=0.1, labels=BAD[got])
    assert torch.equal(weight, before)


def test_a_scheduled_rate_makes_no_difference():
    weight, rate = random((3, 4)), torch.tensor(0.1, dtype=torch.float64)
    for name, wrong in (("weight", BAD["ndarray"]), ("sum", BAD["list"]), ("sum", None), ("decay", BAD["ndarray"])):
        with pytest.raises(ValueError, match=f"hebbkern.apply_: {name} must be a tensor, got"):
            hk.ops.apply_(**{"weight": weight, "sum": torch.ones(3, 4), name: wrong}, lr=rate)


LAYERS = {
    "HebbianLinear": lambda: hk.nn.HebbianLinear(4, 3, rule=hk.WTA()),
    "HebbianConv1d": lambda: hk.nn.HebbianConv1d(3, 3, 1, rule=hk.WTA()),
    "HebbianConv2d": lambda: hk.nn.HebbianConv2d(3, 4, 3, rule=hk.Sanger()),
    "HebbianConv3d": lambda: hk.nn.HebbianConv3d(3, 4, 3, rule=hk.Supervised()),
}


@bad
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:.*no layer has learnt")
def test_layers_name_what_is_no_tensor(name, got):
    layer = LAYERS[name]()
    before = layer.weight.clone()
    with pytest.raises(ValueError, match=rf"^hebbkern.{name}: input must be a tensor, got {got}$"):
        layer(BAD[got])
    with pytest.raises(ValueError, match=rf"^hebbkern.{name}.learn: x must be a tensor, got {got}$"):
        layer.learn(BAD[got], lr=0.1)
    with hk.learning(layer, 0.1), pytest.raises(ValueError, match=rf"{name}: input must be a tensor, got {got}$"):
        layer(BAD[got])
    assert torch.equal(layer.weight, before)


@bad
def test_other_modules_name_what_is_no_tensor(got):
    for wanted, module in {
        "KWinners: y": hk.nn.KWinners(2),
        "DHPLinear: h": hk.nn.DHPLinear(4, 3),
        "HebbCL: x": hk.continual.HebbCL(4, 3),
    }.items():
        with pytest.raises(ValueError, match=f"hebbkern.{wanted} must be a tensor, got {got}"):
            module(BAD[got])
    with pytest.raises(ValueError, match=f"init_from_samples_: x must be a tensor, got {got}"):
        hk.nn.init_from_samples_(torch.nn.Linear(4, 3), BAD[got])


def test_what_fails_for_another_reason_says_so():
    with pytest.raises(ValueError, match=r"hebbkern\.compete: k must be between"):
        hk.ops.compete(random((3, 4)), random((2, 4)), k=5)
    with pytest.raises((RuntimeError, TypeError), match="k"):
        hk.ops.compete(random((3, 4)), random((2, 4)), k="two")
