"""hebbkern.learning: the context in which the Hebbian layers of a model learn during the forward pass."""

from __future__ import annotations

import math
import numbers
import threading
import warnings
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from hebbkern.checks import FLOATS, fail
from hebbkern.nn.state import Hebbian, LearningState, learning_scope
from hebbkern.nn.weights import check_own_weight, computed_by
from hebbkern.nn.wrappers import plain_name, plain_names

LayerT = TypeVar("LayerT")
SPECIAL = (Hebbian, DistributedDataParallel, nn.TransformerEncoderLayer)  # modules that `learning` looks for


class learning(learning_scope):
    """Context in which every Hebbian layer of `model`, itself included, learns from each input of its forward pass.

        with hk.learning(model, lr=1e-3):
            model(x)

    A layer first takes a step on its input and then computes its output with the new weights, so that the next layer
    learns from the output of a layer that has learned (PyTorch-Hebbian, section 4.1). Training and evaluation mode make
    no difference. Contexts nest: the innermost one that contains a layer counts. On leaving, also by an exception, each
    layer is as it was before.

    With into="grad" the weights stay and any torch optimizer takes the steps:

        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        with hk.learning(model, into="grad"):
            model(x)
        optimizer.step()
        optimizer.zero_grad()

    Each forward pass then adds −lr·Δ to weight.grad, where Δ is the step of the rule at lr = 1 from the present
    weights. Frozen rows get exactly 0, but momentum and weight decay of the optimizer still move them. Pass all of
    `model.parameters()` to the optimizer: Hebbian weights have requires_grad=False, yet optimizers step every parameter
    that has a gradient. Beside a loss that torch.amp.GradScaler scales, use lr=scaler.get_scale(), which the scaler
    divides out again.

    Learning belongs to the thread, and to the asynchronous task, that entered the context (tasks that are made inside
    inherit it). Other threads, DataLoader workers, copies of the model, and passes that torch.utils.checkpoint
    recomputes do not learn. `hk.nn.no_learning` ends it for a while.

    Args:
        model: a module with at least one Hebbian layer.
        lr: learning rate, finite: a number for all layers, or {name or pattern: number}. Names are those of
            `model.named_modules()`, with or without the prefixes of torch.compile and DistributedDataParallel; patterns
            contain *, ? or []. Later entries override earlier ones; Hebbian layers that match no entry do not learn.
            With into="grad" the default is 1.0, otherwise lr is required.
        labels: [B] integers for layers whose rule is Supervised; other rules ignore them. See `HebbianLinear.learn`.
        into: "weight", or "grad" (not for rules that renormalise rows: their step is not linear in lr).
        group: a torch.distributed group. Updates are summed over its processes before they are applied, so that all of
            them take the step of the whole batch. Every process must run the same layers; its share may be empty. None
            for the group of the DistributedDataParallel that holds the layer, if there is one.
        dtype: float32, float64, bfloat16 or float16. The update is computed from weight and input rounded to this dtype
            and applied to the unrounded weight. None for the weight's dtype. With bfloat16 the dense rules learn about
            twice as fast on processors with bfloat16 products (`hebbkern.ops.dense_update` describes the rounding).
        generator: on the weights' device. Steps of float16 and bfloat16 weights are then taken in float32 and rounded
            stochastically, so that steps below the precision of the weight add up on average. Its seed and state
            determine the bits; processes of a group need equal ones. Not for compiled models.
        strict: on leaving, raise RuntimeError if a layer that has a rate has not learnt.

    Warns:
        UserWarning: on leaving, if no layer has learnt; several processes learn and nothing is summed; a weight
            requires a gradient, so that backpropagation trains it too; or a step is below the precision of a float16 or
            bfloat16 weight.

    Raises:
        ValueError: the model has no Hebbian layer, lr is missing or not finite, an entry of lr matches no Hebbian
            layer, into or dtype is not one of the above, a rule renormalises or there is a generator with into="grad",
            or a weight is computed from other tensors (weight_norm, pruning, parametrizations) or sharded (FSDP).
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | Mapping[str, float] | None = None,
        labels: Tensor | None = None,
        *,
        into: str = "weight",
        group: Any = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
        strict: bool = False,
    ) -> None:
        compiling = torch.compiler.is_compiling()
        special = [module for module in model.modules() if isinstance(module, SPECIAL)]
        layers = [module for module in special if isinstance(module, Hebbian)]
        check_any("learning", model, layers)
        check_into("learning", into)
        check_dtype("learning", dtype)
        if generator is not None and into == "grad":
            fail("learning", "generator", 'be None with into="grad", as the optimizer takes the step', "a generator")
        if lr is None and into == "grad":
            lr = 1.0
        if isinstance(lr, Mapping):
            rates = by_name("learning", "lr", lr, names_of_layers(model))
        else:
            rates = dict.fromkeys(layers, lr)
        groups = groups_of(special, group)
        states: dict[Hebbian, LearningState | None] = {}
        state: LearningState | None = None
        for layer in layers:
            if layer not in rates:
                states[layer] = None
                continue
            rate = check_rate("learning", rates[layer])
            own = groups.get(layer, group)
            if state is None or state.lr != rate or state.group is not own:
                state = LearningState(rate, labels, _rate_tensor(rate), into, own, dtype=dtype, generator=generator)
            states[layer] = state
            if into == "grad":
                check_linear("learning", layer.rule)
            if computed_by(layer):
                check_own_weight("learning", f'"{_name(model, layer)}"', layer)
        super().__init__(states)
        self.model, self.strict = model, strict
        self.holds_encoder = any(isinstance(module, nn.TransformerEncoderLayer) for module in special)
        self._before: list[dict[Hebbian, tuple[Any, ...]]] = []
        self._outside: set[Hebbian] = set()  # layers that are not in the model
        if not compiling:
            self._warn_if_trained_twice(rates)
            _warn_if_nothing_is_summed(state.group for state in states.values() if state is not None)

    def __enter__(self) -> Self:
        super().__enter__()
        if not torch.compiler.is_compiling():
            self._before.append({layer: _written(layer) for layer in self.weights})
            if self.holds_encoder:
                _fast_path.hold()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if torch.compiler.is_compiling():
            return
        if self.holds_encoder:
            _fast_path.release()
        before = self._before.pop()
        if error[0] is None:
            self._check_learnt([layer for layer in before if _same(before[layer], _written(layer))], len(before))

    def has_gained(self, layer: Hebbian) -> bool:
        if layer in self._outside:
            return False
        if any(module is layer for module in self.model.modules()):
            return True
        self._outside.add(layer)
        return False

    def _warn_if_trained_twice(self, layers: Iterable[Hebbian]) -> None:
        """Warns if backpropagation trains the weight of a layer too."""
        trained = [layer for layer in layers if layer._parameters["weight"].requires_grad]  # type: ignore[union-attr]
        if trained:
            names = ", ".join(f'"{_name(self.model, layer)}"' for layer in trained)
            warnings.warn(
                f"hebbkern.learning: backpropagation trains the weights of {names} beside the rule, as they require "
                "gradients; call weight.requires_grad_(False)",
                stacklevel=3,
            )

    def _check_learnt(self, idle: list[Hebbian], number: int) -> None:
        """Raises or warns if layers that have a rate have not learnt."""
        if not idle or not (self.strict or len(idle) == number):
            return
        names = ", ".join(f'"{_name(self.model, layer)}"' for layer in idle)
        if self.strict:
            raise RuntimeError(f"hebbkern.learning: every layer with a rate must learn inside the context, got {names}")
        warnings.warn(
            f"hebbkern.learning: no layer has learnt inside the context ({names}); a layer learns when it is "
            "called in the thread that entered the context",
            stacklevel=3,
        )


class _FastPath:
    """torch's fused nn.TransformerEncoderLayer never calls the layers in it: off while a context of one is open."""

    def __init__(self) -> None:
        self.lock, self.holders, self.was = threading.Lock(), 0, True

    def hold(self) -> None:
        with self.lock:
            if self.holders == 0:
                self.was = torch.backends.mha.get_fastpath_enabled()
            self.holders += 1
            torch.backends.mha.set_fastpath_enabled(False)

    def release(self) -> None:
        with self.lock:
            self.holders -= 1
            if self.holders == 0:
                torch.backends.mha.set_fastpath_enabled(self.was)


_fast_path = _FastPath()


def _written(layer: Hebbian) -> tuple[Any, Any, Any, Any]:
    """What a step of `layer` changes, its weight and its gradient, each with how often it was written."""
    weight = layer._parameters["weight"]
    assert weight is not None
    gradient = weight.grad
    return weight, _version(weight), gradient, _version(gradient)


def _version(tensor: Tensor | None) -> object:
    """How often a tensor was written. One of inference mode does not count: it equals no other answer."""
    if tensor is None or is_lazy(tensor):
        return None
    return object() if tensor.is_inference() else tensor._version


def _same(before: tuple[Any, Any, Any, Any], after: tuple[Any, Any, Any, Any]) -> bool:
    """Whether nothing was written."""
    return before[0] is after[0] and before[2] is after[2] and before[1] == after[1] and before[3] == after[3]


def groups_of(modules: Iterable[nn.Module], group: Any = None) -> dict[Hebbian, Any]:
    """The group over which the updates of each layer are summed: `group`, or that of DistributedDataParallel."""
    if group is not None:
        return {}
    parallel = [module for module in modules if isinstance(module, DistributedDataParallel)]
    return {layer: each.process_group for each in parallel for layer in each.modules() if isinstance(layer, Hebbian)}


def _warn_if_nothing_is_summed(groups: Iterable[Any]) -> None:
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    if all(group is None for group in groups):
        warnings.warn(
            f"hebbkern.learning: {distributed.get_world_size()} processes learn each from its own data and nothing is "
            "summed, so that their weights differ; pass group=torch.distributed.group.WORLD, or a model that "
            "DistributedDataParallel holds",
            stacklevel=3,
        )


def hebbian_layers(model: nn.Module) -> dict[str, Hebbian]:
    """The Hebbian layers by name. Names are those of the model without torch.compile and DistributedDataParallel."""
    named = model.named_modules(remove_duplicate=False)
    return {plain_name(model, name): layer for name, layer in named if isinstance(layer, Hebbian)}


def names_of_layers(model: nn.Module) -> dict[str, Hebbian]:
    """The Hebbian layers by the names of `hebbian_layers`, and then by those of `named_modules`."""
    named = model.named_modules(remove_duplicate=False)
    return hebbian_layers(model) | {name: layer for name, layer in named if isinstance(layer, Hebbian)}


def _name(model: nn.Module, layer: Hebbian) -> str:
    """The first name of `layer` in `model`; its type if it has left the model."""
    return next((name for name, other in hebbian_layers(model).items() if other is layer), type(layer).__name__)


_rate_tensors: dict[float, Tensor] = {}  # made once for each rate, as making one takes as long as all the rest


def _rate_tensor(rate: float) -> Tensor:
    """`rate` as a float64 tensor on the CPU."""
    if torch.compiler.is_compiling():
        return torch.tensor(rate, dtype=torch.float64, device="cpu")
    tensor = _rate_tensors.get(rate)
    if tensor is None:
        with torch.inference_mode(False):
            tensor = torch.tensor(rate, dtype=torch.float64, device="cpu")
        if len(_rate_tensors) == 64:
            _rate_tensors.clear()
        if type(tensor) is Tensor:  # not inside a FakeTensorMode
            _rate_tensors[rate] = tensor
    return tensor


def by_name(where: str, argument: str, entries: Mapping[str, Any], layers: Mapping[str, LayerT]) -> dict[LayerT, Any]:
    """{layer: value} from {name or pattern: value}; later entries override earlier ones.

    Args:
        layers: by name, as of `names_of_layers`. A name may also begin with what the wrappers of another model add.

    Raises:
        ValueError: an entry matches no layer. The message names the function `where` and its `argument`.
    """
    values: dict[LayerT, Any] = {}
    for name, value in entries.items():
        for pattern in (str(name), *plain_names([str(name)])):
            matches = [layer for other, layer in layers.items() if other == pattern or fnmatchcase(other, pattern)]
            if matches:
                break
        else:
            first: dict[LayerT, str] = {}
            for other, layer in layers.items():
                first.setdefault(layer, other)
            known = ", ".join(f'"{other}"' for other in first.values())
            raise ValueError(f'hebbkern.{where}: {argument} must match Hebbian layers ({known}), got "{name}"')
        values.update(dict.fromkeys(matches, value))
    return values


def check_any(where: str, model: nn.Module, layers: Collection[Any]) -> None:
    """Raises ValueError if `layers`, the Hebbian layers of `model`, is empty."""
    if not layers:
        name = type(model).__name__
        raise ValueError(f"hebbkern.{where}: model must hold a Hebbian layer (see hk.nn.convert), got {name}")


def check_into(where: str, into: str) -> None:
    """Raises ValueError unless into is "weight" or "grad"."""
    if into not in ("weight", "grad"):
        raise ValueError(f'hebbkern.{where}: into must be "weight" or "grad", got {into!r}')


def check_dtype(where: str, dtype: object) -> None:
    """Raises ValueError unless dtype is None or a dtype in which rules learn."""
    if dtype is not None and dtype not in FLOATS:
        fail(where, "dtype", "be torch.float32, float64, bfloat16 or float16, or None", repr(dtype))


def check_rate(where: str, lr: object) -> float:
    """lr as a float. Raises ValueError unless it is a finite real number."""
    if type(lr) is not float and (not isinstance(lr, numbers.Real) or isinstance(lr, bool)):
        raise ValueError(f"hebbkern.{where}: lr must be a number, got {lr!r}")
    if not math.isfinite(lr):
        raise ValueError(f"hebbkern.{where}: lr must be finite, got {lr}")
    return float(lr)


def check_linear(where: str, rule: object) -> None:
    """Raises ValueError if the step of the rule is not linear in lr, as an optimizer requires."""
    if getattr(rule, "normalise", "none") in ("row_max", "row_l2"):
        raise ValueError(f'hebbkern.{where}: rule must not renormalise (normalise="none") for into="grad", got {rule}')
