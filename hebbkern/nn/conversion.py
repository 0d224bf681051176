"""convert and revert: turn layers of an existing model into Hebbian ones, in place, and back."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NoReturn

from torch import nn

from hebbkern.nn.layers import HebbianConv2d, HebbianLayer, HebbianLinear, check_rule
from hebbkern.nn.weights import check_own_weight
from hebbkern.rules import Rule

HEBBIAN: dict[type[nn.Module], type[HebbianLayer]] = {nn.Linear: HebbianLinear, nn.Conv2d: HebbianConv2d}
PLAIN: dict[type[nn.Module], type[nn.Module]] = {hebbian: plain for plain, hebbian in HEBBIAN.items()}


def convert(model: nn.Module, rules: Mapping[str, Rule]) -> nn.Module:
    """Turns Linear and Conv2d layers of `model` into Hebbian layers, in place; the forward pass stays the same.

        hk.nn.convert(resnet, {"conv1": hk.WTA(), "layer1.*": hk.Sanger()})

    Each layer stays the same object with the same parameters (values, dtype, device), hooks and training flag. Its
    class changes, it gets `.rule`, `.frozen` and `.learn`, and its weight no longer requires a gradient. A layer that
    is Hebbian already only gets the new rule. `revert` undoes the conversion.

    Args:
        model: any module.
        rules: {name or pattern of layers: rule}. Names are those of `model.named_modules()`; a name with *, ? or [] is
            a pattern for every Linear and Conv2d that it matches. Later entries override earlier ones.

    Returns:
        model.

    Raises:
        ValueError: a name does not exist, a pattern matches no Linear or Conv2d, a layer has another type (subclasses
            of Linear and Conv2d included) or groups other than 1, a weight is computed from other tensors (weight_norm,
            parametrizations, pruning), or a value is not a rule. The model is unchanged.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    assigned: dict[Any, Rule] = {}  # by layer
    for name, rule in rules.items():
        if not isinstance(name, str):
            raise ValueError(f"hebbkern.nn.convert: name must be the name of a layer, a string, got {name!r}")
        check_rule("nn.convert", rule)
        assigned.update(dict.fromkeys((modules[match] for match in _matches(name, modules)), rule))
    # Read before the first layer changes: layers may share a weight.
    required_grad = {layer: layer.weight.requires_grad for layer in assigned if type(layer) in HEBBIAN}
    for layer, rule in assigned.items():
        if type(layer) in HEBBIAN:
            layer.__class__ = HEBBIAN[type(layer)]
            layer._init_hebbian(rule, required_grad[layer])
        else:
            layer.rule = rule
    return model


def revert(model: nn.Module) -> nn.Module:
    """Turns every HebbianLinear and HebbianConv2d of `model` into a plain torch layer, in place: undoes `convert`.

        hk.nn.revert(model)

    Each layer stays the same object with the same parameters, hooks and training flag, and its forward pass stays the
    same. `.rule` and `.frozen` are removed, also from the state dict, and weight.requires_grad is what it was before
    the conversion: True for layers that were constructed as Hebbian layers. A gradient in weight.grad is dropped.
    Other layers, `hebbkern.continual.HebbCL` and `DHPLinear` included, stay as they are.

    Args:
        model: any module; one without Hebbian layers is returned unchanged.

    Returns:
        model.

    Raises:
        ValueError: a layer is a subclass of HebbianLinear or HebbianConv2d, its weight is computed from other tensors
            (weight_norm, parametrizations, pruning), or it is inside `hebbkern.learning`. The model is unchanged.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"hebbkern.nn.revert: model must be a torch.nn.Module, got {type(model).__name__}")
    layers: dict[str, Any] = {name: layer for name, layer in model.named_modules() if isinstance(layer, HebbianLayer)}
    for name, layer in layers.items():
        if type(layer) not in PLAIN:
            _refuse("revert", name, "be a HebbianLinear or HebbianConv2d", type(layer).__name__)
        check_own_weight("nn.revert", f'"{name}"', layer)
        if layer.learning_state is not None:
            _refuse("revert", name, "not be inside hebbkern.learning", "a layer that is learning")
    for layer in layers.values():
        layer._remove_hebbian()
        layer.__class__ = PLAIN[type(layer)]
    return model


def _matches(name: str, modules: Mapping[str, nn.Module]) -> list[str]:
    """The names of the layers that `name`, an exact name or a pattern, selects; each can be converted."""
    if name in modules:
        matches = [name]
    elif any(sign in name for sign in "*?["):
        matches = [other for other, layer in modules.items() if fnmatchcase(other, name) and _is_convertible(layer)]
        if not matches:
            _refuse("convert", name, "match a Linear or Conv2d layer", "none")
    else:
        known = ", ".join(f'"{other}"' for other, layer in modules.items() if _is_convertible(layer)) or "none"
        raise ValueError(f'hebbkern.nn.convert: name must be a layer of the model ({known}), got "{name}"')
    for match in matches:
        layer = modules[match]
        if not _is_convertible(layer):
            _refuse("convert", match, "be a torch.nn.Linear or Conv2d", type(layer).__name__)
        if getattr(layer, "groups", 1) != 1:
            _refuse("convert", match, "have groups = 1", layer.groups)
        check_own_weight("nn.convert", f'"{match}"', layer)
    return matches


def _is_convertible(layer: nn.Module) -> bool:
    return type(layer) in HEBBIAN or isinstance(layer, HebbianLayer)


def _refuse(function: str, name: str, wanted: str, got: object) -> NoReturn:
    raise ValueError(f'hebbkern.nn.{function}: "{name}" must {wanted}, got {got}')
