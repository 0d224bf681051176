"""Handlers that show a training: numbers for the progress bar, pictures as PNG files and in TensorBoard.

    writer = torch.utils.tensorboard.SummaryWriter("run/tensorboard")
    handlers = [Figures(model), WeightPictures(model, folder="run/pictures", writer=writer, every=5)]
    hk.training.train(model, batches, lr=0.04, epochs=20, handlers=handlers)

Each handler has attach(engine), for any ignite engine that trains `model`. All except `Figures` draw after every
`every` epochs and at the end, into `folder` (made if missing), `writer` (a SummaryWriter, with the epoch as its step),
or both, and need matplotlib (pip install 'hebbkern[demo]'). Of several processes the first one draws. Handlers do
nothing at a step and do not change the training: weights and random states keep their bits. A picture takes some
tenths of a second. `Convergence` and `Curves` keep their points in a file beside the picture, <name>.json, from which
they continue when a training is resumed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hebbkern import files, plots
from hebbkern.evaluation.features import taps
from hebbkern.evaluation.measures import activity, answers, lengths, wins
from hebbkern.nn.learning import check_any, hebbian_layers
from hebbkern.nn.wrappers import unwrapped
from hebbkern.plots.files import figure

try:
    import ignite.distributed as idist
    from ignite.engine import Engine, Events
except ImportError as error:
    raise ImportError("hebbkern.training: pytorch-ignite is missing: pip install 'hebbkern[train]'") from error

BATCH_SIZE = 100  # samples a forward pass
NUMBERS = 2**21  # the most activations of a layer that statistics are computed from


class Figures:
    """Writes "updates", "dead" and "change" to engine.state.metrics after every epoch.

    updates: steps so far. dead: neurons, without frozen ones, whose weights have the same bits as at the start of the
    epoch. change: the mean absolute change of the weights of all neurons that are not frozen, over the epoch. dead and
    change are over all Hebbian layers that took a step in the epoch; a resumed epoch starts where it is resumed. Attach
    it before a progress bar that shows the numbers: `ProgressBar().attach(engine, metric_names="all")`.

    Args:
        model: the model that the engine trains.
        writer: a SummaryWriter for the same numbers, or None.
    """

    def __init__(self, model: nn.Module, *, writer: Any = None):
        self.model, self.writer = model, writer

    def attach(self, engine: Engine) -> None:
        self.layers = list(_layers(self.model).values())
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._measure)

    def _begin(self, engine: Engine) -> None:
        self.before = [(layer.weight._version, layer.weight.detach().clone()) for layer in self.layers]

    def _measure(self, engine: Engine) -> None:
        dead = weights = 0
        change = 0.0
        for layer, (version, before) in zip(self.layers, self.before, strict=True):
            if layer.weight._version == version:  # the layer took no step
                continue
            old = slice(min(len(before), len(layer.weight)))  # without neurons that were added in the epoch
            moved = (layer.weight.detach()[old] - before[old])[~layer.frozen[old]].flatten(1)
            dead += int((moved == 0).all(1).sum())
            weights += moved.numel()
            change += moved.abs().sum(dtype=torch.float64).item()
        metrics = {"updates": engine.state.iteration, "dead": dead, "change": change / max(weights, 1)}
        engine.state.metrics.update(metrics)
        if self.writer is not None and idist.get_rank() == 0:
            for name, value in metrics.items():
                self.writer.add_scalar(f"figures/{name}", value, engine.state.epoch)


class _Handler:
    """Calls draw(engine) after every `every` epochs and at the end, and writes pictures and numbers."""

    history: _History | None = None

    def __init__(self, *, folder: str | Path | None = None, writer: Any = None, every: int = 1):
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            self._refuse("every", "a whole number of at least 1", every)
        if folder is None and writer is None:
            self._refuse("folder or writer", "given", "neither")
        self.folder, self.writer, self.every = None if folder is None else Path(folder), writer, every

    def attach(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        figure(1, 1)  # raises now if matplotlib is missing, not after an epoch
        self.prepare()
        if self.history is not None:
            engine.add_event_handler(Events.STARTED, self.history.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.every), self.draw)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def prepare(self) -> None:
        """Reads the model before the training."""

    def draw(self, engine: Engine) -> None:
        raise NotImplementedError

    def _finish(self, engine: Engine) -> None:
        if engine.state.epoch % self.every:
            self.draw(engine)

    def _picture(self, name: str, tag: str, epoch: int, draw: Callable[[io.BytesIO], object]) -> None:
        """Writes draw(file) as <name>.png in the folder, and under the tag in TensorBoard."""
        buffer = io.BytesIO()
        draw(buffer)
        if self.folder is not None:
            files.write(self.folder / f"{name}.png", buffer.getvalue())
        if self.writer is not None:
            from PIL import Image

            pixels = np.asarray(Image.open(buffer).convert("RGB"))
            self.writer.add_image(tag, pixels, epoch, dataformats="HWC")

    def _scalars(self, kind: str, values: dict[str, float], epoch: int) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{kind}/{name}", value, epoch)

    def _refuse(self, name: str, wanted: str, got: object) -> None:
        raise ValueError(f"hebbkern.{type(self).__name__}: {name} must be {wanted}, got {got}")


class _OfLayers(_Handler):
    """A handler that shows all Hebbian layers of a model."""

    def __init__(self, model: nn.Module, **places: Any):
        super().__init__(**places)
        self.model = model

    def prepare(self) -> None:
        self.layers = _layers(self.model)


class WeightPictures(_OfLayers):
    """Draws the incoming weights of a layer's neurons: weights_<layer>_<epoch>.png.

    Args:
        model, folder, writer, every: see the module's docstring.
        shapes: {layer: shape of a tile}, of linear layers whose inputs do not form a square.
        neurons: the number of neurons to draw, the first ones; None for all.
        style: of `hebbkern.plots.weight_grid`: colours, channels, columns, title.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        shapes: dict[str, tuple[int, ...]] | None = None,
        neurons: int | None = 100,
        folder: str | Path | None = None,
        writer: Any = None,
        every: int = 1,
        **style: Any,
    ):
        super().__init__(model, folder=folder, writer=writer, every=every)
        self.shapes, self.neurons, self.style = shapes or {}, neurons, style

    def draw(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        for name, layer in self.layers.items():
            style = {"title": f"{name}, epoch {epoch}", "shape": self.shapes.get(name), **self.style}
            file = name.replace("/", "_") or "model"  # a model that is a layer itself has no name
            draw = partial(plots.weight_grid, layer.weight[: self.neurons], **style)
            self._picture(f"weights_{file}_{epoch:04d}", f"weights/{name}", epoch, draw)


class WeightHistograms(_OfLayers):
    """Draws the distribution of each layer's weights, now and before the training: histograms_<epoch>.png.

    "Before" is when the handler is attached. TensorBoard gets its own histograms.
    """

    def prepare(self) -> None:
        super().prepare()
        self.before = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}

    def draw(self, engine: Engine) -> None:
        epoch, weights = engine.state.epoch, {name: layer.weight.detach() for name, layer in self.layers.items()}
        if self.folder is not None:
            path = self.folder / f"histograms_{epoch:04d}.png"
            plots.weight_histograms(weights, path, before=self.before, title=f"epoch {epoch}")
        if self.writer is not None:
            for name, weight in weights.items():
                self.writer.add_histogram(f"weights/{name}", weight.float(), epoch)


class _OnImages(_OfLayers):
    """A handler that passes the same images through the model, in evaluation mode and without learning."""

    def __init__(self, model: nn.Module, images: Tensor, **places: Any):
        super().__init__(model, **places)
        if len(images) == 0:
            self._refuse("images", "at least one", "none")
        self.images = images

    def prepare(self) -> None:
        super().prepare()
        for _ in self.read(self.images[:1]):  # raises now if the data does not reach a layer
            pass

    def read(self, images: Tensor, inputs: bool = True) -> Iterator[dict[str, Tensor]]:
        """Yields {layer: its inputs, or outputs} for one batch of images after the other."""
        with taps(unwrapped(self.model), self.layers, inputs=inputs) as read:
            for x in images.split(BATCH_SIZE):
                yield read(x.float().div(255) if x.dtype == torch.uint8 else x)


class Winners(_OnImages):
    """Draws how often each neuron wins, neurons without a win in red: winners_<epoch>.png.

    The share of all neurons without a win goes to engine.state.metrics["winless"], that of each layer to TensorBoard.

    Args:
        model, folder, writer, every: see the module's docstring.
        images: a fixed batch as the model takes it, best of held-out images; uint8 becomes 0 to 1. see
            `hebbkern.evaluation.measures.wins`.
    """

    def draw(self, engine: Engine) -> None:
        epoch, counts = engine.state.epoch, {}
        for inputs in self.read(self.images):
            for name, x in inputs.items():
                counts[name] = wins(self.layers[name], x) + counts.get(name, 0)
        self._picture(f"winners_{epoch:04d}", "winners", epoch, partial(plots.winners, counts, title=f"epoch {epoch}"))
        winless = {name: int((count == 0).sum()) for name, count in counts.items()}
        engine.state.metrics["winless"] = sum(winless.values()) / _neurons(self.layers)
        self._scalars("winless", {name: number / len(counts[name]) for name, number in winless.items()}, epoch)


class Activations(_OnImages):
    """Draws the distribution and the sparseness of each layer's activations: activations_<epoch>.png.

    TensorBoard gets the mean, the share of silent neurons and the sparseness too. Of layers with more than NUMBERS
    activations on all images, evenly spaced patches are used.

    Args:
        model, folder, writer, every: see the module's docstring.
        images: as for `Winners`.
    """

    def draw(self, engine: Engine) -> None:
        epoch, rows = engine.state.epoch, {name: [] for name in self.layers}
        passes = -(-len(self.images) // BATCH_SIZE)
        for outputs in self.read(self.images, inputs=False):
            for name, output in outputs.items():
                y = answers(self.layers[name], output)
                rows[name].append(y[:: -(-y.numel() * passes // NUMBERS)].cpu())
        statistics = {name: activity(torch.cat(parts)) for name, parts in rows.items()}
        draw = partial(plots.activations, statistics, title=f"epoch {epoch}")
        self._picture(f"activations_{epoch:04d}", "activations", epoch, draw)
        for kind in ("mean", "silent", "sparseness"):
            self._scalars(f"activations {kind}", {name: row[kind] for name, row in statistics.items()}, epoch)


class _History:
    """Points {name: [[epoch, value], ...]}, kept in a file if there is a folder; the file is always whole."""

    def __init__(self, folder: Path | None, name: str):
        self.path, self.points = None if folder is None else folder / name, {}

    def start(self, engine: Engine) -> None:
        """Keeps the points of epochs that this training has completed."""
        known = json.loads(self.path.read_text()) if self.path and self.path.is_file() else self.points
        self.points = {name: [p for p in points if p[0] <= engine.state.epoch] for name, points in known.items()}

    def add(self, epoch: int, values: dict[str, float]) -> dict[str, list]:
        """Adds one point to each curve, and returns the curves that have points."""
        for name, value in values.items():
            points = self.points.setdefault(name, [])
            points[:] = [point for point in points if point[0] < epoch] + [[epoch, value]]
        if self.path is not None:
            files.write(self.path, json.dumps(self.points))
        return {name: points for name, points in self.points.items() if points}


class Convergence(_OfLayers):
    """Draws the share of each layer's neurons whose length is 1 within a tolerance, over epochs: convergence.png.

    Lengths are norms with the rule's own p for Krotov and Hopfield's rule, else with p = 2. Points are kept in
    convergence.json. The share of all neurons goes to engine.state.metrics["converged"].

    Args:
        model, folder, writer, every: see the module's docstring.
        tolerance: at least 0; a neuron counts if |length − 1| ≤ tolerance.
    """

    def __init__(self, model: nn.Module, tolerance: float = 0.1, **places: Any):
        super().__init__(model, **places)
        if not tolerance >= 0:
            self._refuse("tolerance", "at least 0", tolerance)
        self.tolerance = tolerance
        self.history: _History = _History(self.folder, "convergence.json")

    def draw(self, engine: Engine) -> None:
        near = {name: (lengths(layer) - 1).abs() <= self.tolerance for name, layer in self.layers.items()}
        shares = {name: converged.double().mean().item() for name, converged in near.items()}
        engine.state.metrics["converged"] = sum(int(part.sum()) for part in near.values()) / _neurons(self.layers)
        curves = self.history.add(engine.state.epoch, shares)
        if self.folder is not None:
            plots.convergence(curves, self.folder / "convergence.png", tolerance=self.tolerance)
        self._scalars("convergence", shares, engine.state.epoch)


class Curves(_Handler):
    """Draws numbers of engine.state.metrics over epochs: curves.png. Points are kept in curves.json.

        Curves("readout", "readout_train", folder="run/pictures")      # of HebbianEvaluator.attach

    Attach it after the handlers that write the metrics.

    Args:
        names: of metrics; metrics that do not exist yet are left out.
        ylabel, best: of `plots.learning_curves`.
        folder, writer, every: see the module's docstring.
    """

    def __init__(self, *names: str, ylabel: str = "accuracy", best: str | None = "max", **places: Any):
        super().__init__(**places)
        if not names:
            self._refuse("names", "one metric or more", "none")
        self.names, self.ylabel, self.best = names, ylabel, best
        self.history: _History = _History(self.folder, "curves.json")

    def draw(self, engine: Engine) -> None:
        metrics = engine.state.metrics
        values = {name: float(metrics[name]) for name in self.names if name in metrics}
        curves = self.history.add(engine.state.epoch, values)
        if self.folder is not None and curves:
            plots.learning_curves(curves, self.folder / "curves.png", ylabel=self.ylabel, best=self.best)
        self._scalars("curves", values, engine.state.epoch)


def _layers(model: nn.Module) -> dict[str, Any]:
    layers = hebbian_layers(model)
    check_any("training", model, layers)
    return layers


def _neurons(layers: dict[str, Any]) -> int:
    return sum(len(layer.weight) for layer in layers.values())
