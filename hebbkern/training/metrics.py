"""metrics.jsonl of a run folder: one line of JSON after each epoch."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from hebbkern import files


class Metrics:
    """An ignite handler that writes one line of JSON after each epoch.

    A line has epoch, iteration, lr, layer (if one layer learns at a time), seconds, the engine.state.metrics of this
    epoch, and the mean `loss` over the epoch if a classifier is trained. Lines of epochs after the checkpoint from
    which a run continues are removed, so that each epoch has one line. Numbers that are not finite become null.

    Args:
        path: of the file.
        measure: returns more values at the end of an epoch in which a classifier was trained.
        writer: a SummaryWriter for the numbers, or None.
    """

    def __init__(self, path: Path, measure: Callable[[], dict[str, Any]] = dict, writer: Any = None):
        self.path, self.measure, self.writer = path, measure, writer

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.lines = [line for line in lines if _iteration(line) <= engine.state.iteration]
        self.save()

    def start_epoch(self, engine: Engine) -> None:
        self.began, self.trained = time.perf_counter(), False
        engine.state.metrics.clear()  # some are not measured in each epoch

    def add(self, engine: Engine) -> None:
        self.trained |= isinstance(engine.state.output, dict)

    def write(self, engine: Engine) -> None:
        state: Any = engine.state
        line: dict[str, Any] = {"epoch": state.epoch, "iteration": state.iteration, "lr": state.lr}
        line |= {"layer": state.layer} if state.layer else {}
        line |= {"seconds": time.perf_counter() - self.began}
        line |= {"loss": state.loss["mean"]} if state.loss["batches"] else {}
        line |= {**state.metrics, **(self.measure() if self.trained else {})}
        self.lines.append(json.dumps(as_json(line), allow_nan=False))
        self.save()
        if self.writer is not None:
            for name, value in line.items():
                if isinstance(value, int | float) and name not in ("epoch", "iteration"):
                    self.writer.add_scalar(name, value, state.epoch)

    def save(self) -> None:
        files.write(self.path, "".join(f"{line}\n" for line in self.lines))


def as_json(value: Any) -> Any:
    """Converts tensors to numbers, numbers that are not finite to None, and keys to strings."""
    if isinstance(value, dict):
        return {str(name): as_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    if hasattr(value, "tolist"):
        return as_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _iteration(line: str) -> float:
    """The iteration of a line of metrics; infinity for a torn line."""
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return math.inf
