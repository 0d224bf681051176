"""ReviveDead: a handler that restarts neurons which do not win."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hebbkern.evaluation.measures import wins
from hebbkern.nn.initialisation import restart_
from hebbkern.nn.layers import HebbianLayer
from hebbkern.nn.learning import hebbian_layers
from hebbkern.nn.wrappers import holds_compiled
from hebbkern.rules import WTA, KrotovHopfield
from hebbkern.training.engine import Engine, Events

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ReviveDead:
    """Restarts neurons that rarely win, each on a patch of the present batch that is badly represented.

        hk.training.train(model, batches, lr=0.1, epochs=5, handlers=[hk.training.ReviveDead(model)])

    After every `steps` batches, a neuron is dead if in these batches it has won fewer than `share` times the mean
    number of wins in its layer. Blank patches count for nobody, and with WTA of k winners all k count. A dead neuron
    gets a new weight as `hk.nn.init_from_samples_` chooses it: a patch of the batch, drawn with a probability
    proportional to 1 − cos to the nearest other neuron, of their mean length. Frozen neurons, layers that have not
    learnt, and layers whose rule is neither `WTA` nor `KrotovHopfield` are left alone.

    Deterministic for a seed. `hk.training.train` keeps the counts in its checkpoints, so that a resumed training ends
    with the same bits. Counting takes another search for winners in each batch.

    Args:
        model: the model that the engine trains, not compiled.
        steps: batches between restarts, at least 1.
        share: of the mean number of wins, from 0 (nobody is dead) to 1.
        seed: of the draws.
        group: the torch.distributed group of the engine: wins are summed over its processes, and its first one draws.
            Each of them attaches the handler.

    Raises:
        ValueError: steps or share is out of range, or the model is compiled or has no Hebbian layer whose rule has
            winners.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int = 100,
        share: float = 0.01,
        seed: int = 0,
        group: ProcessGroup | None = None,
    ):
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"hebbkern.ReviveDead: steps must be a whole number of at least 1, got {steps!r}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"hebbkern.ReviveDead: share must be from 0 to 1, got {share!r}")
        if holds_compiled(model):
            raise ValueError(
                "hebbkern.ReviveDead: model must not be compiled, as it then calls no hooks, got one that is"
            )
        self.layers: dict[str, Any] = {
            name: layer
            for name, layer in hebbian_layers(model).items()
            if isinstance(layer, HebbianLayer) and isinstance(layer.rule, WTA | KrotovHopfield)
        }
        if not self.layers:
            raise ValueError("hebbkern.ReviveDead: model must hold a layer of rule WTA or KrotovHopfield, got none")
        self.steps, self.share, self.seed, self.group = steps, share, seed, group
        self._hooks: list[RemovableHandle] = []
        self._inputs: dict[str, Tensor] = {}

    def attach(self, engine: Engine) -> None:
        state: Any = engine.state
        state.wins = {}  # since the last restarts, by layer
        engine.state_dict_user_keys.append("wins")
        engine.add_event_handler(Events.ITERATION_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end)

    def _begin(self, engine: Engine) -> None:
        self._remove_hooks()  # of a step that an error has ended
        for name, layer in self.layers.items():
            self._hooks.append(layer.register_forward_pre_hook(partial(self._count, engine.state, name)))

    def _count(self, state: Any, name: str, layer: Any, inputs: tuple[Tensor, ...]) -> None:
        if layer.learning_state is None:
            return
        x = inputs[0].detach()
        counts = wins(layer, x)
        if self.group is not None:  # now, because a checkpoint has the counts of the first process
            torch.distributed.all_reduce(counts, group=self.group)
        state.wins[name] = state.wins.get(name, 0) + counts.cpu()
        if state.iteration % self.steps == 0:
            self._inputs[name] = x

    def _end(self, engine: Engine) -> None:
        self._remove_hooks()
        state: Any = engine.state
        if state.iteration % self.steps == 0:
            for name, layer in self.layers.items():
                if name in state.wins and name in self._inputs:
                    self._revive(layer, state.wins[name], self._inputs[name], state.iteration)
            state.wins, self._inputs = {}, {}

    def _revive(self, layer: Any, counts: Tensor, x: Tensor, iteration: int) -> None:
        dead = (counts < self.share * counts.double().mean()).to(layer.frozen.device) & ~layer.frozen
        if not dead.any():
            return
        if len(x):
            restart_(layer, dead, x, torch.Generator("cpu").manual_seed(self.seed * 1_000_003 + iteration))
        if self.group is not None:
            torch.distributed.broadcast(layer.weight.detach(), group=self.group, group_src=0)

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
