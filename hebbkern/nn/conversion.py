"""convert: let layers of an existing model learn locally."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from hebbkern.nn.layers import HebbianConv2d, HebbianLinear, check_rule
from hebbkern.rules import Rule

HEBBIAN = {nn.Linear: HebbianLinear, nn.Conv2d: HebbianConv2d}


def convert(model: nn.Module, rules: dict[str, Rule]) -> nn.Module:
    """Swaps Linear and Conv2d layers of `model`, in place, for Hebbian ones; the forward pass stays the same.

        hk.nn.convert(resnet, {"conv1": hk.WTA(), "layer1.*": hk.Sanger()})

    Each layer stays the same object with the same parameters (values, dtype, device), hooks and training flag; its
    class changes, it gets `.rule`, `.frozen` and `.learn`, and its weight no longer requires a gradient. A layer that
    is Hebbian already only gets the new rule.

    Args:
        model: any module.
        rules: from the name of a layer, as in `model.named_modules()`, to its rule. A name with *, ? or [] is a
            pattern for every Linear and Conv2d that it matches. Where two entries match a layer the later one counts.

    Returns:
        model.

    Raises:
        ValueError, and nothing has changed: a name that does not exist, a pattern without any Linear or Conv2d, a
        layer of another type (subclasses of Linear and Conv2d included), groups other than 1, a weight that is computed
        from others (weight_norm, parametrizations, pruning), or not a rule.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    chosen: dict[str, Rule] = {}
    for name, rule in rules.items():
        if not isinstance(name, str):
            raise ValueError(f"hebbkern.nn.convert: name must be the name of a layer, a string, got {name!r}")
        check_rule("nn.convert", rule)
        chosen.update(dict.fromkeys(_matches(name, modules), rule))
    for name, rule in chosen.items():
        layer = modules[name]
        if type(layer) in HEBBIAN:
            layer.__class__ = HEBBIAN[type(layer)]
            layer._init_hebbian(rule)
        else:
            layer.rule = rule
    return model


def _matches(name: str, modules: dict[str, nn.Module]) -> list[str]:
    """The convertible layers that `name` stands for."""
    if name in modules:
        matches = [name]
    elif any(sign in name for sign in "*?["):
        matches = [other for other, layer in modules.items() if fnmatchcase(other, name) and _convertible(layer)]
        if not matches:
            raise ValueError(f'hebbkern.nn.convert: "{name}" must match a Linear or Conv2d layer, got none')
    else:
        known = ", ".join(f'"{other}"' for other, layer in modules.items() if _convertible(layer)) or "none"
        raise ValueError(f'hebbkern.nn.convert: name must be a layer of the model ({known}), got "{name}"')
    for match in matches:
        layer = modules[match]
        if not _convertible(layer):
            raise ValueError(
                f'hebbkern.nn.convert: "{match}" must be a torch.nn.Linear or Conv2d, got {type(layer).__name__}'
            )
        if getattr(layer, "groups", 1) != 1:
            raise ValueError(f'hebbkern.nn.convert: "{match}" must have groups = 1, got {layer.groups}')
        # weight_norm, parametrizations and pruning compute the weight anew from others: a step on it would be lost.
        if not isinstance(layer._parameters.get("weight"), nn.Parameter):
            raise ValueError(
                f'hebbkern.nn.convert: "{match}" must have a parameter "weight" of its own, got a computed one'
            )
    return matches


def _convertible(layer: nn.Module) -> bool:
    return type(layer) in HEBBIAN or isinstance(layer, (HebbianLinear, HebbianConv2d))
