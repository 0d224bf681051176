"""hebbian_trainer and train: the loop over epochs and batches, its learning rate, checkpoints and exact resume."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from torch import nn

from hebbkern.nn import learning
from hebbkern.training.batches import Batches

try:
    from ignite.engine import Engine, Events
    from ignite.handlers import Checkpoint, DiskSaver, ProgressBar
    from ignite.handlers.state_param_scheduler import PiecewiseLinearStateScheduler
except ImportError as error:
    raise ImportError("hebbkern.training: pytorch-ignite is missing: pip install 'hebbkern[train]'") from error


def hebbian_trainer(model: nn.Module) -> Engine:
    """An ignite Engine that takes batches (x, labels) and lets every Hebbian layer of `model` learn from each.

    The learning rate is `engine.state.lr`, for ignite's state schedulers (or any handler) to set. Gradients are off.
    """

    def learn(engine, batch):
        x, labels = batch
        with torch.no_grad(), learning(model, lr=engine.state.lr, labels=labels):
            model(x)

    engine = Engine(learn)
    engine.logger.setLevel(logging.CRITICAL)  # errors are raised, which says it once
    engine.state.lr = 0.0
    engine.state_dict_user_keys.append("lr")
    return engine


def train(
    model: nn.Module,
    batches: Batches,
    *,
    lr: float,
    epochs: int,
    folder: str | Path | None = None,
    resume: bool = False,
    save_every: int | None = None,
    progress: bool = False,
    handlers=(),
) -> Engine:
    """Trains the Hebbian layers of `model`, with lr falling linearly to 0: lr·(1 − epoch/epochs), epochs from 0.

    An interrupted training that is resumed, in the middle of an epoch too, ends with the same bits as one that was not,
    as long as the model draws no random numbers.

    Args:
        model: holds at least one Hebbian layer.
        batches: what it learns from, in a seeded order.
        lr: of the first epoch. epochs: how many there are in all.
        folder: where checkpoints are written, after every epoch; the latest two stay. None writes none.
        resume: go on from the latest checkpoint in `folder`, or start if there is none. Otherwise `folder` must not
            hold any.
        save_every: write a checkpoint also after so many batches.
        progress: show ignite's progress bar (on stderr).
        handlers: pairs (ignite event, function of the engine) to add.

    Returns:
        The engine; `engine.state` tells epoch, iteration and lr.

    Raises:
        ValueError: no Hebbian layer, epochs below 1, or checkpoints of another training.
        FileExistsError: `folder` holds checkpoints and resume is False.
    """
    if epochs < 1:
        raise ValueError(f"hebbkern.training: epochs must be at least 1, got {epochs}")
    learning(model, lr)  # refuses a model or a rate that cannot learn before anything is written
    trainer = hebbian_trainer(model)
    schedule = PiecewiseLinearStateScheduler(milestones_values=[(1, lr), (epochs + 1, 0.0)], param_name="lr")
    first = Events.ITERATION_STARTED(event_filter=lambda engine, iteration: (iteration - 1) % len(batches) == 0)
    schedule.attach(trainer, first)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: batches.seek(engine.state.iteration))
    if folder is not None:
        saved = {"model": model, "trainer": trainer, "schedule": schedule}
        _keep_checkpoints(saved, Path(folder), resume, save_every, (epochs, len(batches)))
    for event, handler in handlers:
        trainer.add_event_handler(event, handler)
    if progress:
        bar = ProgressBar(persist=True, ncols=80, disable=None)  # None: only on a terminal
        bar.attach(trainer, event_name=Events.EPOCH_COMPLETED, closing_event_name=Events.COMPLETED)
    if trainer.state.iteration < epochs * len(batches):
        trainer.run(batches, max_epochs=epochs)
    return trainer


def last_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of the most iterations in `folder`, None if there is none."""
    found = [
        (int(match[1]), path) for path in Path(folder).glob("checkpoint_*.pt") if (match := _NAME.fullmatch(path.name))
    ]
    return max(found)[1] if found else None


class _Disk(DiskSaver):
    """A DiskSaver that does not mind when a checkpoint is gone already."""

    def remove(self, filename: str) -> None:
        Path(self.dirname, filename).unlink(missing_ok=True)


_NAME = re.compile(r"checkpoint_(\d+)\.pt")


def _keep_checkpoints(saved: dict, folder: Path, resume: bool, save_every: int | None, length) -> None:
    """Restores `saved` from the latest checkpoint if asked to, and writes it from now on."""
    trainer, latest = saved["trainer"], last_checkpoint(folder)
    if latest and not resume:
        raise FileExistsError(
            f"hebbkern.training: {folder} must hold no checkpoints unless resuming, got {latest.name}"
        )
    keeper = Checkpoint(
        saved,
        _Disk(folder, create_dir=True, require_empty=False),
        n_saved=2,  # the one before is removed only once the latest is complete
        global_step_transform=lambda engine, event: engine.state.iteration,
        include_self=True,
    )
    if latest:
        checkpoint = torch.load(latest, weights_only=True)
        before = checkpoint["trainer"]["max_epochs"], checkpoint["trainer"]["epoch_length"]
        if before != length:
            raise ValueError(
                f"hebbkern.training: a resumed training must have the epochs and batches an epoch of {latest.name}, "
                f"{before}, got {length}"
            )
        Checkpoint.load_objects({**saved, "checkpointer": keeper}, checkpoint)
    event = Events.EPOCH_COMPLETED
    if save_every is not None:
        event |= Events.ITERATION_COMPLETED(every=save_every)
    trainer.add_event_handler(event, keeper)
