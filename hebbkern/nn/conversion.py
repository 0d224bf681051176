"""convert and revert: turn layers of an existing model into Hebbian ones, in place, and back."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NoReturn, TypeVar

from torch import nn

from hebbkern.nn.convolutions import HebbianConv1d, HebbianConv2d, HebbianConv3d
from hebbkern.nn.layers import HebbianLayer, HebbianLinear, check_rule
from hebbkern.nn.weights import check_own_weight
from hebbkern.rules import Rule

HEBBIAN = (HebbianLinear, HebbianConv1d, HebbianConv2d, HebbianConv3d)
KINDS = "torch.nn.Linear, Conv1d, Conv2d or Conv3d"
OWN = ("frozen", "learn", "learning_state", "plain", "rule")  # names that a Hebbian layer gives a meaning

KeyT = TypeVar("KeyT", bound=str | type[nn.Module] | Callable[[str, Any], bool])


def convert(model: nn.Module, rules: Mapping[KeyT, Rule]) -> dict[str, nn.Module]:
    """Turns Linear and convolution layers of `model` into Hebbian ones, in place; the forward pass stays the same.

        hk.nn.convert(resnet, {"conv1": hk.WTA(), "layer1.*": hk.Sanger()})
        hk.nn.convert(mobilenet, {nn.Conv2d: hk.WTA()})
        hk.nn.convert(mobilenet, {lambda name, layer: layer.groups > 1: hk.WTA(patches="centred")})

    Each layer stays the same object with the same parameters (values, dtype, device), hooks and training flag. Its
    class becomes a Hebbian one, which derives from its present class; it gets `.rule`, `.frozen` and `.learn`, and its
    weight no longer requires a gradient. A lazy layer learns from its first forward pass on, which gives it its size.
    A layer that is Hebbian already only gets the new rule. `revert` undoes the conversion.

    Subclasses of torch's layers are converted too if their forward pass is that of torch. One with a forward pass of
    its own may use its weight or its input in another way than the rules do, and is refused.

    Args:
        model: any module.
        rules: {which layers: rule}. Later entries override earlier ones. Which layers is one of

            - a name of `model.named_modules()`;
            - a pattern of names, with *, ? or [];
            - a type: a layer of torch or a subclass, for its instances, those of subclasses included;
            - a function of a name and a layer, for those of which it is true.

            The last three look among Linear, Conv1d, Conv2d and Conv3d layers, their subclasses included.

    Returns:
        {name: layer} of the layers that the entries name, by their first name, in the order of the model.

    Raises:
        ValueError: an entry matches no layer; it matches one of another type, with a forward pass of its own, with an
            attribute of a Hebbian layer's (`rule`, `frozen`), or with a weight that is computed from other tensors
            (weight_norm, parametrizations, pruning); it matches the out_proj of a torch.nn.MultiheadAttention, which
            never calls it; or a value is not a rule. The model is unchanged.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"hebbkern.nn.convert: model must be a torch.nn.Module, got {type(model).__name__}")
    modules = dict(model.named_modules(remove_duplicate=False))
    assigned: dict[Any, Rule] = {}  # by layer
    for key, rule in rules.items():
        check_rule("nn.convert", rule)
        for name in _matches(key, modules):
            _check(name, modules)
            assigned[modules[name]] = rule
    # Made and read before the first layer changes: a class may be refused, and layers may share a weight.
    plain = [layer for layer in assigned if not isinstance(layer, HebbianLayer)]
    changes = [(layer, hebbian_class(type(layer)), layer.weight.requires_grad) for layer in plain]
    for layer, hebbian, required_grad in changes:
        layer.__class__ = hebbian
        layer._init_hebbian(assigned[layer], _neurons(layer), required_grad)
    for layer, rule in assigned.items():
        layer.rule = rule
    return {name: layer for name, layer in model.named_modules() if layer in assigned}


def revert(model: nn.Module) -> nn.Module:
    """Turns the Hebbian layers of `model` into the plain ones they were, in place: undoes `convert`.

        hk.nn.revert(model)

    Each layer stays the same object with the same parameters, hooks and training flag, and its forward pass stays the
    same. `.rule` and `.frozen` are removed, also from the state dict, and weight.requires_grad is what it was before
    the conversion: True for layers that were constructed as Hebbian layers, which become torch's. A gradient in
    weight.grad is dropped. Other layers, `hebbkern.continual.HebbCL` and `DHPLinear` included, stay as they are.

    Args:
        model: any module; one without Hebbian layers is returned unchanged.

    Returns:
        model.

    Raises:
        ValueError: a layer is of a subclass of hebbkern's layers, its weight is computed from other tensors
            (weight_norm, parametrizations, pruning), or it is inside `hebbkern.learning`. The model is unchanged.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"hebbkern.nn.revert: model must be a torch.nn.Module, got {type(model).__name__}")
    layers: dict[str, Any] = {name: layer for name, layer in model.named_modules() if isinstance(layer, HebbianLayer)}
    for name, layer in layers.items():
        check_own_weight("nn.revert", f'"{name}"', layer)
        if "plain" not in vars(type(layer)):
            _refuse("revert", name, "be a layer of hebbkern.nn or a converted one", type(layer).__name__)
        if layer.learning_state is not None:
            _refuse("revert", name, "not be inside hebbkern.learning", "a layer that is learning")
    for layer in layers.values():
        layer._remove_hebbian()
        layer.__class__ = type(layer).plain
    return model


@functools.cache
def hebbian_class(plain: type[nn.Module]) -> type[HebbianLayer]:
    """The Hebbian class of a layer's class: one of hebbkern.nn, or for a subclass one that derives from both.

    An instance of the latter is pickled as `new_layer` of the plain class, which makes the class where it is loaded.
    """
    base = next(hebbian for hebbian in HEBBIAN if issubclass(plain, hebbian.plain))
    if plain is base.plain:
        return base
    members: dict[str, Any] = {
        "plain": plain,
        "__module__": __name__,
        "__doc__": f"{plain.__name__} that learns by a local rule, see {base.__name__}.",
        "__reduce_ex__": _reduce,
    }
    if becomes := getattr(plain, "cls_to_become", None):  # of a lazy layer after its first forward pass
        members["cls_to_become"] = hebbian_class(becomes)
    return types.new_class(f"Hebbian{plain.__name__}", (base, plain), exec_body=lambda body: body.update(members))


def new_layer(plain: type[nn.Module]) -> HebbianLayer:
    """An instance of the Hebbian class of `plain` without attributes, which pickle sets."""
    hebbian = hebbian_class(plain)
    return hebbian.__new__(hebbian)


def _reduce(layer: Any, protocol: Any) -> Any:
    hebbian = hebbian_class(layer.plain)
    function, arguments, *state = super(hebbian, layer).__reduce_ex__(protocol)
    if arguments[:1] == (hebbian,):  # not for a class that was derived later, or one that says itself how it is made
        function, arguments = new_layer, (layer.plain,)
    return function, arguments, *state


def _matches(key: Any, modules: Mapping[str, nn.Module]) -> list[str]:
    """The names of the layers that an entry selects; whether each can be converted is another question."""
    if isinstance(key, str) and key in modules:
        return [key]
    candidates = {name: layer for name, layer in modules.items() if _kind(layer)}
    if isinstance(key, str):
        if not any(sign in key for sign in "*?["):
            known = ", ".join(f'"{name}"' for name in candidates) or "none"
            raise ValueError(f'hebbkern.nn.convert: name must be a layer of the model ({known}), got "{key}"')
        shown, matches = f'"{key}"', [name for name in candidates if fnmatchcase(name, key)]
    elif isinstance(key, type):
        shown, matches = key.__name__, [name for name, layer in candidates.items() if isinstance(layer, key)]
    elif callable(key):
        shown, matches = getattr(key, "__name__", repr(key)), [n for n, layer in candidates.items() if key(n, layer)]
    else:
        raise ValueError(f"hebbkern.nn.convert: name must be a name, a pattern, a type or a function, got {key!r}")
    if not matches:
        raise ValueError(f"hebbkern.nn.convert: {shown} must match a Linear, Conv1d, Conv2d or Conv3d layer, got none")
    return matches


def _kind(layer: nn.Module) -> type[HebbianLayer] | None:
    """The Hebbian class of hebbkern.nn that a layer, its own or torch's or of a subclass, belongs to."""
    return next((hebbian for hebbian in HEBBIAN if isinstance(layer, hebbian.plain)), None)


def _check(name: str, modules: Mapping[str, nn.Module]) -> None:
    """Raises ValueError if the layer cannot be converted or its rule replaced."""
    layer, kind = modules[name], _kind(modules[name])
    if kind is None:
        _refuse("convert", name, f"be a {KINDS}", type(layer).__name__)
    check_own_weight("nn.convert", f'"{name}"', layer)
    if isinstance(layer, HebbianLayer):
        return
    for changed in _changed(layer, kind.plain):
        _refuse("convert", name, f"have the forward pass of torch.nn.{kind.plain.__name__}", changed)
    for own in OWN:
        if hasattr(layer, own):
            _refuse("convert", name, f"not have an attribute {own}, which Hebbian layers have", type(layer).__name__)
    parent = modules.get(name.rpartition(".")[0])
    if type(parent).forward is nn.MultiheadAttention.forward and layer is parent.out_proj:  # pyright: ignore
        got = f"the out_proj of a {type(parent).__name__}, which uses its weight only"
        _refuse("convert", name, "be called by the module that holds it", got)


def _changed(layer: nn.Module, plain: type[nn.Module]) -> Iterator[str]:
    """What a layer, or the class that a lazy one becomes, computes in another way than torch's layer does."""
    for kind in (type(layer), getattr(layer, "cls_to_become", None)):
        for method in ("__call__", "forward", "_conv_forward"):
            if kind is not None and getattr(kind, method, None) is not getattr(plain, method, None):
                yield f"{kind.__name__}.{method}"
            if method in vars(layer):
                yield f"a {method} that was set on the layer"


def _neurons(layer: Any) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _refuse(function: str, name: str, wanted: str, got: object) -> NoReturn:
    raise ValueError(f'hebbkern.nn.{function}: "{name}" must {wanted}, got {got}')
