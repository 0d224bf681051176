"""The folder that a run leaves: config.yaml, metrics.jsonl, report.json, beside pictures and checkpoints.

One folder is one run: `check` refuses the folder of another, and an interrupted run goes on in its own.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

from ignite.engine import Events

from hebbkern.training import config as fields
from hebbkern.training.checkpoint import last_checkpoint
from hebbkern.training.config import Config


def check(config: Config) -> None:
    """Refuses a folder with checkpoints unless resuming, and of a run with other settings; nothing is written.

    Raises ValueError that names every setting that differs, FileExistsError for checkpoints where none should be.
    """
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"hebbkern.training: out must be a folder, got {out}, a file")
    saved, latest = out / "config.yaml", last_checkpoint(out)
    if latest and not saved.is_file():
        raise ValueError(
            f"hebbkern.training: out must be the folder of a run, {out} has checkpoints but no config.yaml"
        )
    if latest and (changed := fields.differences(config, fields.load(saved))):
        raise ValueError(
            f"hebbkern.training: out must be the folder of this run, {out} differs in {', '.join(changed)}"
        )
    if latest and not config.resume:
        raise FileExistsError(
            f"hebbkern.training: out must hold no checkpoints unless resuming, {out} has {latest.name}"
        )


class Metrics:
    """An ignite handler that writes a line of JSON after each epoch.

    epoch, iteration, lr, layer (the one that learns, where it is one at a time), seconds, what engine.state.metrics got
    in this epoch, and where a classifier is trained `loss`, its mean over the epoch. Lines of epochs after the
    checkpoint from which a run goes on are removed, so that each epoch has one line. What is not finite is null.

    Args:
        path: of the file. measure: gives more values at the end of an epoch in which a classifier was trained.
        writer: a SummaryWriter that gets the numbers too, or None.
    """

    def __init__(self, path: Path, measure=dict, writer=None):
        self.path, self.measure, self.writer = path, measure, writer

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def start(self, engine) -> None:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if _iteration(line) <= engine.state.iteration]
        beside = self.path.with_name(f".{self.path.name}.unfinished")
        beside.write_text("".join(f"{line}\n" for line in kept))
        os.replace(beside, self.path)

    def start_epoch(self, engine) -> None:
        self.began, self.losses, self.loss = time.perf_counter(), 0, 0.0
        engine.state.metrics.clear()  # those that are not measured in each epoch

    def add(self, engine) -> None:
        if isinstance(engine.state.output, dict):
            self.loss = self.loss + engine.state.output["loss"]  # stays on the device until the epoch ends
            self.losses += 1

    def write(self, engine) -> None:
        state = engine.state
        line = {"epoch": state.epoch, "iteration": state.iteration, "lr": state.lr}
        line |= {"layer": state.layer} if state.layer else {}
        line |= {"seconds": time.perf_counter() - self.began}
        line |= {"loss": float(self.loss) / self.losses} if self.losses else {}
        line |= {**state.metrics, **(self.measure() if self.losses else {})}
        with open(self.path, "a") as file:
            file.write(json.dumps(finite(line), allow_nan=False) + "\n")
        if self.writer is not None:
            for name, value in line.items():
                if isinstance(value, int | float) and name not in ("epoch", "iteration"):
                    self.writer.add_scalar(name, value, state.epoch)


def finite(value):
    """`value` as JSON can hold it: tensors as numbers, what is not finite as None."""
    if isinstance(value, dict):
        return {str(name): finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _iteration(line: str) -> float:
    """Of a line; a torn one is of no epoch."""
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return math.inf
