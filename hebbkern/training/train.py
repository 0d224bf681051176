"""train: a whole training of a model's Hebbian layers, with schedules, checkpoints and exact resume."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hebbkern.nn import convert
from hebbkern.nn.learning import check_rate
from hebbkern.rules import Rule
from hebbkern.training.checkpoint import RandomState, Safetensors, last_checkpoint, load
from hebbkern.training.engine import Engine, Events, engine_of
from hebbkern.training.handlers import Figures
from hebbkern.training.schedules import Schedule, check_schedule, plan
from hebbkern.training.step import Step

# isort: split
from ignite.handlers import Checkpoint, ProgressBar


def train(
    model: nn.Module,
    batches: Iterable,
    *,
    lr: float | Mapping[str, float],
    epochs: int | Mapping[str, int],
    rules: Mapping[str, Rule] | None = None,
    order: str = "together",
    decay: str = "linear",
    supervised_from: str | None = None,
    optimizer=None,
    loss: Callable = F.cross_entropy,
    group=None,
    dtype: torch.dtype | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    save_every: int | None = None,
    progress: bool = False,
    handlers: Iterable = (),
) -> Engine:
    """Trains the Hebbian layers of `model`, and what comes after them by backpropagation if asked to.

        hk.training.train(model, hk.training.Batches(x, size=1000), lr=0.04, epochs=10)

    An interrupted training that is resumed, in the middle of an epoch too, ends with the same bits as one that was
    not. Saved are the model (weights, frozen masks, buffers), the optimizer, the schedule, how far the training came,
    `engine.state.lr`, and the random generators of torch, NumPy and Python, of each process its own. What handlers keep
    to themselves, as ignite's schedulers keep their place, is not: such a handler must find it from the engine's state.

    Args:
        model: holds at least one Hebbian layer, or gets it by `rules`. Any module, see `hebbian_trainer`.
        batches: a `Batches`, or anything with a length that yields (x, labels) or x, such as a DataLoader; of those,
            which
            cannot start anywhere, a training resumes exactly after whole epochs only.
        lr: of the first epoch; a number, or {name or pattern of Hebbian layers: number}: layers no entry matches do not
            learn, later entries count.
        epochs: how many there are in all; with order="greedy" for each layer and for the supervised part, which a dict
            {name or pattern: number} tells apart (a layer that no entry matches does not learn).
        rules: {name or pattern of layers: rule}, makes layers Hebbian or gives them another rule (`hk.nn.convert`).
        order: "together": all layers learn from each batch. "greedy": each layer learns to its end before the next
            begins, in the order in which data reaches them (one batch is sent through beforehand to see it), then the
            supervised part is trained.
        decay: how rates fall from epoch to epoch, e of E (with "greedy" of each layer's own): "linear" to
            lr·(1 − e/E), "cosine" to lr·(1 + cos(π e/E))/2, or "constant", which leaves `engine.state.lr` to handlers
            (of ignite's state schedulers say).
        supervised_from, optimizer, loss, group, dtype: see `hebbian_trainer`. All processes of the group read the same
            folder, and the first one writes.
        folder: where checkpoints are written, after every epoch, as checkpoint_<iterations>.safetensors; the latest two
            stay. None writes none.
        resume: go on from the latest checkpoint in `folder`, or start if there is none. Otherwise `folder` must not
            hold any.
        save_every: write a checkpoint also after so many batches.
        progress: show ignite's progress bar (on stderr), with the metrics.
        handlers: pairs (ignite event, function of the engine), and objects with attach(engine), to add.

    Returns:
        The engine; `engine.state` tells epoch, iteration, lr, with order="greedy" the name of the layer that learns
        (`layer`, None otherwise), and with progress=True as metrics the figures of `hk.training.handlers.Figures`.

    Raises:
        ValueError: no Hebbian layer, epochs below 1, a wrong order or decay, a name or pattern without a layer, or
            checkpoints that are torn or of another training. The model is as before, unless `rules` changed it.
        FileExistsError: `folder` holds checkpoints and resume is False.
    """
    check_schedule(lr, epochs, order, decay)
    if save_every is not None and (not isinstance(save_every, int) or save_every < 1):
        raise ValueError(f"hebbkern.training: save_every must be a whole number of at least 1, got {save_every!r}")
    for argument, given in (("resume", resume), ("save_every", save_every)):
        if given and folder is None:
            raise ValueError(f"hebbkern.training: {argument} must come with a folder for checkpoints, got no folder")
    if rules is not None:
        convert(model, dict(rules))
    rates, top = (lr, 1.0) if isinstance(lr, Mapping) else (None, lr)
    check_rate("training", top)
    step = Step(model, rates, supervised_from, optimizer, loss, group, dtype)
    trainer = engine_of(step)
    schedule = Schedule(step, plan(step, batches, order, epochs, supervised_from), lr=top, decay=decay)
    if hasattr(batches, "seek"):
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: batches.seek(engine.state.iteration))
    elif save_every is not None:
        raise ValueError("hebbkern.training: save_every must be None for batches that cannot seek, got a number")
    schedule.attach(trainer, Events.EPOCH_STARTED)
    handlers = list(handlers)
    if progress and not any(isinstance(handler, Figures) for handler in handlers):
        handlers.insert(0, Figures(model))  # only then: it compares all weights once an epoch
    for handler in handlers:
        if hasattr(handler, "attach"):
            handler.attach(trainer)
        else:
            trainer.add_event_handler(*handler)
    if progress:
        bar = ProgressBar(persist=True, ncols=80, disable=None)  # None: only on a terminal
        bar.attach(trainer, "all", event_name=Events.EPOCH_COMPLETED, closing_event_name=Events.COMPLETED)
    if folder is not None:
        saved = {"model": getattr(model, "_orig_mod", model), "trainer": trainer, "schedule": schedule}
        saved |= {"random": RandomState(group)} | ({} if optimizer is None else {"optimizer": optimizer})
        _keep_checkpoints(saved, Path(folder), resume, save_every, len(batches))
    if trainer.state.iteration < schedule.epochs * len(batches):
        trainer.run(batches, max_epochs=schedule.epochs, epoch_length=len(batches))
    return trainer


def _keep_checkpoints(saved: dict, folder: Path, resume: bool, save_every: int | None, length: int) -> None:
    """Restores `saved` from the latest checkpoint if asked to, and writes it from now on."""
    trainer, schedule, latest = saved["trainer"], saved["schedule"], last_checkpoint(folder)
    if latest and not resume:
        raise FileExistsError(
            f"hebbkern.training: {folder} must hold no checkpoints unless resuming, got {latest.name}"
        )
    checkpoint = load(latest) if latest else None
    if checkpoint:
        _check_same(checkpoint, saved, latest.name, (schedule.epochs, length))
    keeper = Checkpoint(
        saved,
        Safetensors(folder),
        n_saved=2,  # ignite removes the older one before it writes: one is always whole
        global_step_transform=lambda engine, event: engine.state.iteration,
        include_self=True,
    )
    if checkpoint:
        Checkpoint.load_objects({**saved, "checkpointer": keeper}, checkpoint)
    event = Events.EPOCH_COMPLETED
    if save_every is not None:  # at the end of an epoch only once all that belongs to it is done
        event |= Events.ITERATION_COMPLETED(event_filter=lambda _, i: i % save_every == 0 and i % length != 0)
    trainer.add_event_handler(event, keeper)


def _check_same(checkpoint: dict, saved: dict, name: str, length: tuple[int, int]) -> None:
    """Refuses a checkpoint of another training before anything is restored from it."""
    if missing := [part for part in saved if part not in checkpoint]:
        raise ValueError(f"hebbkern.training: {name} must be of such a training, got one without {', '.join(missing)}")
    before = checkpoint["trainer"]["max_epochs"], checkpoint["trainer"]["epoch_length"]
    if before != length:
        raise ValueError(
            f"hebbkern.training: a resumed training must have the epochs and batches an epoch of {name}, {before}, "
            f"got {length}"
        )
    _check_shapes(checkpoint["model"], saved["model"], name)
    for setting, now in saved["schedule"].settings.items():
        if (then := checkpoint["schedule"]["settings"].get(setting)) != now:
            raise ValueError(f"hebbkern.training: a resumed training must keep {setting} of {name}, {then}, got {now}")


def _check_shapes(state: Mapping, model: nn.Module, name: str) -> None:
    """Refuses parameters and buffers of other shapes; torch would too, but after loading the ones that fit."""
    there, here = (
        {part: list(one.shape) for part, one in parts.items() if isinstance(one, Tensor) and not is_lazy(one)}
        for parts in (state, model.state_dict())
    )
    modules = [pair for pair in model.named_modules(remove_duplicate=False) if hasattr(pair[1], "misfit")]
    growing = {f"{path}." if path else "": module for path, module in modules}
    for prefix, module in growing.items():
        if problem := module.misfit(state, prefix):
            raise ValueError(f"hebbkern.training: model must fit {name}: {problem}")
    for part in here:
        if not part.startswith(tuple(growing)) and there.get(part) != here[part]:
            raise ValueError(
                f'hebbkern.training: model must have "{part}" as {name} has it, of shape {there.get(part)}, '
                f"got {here[part]}"
            )
