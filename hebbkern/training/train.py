"""train: a whole training of a model's Hebbian layers, with schedules, checkpoints and exact resume."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from hebbkern.evaluation.features import eval_mode
from hebbkern.files import locked
from hebbkern.nn.conversion import KeyT, convert
from hebbkern.nn.learning import by_name
from hebbkern.nn.wrappers import plain_name, unwrapped
from hebbkern.rules import Rule
from hebbkern.training.checkpoint import PlainModel, PlainOptimizer, RandomState, Safetensors, last_checkpoint, load
from hebbkern.training.engine import Engine, Events, Step, engine_of, pair
from hebbkern.training.handlers import Figures

# isort: split
import ignite.distributed as idist
from ignite.handlers import Checkpoint, ProgressBar
from ignite.handlers.state_param_scheduler import StateParamScheduler

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def train(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    lr: float | Mapping[str, float],
    epochs: int | Mapping[str, int],
    rules: Mapping[KeyT, Rule] | None = None,
    order: str = "together",
    decay: str = "linear",
    supervised_from: str | None = None,
    optimizer: Optimizer | None = None,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    group: ProcessGroup | None = None,
    dtype: torch.dtype | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    save_every: int | None = None,
    progress: bool = False,
    handlers: Iterable[Any] = (),
) -> Engine:
    """Trains the Hebbian layers of `model`, and optionally the modules after them by backpropagation.

        hk.training.train(model, hk.training.Batches(x, batch_size=1000), lr=0.04, epochs=10)

    An interrupted training that is resumed, also in the middle of an epoch, ends with the same bits as one that was
    not interrupted. A checkpoint holds the model (weights, frozen masks, buffers), the optimizer, the schedule, the
    iteration, `engine.state.lr`, and the random generators of torch, NumPy and Python of each process. It does not hold
    the state of handlers (such as ignite's schedulers), which must restore it from the engine's state, as `ReviveDead`
    does.

    Args:
        model: holds at least one Hebbian layer, or gets it by `rules`. Any module, see `hebbian_trainer`.
        batches: a `Batches`, or anything that yields what `hebbian_trainer` takes each time it is iterated, such as a
            DataLoader, also of an IterableDataset: the first epoch then finds out how many batches an epoch has. A
            DataLoader cannot start in the middle of an epoch, so its training resumes exactly after whole epochs only.
        lr: learning rate of the first epoch; a number, or {name or pattern of Hebbian layers: number}: layers that no
            entry matches do not learn, later entries take precedence.
        epochs: of the whole training; with order="greedy" of each layer and of the supervised part, either one number
            or {name or pattern: number} (a layer that no entry matches does not learn).
        rules: {which layers: rule}, makes layers Hebbian or gives them another rule, see `hk.nn.convert`.
        order: "together": all layers learn from each batch. "greedy": each layer completes its epochs before the next
            begins, in the order in which data reaches them (found by one forward pass beforehand), then the supervised
            part is trained.
        decay: of the learning rates, in epoch e of E (with "greedy" of each layer's own): "linear": lr·(1 − e/E),
            "cosine": lr·(1 + cos(π e/E))/2, or "constant", which leaves `engine.state.lr` to handlers (such as ignite's
            state schedulers).
        supervised_from, optimizer, loss, group, dtype: see `hebbian_trainer`. All processes of the group read the same
            folder, and the first one writes.
        folder: where checkpoints are written, after every epoch, as checkpoint_<iterations>.safetensors; the latest two
            are kept. None writes none.
        resume: continue from the latest checkpoint in `folder`, or start if there is none. Otherwise `folder` must not
            hold any. `epochs` may be larger than before (with "greedy" those of the last layer or of the supervised
            part): with decay="constant" the training ends as if it had been so long from the start, otherwise the
            epochs to come take the rates of the longer training.
        save_every: batches between checkpoints within an epoch.
        progress: show ignite's progress bar (on stderr), with the metrics.
        handlers: pairs (ignite event, function of the engine), and objects with attach(engine), to add.

    Returns:
        The engine; `engine.state` holds epoch, iteration, lr, with order="greedy" the name of the layer that learns
        (`layer`, None otherwise), and with progress=True the metrics of `hk.training.handlers.Figures`.

    Raises:
        ValueError: there is no Hebbian layer, epochs is below 1, order or decay is wrong, a name or pattern matches no
            layer, or a checkpoint is torn or of another training. The model is unchanged, unless `rules` changed it.
            Also if the supervised loss diverges, see `hebbian_trainer`.
        FileExistsError: `folder` holds checkpoints and resume is False.
        RuntimeError: another training writes to `folder`.
    """
    _check_schedule(epochs, order, decay)
    if save_every is not None and (not isinstance(save_every, int) or save_every < 1):
        raise ValueError(f"hebbkern.training: save_every must be a whole number of at least 1, got {save_every!r}")
    for argument, given in (("resume", resume), ("save_every", save_every)):
        if given and folder is None:
            raise ValueError(f"hebbkern.training: {argument} must come with a folder for checkpoints, got no folder")
    if rules is not None:
        convert(model, rules)
    length = _length(batches)
    step = Step(model, lr, supervised_from, optimizer, loss, group, dtype)
    trainer = engine_of(step)
    schedule = Schedule(step, _plan(step, batches, order, epochs, supervised_from), decay)
    if seek := getattr(batches, "seek", None):
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: seek(engine.state.iteration))
    if save_every is not None and (seek is None or length is None):
        wanted = "for batches that cannot seek or have no length"
        raise ValueError(f"hebbkern.training: save_every must be None {wanted}, got a number")
    schedule.attach(trainer, Events.EPOCH_STARTED)
    _attach(trainer, model, list(handlers), progress)
    with contextlib.nullcontext() if folder is None or idist.get_rank() > 0 else locked(Path(folder)):
        if folder is not None:
            saved = {"model": PlainModel(model), "trainer": trainer, "schedule": schedule, "random": RandomState(group)}
            saved |= {} if optimizer is None else {"optimizer": PlainOptimizer(optimizer)}
            _keep_checkpoints(saved, Path(folder), resume, save_every, length)
        length = trainer.state.epoch_length or length  # known of a training that is resumed
        if length is None or trainer.state.iteration < schedule.epochs * length:
            trainer.run(batches, max_epochs=schedule.epochs, epoch_length=length)
    return trainer


def _attach(trainer: Engine, model: nn.Module, handlers: list[Any], progress: bool) -> None:
    if progress and not any(isinstance(handler, Figures) for handler in handlers):
        handlers.insert(0, Figures(model))  # only then, because it compares all weights once an epoch
    for handler in handlers:
        if hasattr(handler, "attach"):
            handler.attach(trainer)
        else:
            trainer.add_event_handler(*handler)
    if progress:
        bar = ProgressBar(persist=True, ncols=80, disable=None)  # None: only on a terminal
        bar.attach(trainer, "all", event_name=Events.EPOCH_COMPLETED, closing_event_name=Events.COMPLETED)


class Stage(NamedTuple):
    """Consecutive epochs in which the same layers learn."""

    layer: str | None  # the only layer that learns; None for all
    supervised: bool
    epochs: int


class Schedule(StateParamScheduler):
    """Sets `engine.state.lr`, `engine.state.layer` and the layers that learn in `step` at the start of each epoch.

    A state scheduler of ignite whose index is the epoch, so that a resumed training continues where it was. The decay
    of the rate (see `train`) starts anew in each stage. "constant" sets the rate before the first batch only.
    """

    def __init__(self, step: Step, stages: list[Stage], decay: str):
        super().__init__("lr")
        self.step, self.stages, self.lr, self.decay = step, stages, step.lr, decay
        rates = {name: step.rates[layer] * step.lr for name, layer in step.layers.items()}
        names = [None if stage.layer is None else plain_name(step.model, stage.layer) for stage in stages]
        plain = [[name, *stage[1:]] for name, stage in zip(names, stages, strict=True)]
        self.settings = {"stages": plain, "lr": rates, "decay": decay}
        self.settings["dtype"] = None if step.dtype is None else str(step.dtype)
        self._state_attrs = [*self._state_attrs, "settings"]

    @property
    def epochs(self) -> int:
        return sum(stage.epochs for stage in self.stages)

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        self.event_index = state.epoch - 1
        if self.decay != "constant" or state.iteration == 0:  # a first epoch may be resumed
            state.lr = self.get_param()
        stage, _ = self._current()
        state.layer = stage.layer
        self.step.only = None if stage.layer is None else self.step.layers.get(stage.layer)
        self.step.learns = stage.layer is None or self.step.only is not None
        self.step.supervises = stage.supervised

    def get_param(self) -> float:
        stage, epoch = self._current()
        if self.decay == "linear":
            return self.lr * (1 - epoch / stage.epochs)
        if self.decay == "cosine":
            return self.lr * (1 + math.cos(math.pi * epoch / stage.epochs)) / 2
        return self.lr

    def _current(self) -> tuple[Stage, int]:
        """The stage of the present epoch, and the epoch within it."""
        epoch = self.event_index
        for stage in self.stages:
            if epoch < stage.epochs:
                return stage, epoch
            epoch -= stage.epochs
        return self.stages[-1], self.stages[-1].epochs


def _check_schedule(epochs: int | Mapping[str, int], order: str, decay: str) -> None:
    if order not in ("together", "greedy"):
        raise ValueError(f'hebbkern.training: order must be "together" or "greedy", got {order!r}')
    if decay not in ("linear", "cosine", "constant"):
        raise ValueError(f'hebbkern.training: decay must be "linear", "cosine" or "constant", got {decay!r}')
    if isinstance(epochs, Mapping) and order != "greedy":
        raise ValueError('hebbkern.training: epochs must be a number unless order="greedy", got a dict')
    for number in epochs.values() if isinstance(epochs, Mapping) else [epochs]:
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"hebbkern.training: epochs must be a whole number of at least 1, got {number!r}")


def _plan(step: Step, batches: Iterable, order: str, epochs: Any, supervised_from: str | None) -> list[Stage]:
    """The stages of a training; a greedy one has one for each layer that data reaches and that is not frozen."""
    if order == "together":
        return [Stage(None, supervised_from is not None, epochs)]
    parts: dict[str, Any] = dict(step.layers)
    if supervised_from is not None:
        parts.setdefault(supervised_from, None)
    epochs_of = by_name("training", "epochs", epochs if isinstance(epochs, Mapping) else {"*": epochs}, parts)
    learners = [name for name, layer in step.layers.items() if layer in epochs_of and not layer.frozen.all()]
    if len(learners) > 1:
        learners = _in_order_of_data(step, learners, batches)
    stages = [Stage(name, False, epochs_of[step.layers[name]]) for name in learners]
    if supervised_from is not None:
        if parts[supervised_from] not in epochs_of:
            raise ValueError(f'hebbkern.training: epochs must have an entry for "{supervised_from}", got none')
        stages.append(Stage(supervised_from, True, epochs_of[parts[supervised_from]]))
    if not stages:
        raise ValueError("hebbkern.training: model must hold a layer that learns, got only frozen or unreached ones")
    return stages


def _in_order_of_data(step: Step, names: list[str], batches: Iterable) -> list[str]:
    """The names in the order in which a batch reaches their layers; the model and the random state are unchanged."""
    model, reached = unwrapped(step.model), []
    hooks = [
        step.layers[name].register_forward_pre_hook(lambda layer, inputs, name=name: reached.append(name))
        for name in names
    ]
    try:
        with torch.no_grad(), eval_mode(model):
            model(step.to_device(pair(next(iter(batches)))[0]))
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(reached))


def _length(batches: Iterable[Any]) -> int | None:
    """The number of batches an epoch, or None if it is not known."""
    if isinstance(batches, Iterator):
        got = type(batches).__name__
        raise ValueError(f"hebbkern.training: batches must be iterable anew in each epoch, got a {got}, which is not")
    try:
        length = len(batches)  # type: ignore[arg-type]
    except TypeError:  # a DataLoader of an IterableDataset has the method, which raises
        return None
    if length == 0:
        raise ValueError("hebbkern.training: batches must hold at least one, got none")
    return length


def _keep_checkpoints(saved: dict, folder: Path, resume: bool, save_every: int | None, length: int | None) -> None:
    """Restores `saved` from the latest checkpoint if resume is True, and writes checkpoints from now on."""
    latest = last_checkpoint(folder)
    if latest and not resume:
        raise FileExistsError(
            f"hebbkern.training: {folder} must hold no checkpoints unless resuming, got {latest.name}"
        )
    checkpoint = load(latest) if latest else None
    if latest and checkpoint:
        _check_same(checkpoint, saved, latest.name, length)
    keeper = Checkpoint(
        saved,
        Safetensors(folder),
        n_saved=2,  # ignite removes the older one before it writes: one is always whole
        global_step_transform=lambda engine, event: engine.state.iteration,
        include_self=True,
    )
    if checkpoint:
        settings = saved["schedule"].settings
        Checkpoint.load_objects({**saved, "checkpointer": keeper}, checkpoint)
        saved["schedule"].settings = settings  # the training may have become longer
    event = Events.EPOCH_COMPLETED
    if save_every is not None:  # the last batch of an epoch is saved by EPOCH_COMPLETED, after its other handlers
        event |= Events.ITERATION_COMPLETED(event_filter=lambda _, i: i % save_every == 0 and i % length != 0)
    saved["trainer"].add_event_handler(event, keeper)


def _check_same(checkpoint: dict, saved: dict, name: str, length: int | None) -> None:
    """Refuses a checkpoint of another training before anything is restored from it."""
    missing = [part for part in saved if part not in checkpoint]
    missing += [key for key in saved["trainer"].state_dict_user_keys if key not in checkpoint.get("trainer", {})]
    if missing:
        raise ValueError(f"hebbkern.training: {name} must be of such a training, got one without {', '.join(missing)}")
    before = checkpoint["trainer"]["epoch_length"]
    if length is not None and before != length:
        raise ValueError(
            f"hebbkern.training: a resumed training must have the batches an epoch of {name}, {before}, got {length}"
        )
    _check_shapes(checkpoint["model"], saved["model"].model, name)
    then, now = checkpoint["schedule"]["settings"], saved["schedule"].settings
    for setting in now:
        same = _extends if setting == "stages" else operator.eq
        if not same(now[setting], then.get(setting)):
            raise ValueError(
                f"hebbkern.training: a resumed training must keep {setting} of {name}, {then.get(setting)}, "
                f"got {now[setting]}"
            )


def _extends(now: list, then: list) -> bool:
    """Whether the stages are those of before, of which the last may have more epochs."""
    return now[:-1] == then[:-1] and now[-1][:-1] == then[-1][:-1] and now[-1][-1] >= then[-1][-1]


def _check_shapes(state: Mapping[str, Any], model: nn.Module, name: str) -> None:
    """Refuses parameters and buffers of other shapes; torch would raise only after loading the ones that fit."""
    there, here = (
        {part: list(one.shape) for part, one in parts.items() if isinstance(one, Tensor) and not is_lazy(one)}
        for parts in (state, PlainModel(model).state_dict())
    )
    modules = [item for item in model.named_modules(remove_duplicate=False) if hasattr(item[1], "misfit")]
    paths = [plain_name(model, path) for path, _ in modules]
    growing: dict[str, Any] = {f"{path}." if path else "": item[1] for path, item in zip(paths, modules, strict=True)}
    for prefix, module in growing.items():
        if problem := module.misfit(state, prefix):
            raise ValueError(f"hebbkern.training: model must fit {name}: {problem}")
    for part in here:
        if not part.startswith(tuple(growing)) and there.get(part) != here[part]:
            raise ValueError(
                f'hebbkern.training: model must have "{part}" as {name} has it, of shape {there.get(part)}, '
                f"got {here[part]}"
            )
