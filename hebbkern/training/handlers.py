"""What a training shows of itself: figures beside the progress bar, pictures as PNG files and in TensorBoard.

    writer = torch.utils.tensorboard.SummaryWriter("run/tensorboard")
    handlers = [Figures(model), WeightPictures(model, folder="run/pictures", writer=writer, every=5)]
    hk.training.train(model, batches, lr=0.04, epochs=20, handlers=handlers)

Each handler has attach(engine), for any ignite engine that trains `model`; its layers are looked up then. All but
`Figures` draw after every `every` epochs and at the end, into `folder` (made if missing), `writer` (a SummaryWriter,
the epoch being its step), or both, and need matplotlib (pip install 'hebbkern[demo]'). Of several processes the first
draws. Nothing happens at a step, and no handler changes the training: the weights and all random states stay the same
bits. A picture takes some tenths of a second.

`Convergence` and `Curves` keep their points in a file beside the picture, <name>.json, from which they go on after a
training is resumed; the other pictures need no history.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hebbkern import plots
from hebbkern.evaluation.features import hebbian_layers, taps
from hebbkern.plots.files import figure
from hebbkern.training.statistics import activity, answers, lengths, wins

try:
    import ignite.distributed as idist
    from ignite.engine import Engine, Events
except ImportError as error:
    raise ImportError("hebbkern.training: pytorch-ignite is missing: pip install 'hebbkern[train]'") from error

SIZE = 100  # samples a forward pass
NUMBERS = 2**21  # activations that are looked at, of a layer


class Figures:
    """Writes "updates", "dead" and "change" to engine.state.metrics after every epoch, as numbers.

    updates: steps so far. dead: neurons (of those not frozen) whose weights are the same bits as when the epoch began.
    change: the mean absolute change of the weights of all neurons not frozen, over the epoch. Both are over all Hebbian
    layers that took a step in it; an epoch that is resumed begins there. Attach it before a progress bar that shows
    them: `ProgressBar().attach(engine, metric_names="all")`.

    Args:
        model: that the engine trains. writer: a SummaryWriter for the same numbers, or None.
    """

    def __init__(self, model: nn.Module, *, writer=None):
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
            if layer.weight._version == version:  # nobody wrote to it
                continue
            there = slice(min(len(before), len(layer.weight)))  # when the epoch began; others may have grown since
            moved = (layer.weight.detach()[there] - before[there])[~layer.frozen[there]].flatten(1)
            dead += int((moved == 0).all(1).sum())
            weights += moved.numel()
            change += moved.abs().sum(dtype=torch.float64).item()
        figures = {"updates": engine.state.iteration, "dead": dead, "change": change / max(weights, 1)}
        engine.state.metrics.update(figures)
        if self.writer is not None and idist.get_rank() == 0:
            for name, value in figures.items():
                self.writer.add_scalar(f"figures/{name}", value, engine.state.epoch)


class _Handler:
    """Calls draw(engine) after every `every` epochs and at the end, and knows where pictures go."""

    def __init__(self, folder: str | Path | None, writer, every: int):
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            self._refuse("every", "a whole number of at least 1", every)
        if folder is None and writer is None:
            self._refuse("folder or writer", "given", "neither")
        self.folder, self.writer, self.every = None if folder is None else Path(folder), writer, every

    def attach(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        figure(1, 1)  # where matplotlib is missing it is said now, not after an epoch
        self.prepare()
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.every), self.draw)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def prepare(self) -> None:
        """Looks at the model before the training."""

    def draw(self, engine: Engine) -> None:
        raise NotImplementedError

    def _finish(self, engine: Engine) -> None:
        if engine.state.epoch % self.every:
            self.draw(engine)

    def picture(self, name: str, tag: str, epoch: int, draw: Callable) -> None:
        """draw(file) as <name>.png in the folder, and under the tag in TensorBoard."""
        buffer = io.BytesIO()
        draw(buffer)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{name}.png").write_bytes(buffer.getvalue())
        if self.writer is not None:
            from PIL import Image

            pixels = np.asarray(Image.open(buffer).convert("RGB"))
            self.writer.add_image(tag, pixels, epoch, dataformats="HWC")

    def scalars(self, kind: str, values: dict[str, float], epoch: int) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{kind}/{name}", value, epoch)

    def _refuse(self, what: str, wanted: str, got) -> None:
        raise ValueError(f"hebbkern.{type(self).__name__}: {what} must be {wanted}, got {got}")


class _Layers(_Handler):
    """A handler that looks at all Hebbian layers of a model."""

    def __init__(self, model: nn.Module, *, folder: str | Path | None = None, writer=None, every: int = 1):
        super().__init__(folder, writer, every)
        self.model = model

    def prepare(self) -> None:
        self.layers = _layers(self.model)


class WeightPictures(_Layers):
    """Draws the incoming weights of a layer's neurons: weights_<layer>_<epoch>.png.

    Args:
        model, folder, writer, every: see above.
        shapes: {layer: shape of a tile}, of linear layers whose inputs are no square.
        neurons: at most so many are drawn, the first ones; None for all.
        looks: of `hebbkern.plots.weight_grid`: colours, channels, columns.
    """

    def __init__(
        self, model, *, shapes=None, neurons: int | None = 100, folder=None, writer=None, every: int = 1, **looks
    ):
        super().__init__(model, folder=folder, writer=writer, every=every)
        self.shapes, self.neurons, self.looks = shapes or {}, neurons, looks

    def draw(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        for name, layer in self.layers.items():
            looks = {"title": f"{name}, epoch {epoch}", "shape": self.shapes.get(name), **self.looks}
            draw = partial(plots.weight_grid, layer.weight[: self.neurons], **looks)
            self.picture(f"weights_{_file(name)}_{epoch:04d}", f"weights/{name}", epoch, draw)


class WeightHistograms(_Layers):
    """Draws how each layer's weights are distributed, and how they were before the training: histograms_<epoch>.png.

    TensorBoard gets its own histograms. What was before is what the model holds when the handler is attached.
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


class _OnImages(_Layers):
    """A handler that sends the same images through the model, which is in evaluation mode and learns nothing."""

    def __init__(
        self, model: nn.Module, images: Tensor, *, folder: str | Path | None = None, writer=None, every: int = 1
    ):
        super().__init__(model, folder=folder, writer=writer, every=every)
        if len(images) == 0:
            self._refuse("images", "at least one", "none")
        self.images = images

    def prepare(self) -> None:
        super().prepare()
        for _ in self.read(self.images[:1]):  # a layer that data does not reach is refused now
            pass

    def read(self, images: Tensor, inputs: bool = True):
        """Gives {layer: input, or output} of some images after others."""
        with taps(_uncompiled(self.model), self.layers, inputs=inputs) as read:
            for x in images.split(SIZE):
                yield read(x.float().div(255) if x.dtype == torch.uint8 else x)


class Winners(_OnImages):
    """Draws how often each neuron wins, the dead ones in red: winners_<epoch>.png; TensorBoard gets their share too.

    The share of all neurons that win nothing goes to engine.state.metrics["winless"].

    Args:
        model, folder, writer, every: see above.
        images: a fixed batch as the model takes it, best one that is not trained on; uint8 becomes 0 to 1. Winners
            are those of the rule, see `hebbkern.training.statistics.wins`.
    """

    def draw(self, engine: Engine) -> None:
        epoch, counts = engine.state.epoch, {}
        for inputs in self.read(self.images):
            for name, x in inputs.items():
                counts[name] = wins(self.layers[name], x) + counts.get(name, 0)
        self.picture(f"winners_{epoch:04d}", "winners", epoch, partial(plots.winners, counts, title=f"epoch {epoch}"))
        without = {name: int((won == 0).sum()) for name, won in counts.items()}
        engine.state.metrics["winless"] = sum(without.values()) / _neurons(self.layers)
        self.scalars("winless", {name: dead / len(counts[name]) for name, dead in without.items()}, epoch)


class Activations(_OnImages):
    """Draws how each layer's activations are spread and how sparse they are: activations_<epoch>.png.

    TensorBoard gets the mean, the share of silent neurons and the sparseness too. Of layers with more than NUMBERS
    activations on all images, evenly spaced patches count.

    Args:
        model, folder, writer, every: see above. images: as for `Winners`.
    """

    def draw(self, engine: Engine) -> None:
        epoch, rows = engine.state.epoch, {name: [] for name in self.layers}
        passes = -(-len(self.images) // SIZE)
        for outputs in self.read(self.images, inputs=False):
            for name, output in outputs.items():
                y = answers(self.layers[name], output)
                rows[name].append(y[:: -(-y.numel() * passes // NUMBERS)].cpu())
        told = {name: activity(torch.cat(parts)) for name, parts in rows.items()}
        draw = partial(plots.activations, told, title=f"epoch {epoch}")
        self.picture(f"activations_{epoch:04d}", "activations", epoch, draw)
        for kind in ("mean", "silent", "sparseness"):
            self.scalars(f"activations {kind}", {name: row[kind] for name, row in told.items()}, epoch)


class _History:
    """Points {name: [[epoch, value], ...]}, kept in a file, if there is one, that is whole whatever happens."""

    def __init__(self, path: Path | None):
        self.path, self.points = path, {}

    def start(self, engine: Engine) -> None:
        """Points of epochs that this training has behind it stay."""
        known = json.loads(self.path.read_text()) if self.path and self.path.is_file() else self.points
        self.points = {name: [p for p in points if p[0] <= engine.state.epoch] for name, points in known.items()}

    def add(self, epoch: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            points = self.points.setdefault(name, [])
            points[:] = [point for point in points if point[0] < epoch] + [[epoch, value]]
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_name(f".{self.path.name}.unfinished")
            beside.write_text(json.dumps(self.points))
            os.replace(beside, self.path)

    def drawn(self) -> dict[str, list]:
        return {name: points for name, points in self.points.items() if points}


class Convergence(_Layers):
    """Draws the share of each layer's neurons whose length is 1 within a tolerance, over epochs: convergence.png.

    Lengths are norms of the rule's own p for Krotov and Hopfield's, else of p = 2. Its points: convergence.json. The
    share of all neurons goes to engine.state.metrics["converged"].

    Args:
        model, folder, writer, every: see above. tolerance: at least 0; counts |length − 1| ≤ tolerance.
    """

    def __init__(self, model, tolerance: float = 0.1, *, folder=None, writer=None, every: int = 1):
        super().__init__(model, folder=folder, writer=writer, every=every)
        if not tolerance >= 0:
            self._refuse("tolerance", "at least 0", tolerance)
        self.tolerance, self.history = tolerance, _History(self.folder and self.folder / "convergence.json")

    def attach(self, engine: Engine) -> None:
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, self.history.start)

    def draw(self, engine: Engine) -> None:
        near = {name: (lengths(layer) - 1).abs() <= self.tolerance for name, layer in self.layers.items()}
        shares = {name: reached.double().mean().item() for name, reached in near.items()}
        reached = sum(int(part.sum()) for part in near.values())
        engine.state.metrics["converged"] = reached / _neurons(self.layers)
        self.history.add(engine.state.epoch, shares)
        if self.folder is not None:
            path = self.folder / "convergence.png"
            plots.convergence(self.history.drawn(), path, tolerance=self.tolerance)
        self.scalars("convergence", shares, engine.state.epoch)


class Curves(_Handler):
    """Draws numbers of engine.state.metrics over epochs: curves.png. Its points: curves.json.

        Curves("readout", "readout_train", folder="run/pictures")      # of HebbianEvaluator.attach

    Args:
        names: of metrics; those that are not there yet are left out. ylabel, best: of `plots.learning_curves`.
        folder, writer, every: see above. Attach it after what writes the metrics.
    """

    def __init__(self, *names: str, ylabel="accuracy", best="max", folder=None, writer=None, every: int = 1):
        super().__init__(folder, writer, every)
        if not names:
            self._refuse("names", "one metric or more", "none")
        self.names, self.looks = names, {"ylabel": ylabel, "best": best}
        self.history = _History(self.folder and self.folder / "curves.json")

    def attach(self, engine: Engine) -> None:
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, self.history.start)

    def draw(self, engine: Engine) -> None:
        metrics = engine.state.metrics
        values = {name: float(metrics[name]) for name in self.names if name in metrics}
        self.history.add(engine.state.epoch, values)
        if self.folder is not None and self.history.drawn():
            plots.learning_curves(self.history.drawn(), self.folder / "curves.png", **self.looks)
        self.scalars("curves", values, engine.state.epoch)


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return hebbian_layers(_uncompiled(model))


def _neurons(layers: dict[str, nn.Module]) -> int:
    return sum(len(layer.weight) for layer in layers.values())


def _uncompiled(model: nn.Module) -> nn.Module:
    return getattr(model, "_orig_mod", model)


def _file(name: str) -> str:
    """The name of a layer as part of a file's; a model that is a layer itself has none."""
    return name.replace("/", "_") or "model"
