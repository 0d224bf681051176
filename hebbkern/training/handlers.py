"""Handlers that show what a training learns: figures for the progress bar, pictures as PNG files and in TensorBoard.

    Figures(model).attach(trainer)                                 # before the progress bar, which shows them
    Winners(model, images).attach(trainer, folder="run/pictures", writer=tensorboard("run/tensorboard"), every=5)

Each reads the Hebbian layers of `model` after every `every`-th epoch, and after the last one; nothing is done in the
steps between, no random number is drawn and nothing of the model is touched: a training ends with the same bits
with them and without. Folder, writer and every may be given at construction or, which counts, to `attach`.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebbkern import ops, plots
from hebbkern.evaluation.taps import hebbian_layers, taps
from hebbkern.rules import WTA, KrotovHopfield

try:
    from ignite.engine import Engine, Events
except ImportError as error:
    raise ImportError("hebbkern.training: pytorch-ignite is missing: pip install 'hebbkern[train]'") from error

ENTRIES = 100_000  # of a layer's initial weights that are kept for its histogram
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def tensorboard(folder: str | Path):
    """A torch.utils.tensorboard.SummaryWriter into `folder`; close it at the end. ImportError says what to install."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("hebbkern.training: tensorboard is missing: pip install 'hebbkern[train]'") from error
    return SummaryWriter(str(folder))


class Handler:
    """What all share: when they are called, and where to.

    Args:
        model: holds at least one Hebbian layer, else ValueError.
        folder: for PNG files; each is overwritten by the next. writer: a SummaryWriter, steps are epochs.
        every: epochs between two calls.
    """

    def __init__(self, model: nn.Module, *, folder: str | Path | None = None, writer=None, every: int = 1):
        self.model, self.layers = model, hebbian_layers(model)
        self.folder, self.writer, self.every, self.shown = folder, writer, every, None

    def attach(self, engine: Engine, folder: str | Path | None = None, writer=None, every: int | None = None) -> None:
        """Adds itself to the engine. Arguments as of the class; what is None stays as it was given there."""
        every = self.every if every is None else every
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"hebbkern.training: every must be a whole number of at least 1, got {every}")
        self.folder = self.folder if folder is None else folder
        self.writer = self.writer if writer is None else writer
        self.every = every
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=every), self._once)
        engine.add_event_handler(Events.COMPLETED, self._once)

    def start(self, engine: Engine) -> None:
        """Before the first epoch."""

    def show(self, engine: Engine) -> None:
        """After an epoch."""
        raise NotImplementedError

    def _once(self, engine: Engine) -> None:
        if self.shown != engine.state.epoch and engine.state.epoch > 0:
            self.shown = engine.state.epoch
            self.show(engine)

    def picture(self, engine: Engine, name: str, draw, *what, **options) -> None:
        """Draws to folder/name.png and to the writer's images, whichever there is."""
        if self.folder is None and self.writer is None:
            return
        buffer = io.BytesIO()
        draw(*what, buffer, title=f"{name}, epoch {engine.state.epoch}", **options)
        if self.folder is not None:
            path = Path(self.folder, f"{name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
        if self.writer is not None:
            from PIL import Image

            pixels = np.array(Image.open(buffer).convert("RGB"))
            self.writer.add_image(name, pixels, engine.state.epoch, dataformats="HWC")

    def scalars(self, engine: Engine, name: str, values: dict[str, float]) -> None:
        """name/layer for each layer, into the writer if there is one."""
        if self.writer is not None:
            for layer, value in values.items():
                self.writer.add_scalar(f"{name}/{_title(layer)}", value, engine.state.epoch)


class Figures(Handler):
    """Writes three figures into `engine.state.metrics` at the end of each epoch, 0 before the first.

    "updates": batches learnt from since the beginning of the training. "dead": neurons that are not frozen and that no
    step of this epoch has moved; layers that did not learn in it (none of their neurons moved) count none. "change":
    the mean absolute change of a weight over the epoch, in the layers that learnt. The writer gets dead and change a
    layer. Takes one copy of the weights in memory. Epochs between two calls (every) are measured as one.
    """

    def start(self, engine: Engine) -> None:
        for name in ("updates", "dead", "change"):
            engine.state.metrics.setdefault(name, 0)
        self.before = self._weights()

    def show(self, engine: Engine) -> None:
        dead, change, moved, entries = {}, {}, 0.0, 0
        for name, weight in self._weights().items():
            still = (weight == self.before[name]).flatten(1).all(1)
            if not still.all():
                dead[name] = int((still & ~self.layers[name].frozen).sum())
                total = (weight.double() - self.before[name].double()).abs().sum().item()
                change[name], moved, entries = total / weight.numel(), moved + total, entries + weight.numel()
            self.before[name] = weight
        figures = {"updates": engine.state.iteration, "dead": sum(dead.values()), "change": moved / max(entries, 1)}
        engine.state.metrics.update(figures)
        self.scalars(engine, "dead", dead)
        self.scalars(engine, "change", change)

    def _weights(self) -> dict[str, Tensor]:
        return {name: layer.weight.detach().clone() for name, layer in self.layers.items()}


class WeightPictures(Handler):
    """Grids of the first `most` neurons of each layer, see `hebbkern.plots.weight_grid`.

    Args:
        shapes: {layer: shape of a tile}, for linear layers. most: neurons. grid: colours and channels of weight_grid.
    """

    def __init__(
        self, model: nn.Module, *, shapes: dict[str, tuple] | None = None, most: int = 100, grid=None, **where
    ):
        super().__init__(model, **where)
        self.shapes, self.most, self.grid = shapes or {}, most, grid or {}

    def show(self, engine: Engine) -> None:
        for name, layer in self.layers.items():
            options = {"shape": self.shapes.get(name), **self.grid}
            self.picture(engine, f"weights_{_title(name)}", plots.weight_grid, layer.weight[: self.most], **options)


class Convergence(Handler):
    """The share of each layer's neurons whose length is within `tolerance` of 1, over time.

    The length is the p-norm for Krotov and Hopfield's rule with exponent p (what its neurons tend to), else the
    Euclidean one. The mean over all neurons goes to `engine.state.metrics["converged"]`. `state_dict` and
    `load_state_dict` let ignite's Checkpoint keep the history.
    """

    def __init__(self, model: nn.Module, *, tolerance: float = 0.05, **where):
        super().__init__(model, **where)
        self.tolerance = tolerance
        self.history: dict[str, list[tuple[int, float]]] = {name: [] for name in self.layers}

    def show(self, engine: Engine) -> None:
        near = {name: self._near(layer) for name, layer in self.layers.items()}
        shares = {name: mask.double().mean().item() for name, mask in near.items()}
        engine.state.metrics["converged"] = torch.cat([mask.cpu() for mask in near.values()]).double().mean().item()
        for name, share in shares.items():
            self.history[name].append((engine.state.epoch, share))
        curves = {_title(name): points for name, points in self.history.items()}
        self.picture(engine, "convergence", plots.convergence, curves, tolerance=self.tolerance)
        self.scalars(engine, "converged", shares)

    def _near(self, layer: nn.Module) -> Tensor:
        p = layer.rule.p if isinstance(layer.rule, KrotovHopfield) else 2.0
        lengths = torch.linalg.vector_norm(layer.weight.detach().double().flatten(1), p, dim=1)
        return (lengths - 1).abs() <= self.tolerance

    def state_dict(self) -> dict:
        return {"history": {name: [list(point) for point in points] for name, points in self.history.items()}}

    def load_state_dict(self, state: dict) -> None:
        self.history = {name: [tuple(point) for point in points] for name, points in state["history"].items()}


class WeightHistograms(Handler):
    """Histograms of each layer's weights, in the picture beside those at the start of the run."""

    def start(self, engine: Engine) -> None:
        flat = {_title(name): layer.weight.detach().flatten() for name, layer in self.layers.items()}
        self.before = {name: entries[:: -(-len(entries) // ENTRIES)].clone() for name, entries in flat.items()}

    def show(self, engine: Engine) -> None:
        weights = {_title(name): layer.weight.detach().float() for name, layer in self.layers.items()}
        self.picture(engine, "histograms", plots.weight_histograms, weights, before=self.before)
        if self.writer is not None:
            for name, weight in weights.items():
                self.writer.add_histogram(f"weights/{name}", weight.cpu(), engine.state.epoch)


class Winners(Handler):
    """How many patches of a fixed batch each neuron wins, and how many neurons win none (dead units).

    The winner is that of the layer's own rule: its similarity and its patches; for rules that teach every neuron, and
    for Teacher, the largest response w·x. Frozen neurons compete. The share of dead units of all neurons goes to
    `engine.state.metrics["winless"]`, their number in each layer to the writer.

    Args:
        sample: held-out batch of inputs of the model.
    """

    def __init__(self, model: nn.Module, sample: Tensor, **where):
        super().__init__(model, **where)
        self.sample = sample

    def show(self, engine: Engine) -> None:
        with taps(self.model, self.layers, inputs=True) as read:
            inputs = read(self.sample)
        counts = {name: wins(self.layers[name], x) for name, x in inputs.items()}
        counts = {name: counts[name] for name in self.layers}
        dead = {name: int((count == 0).sum()) for name, count in counts.items()}
        engine.state.metrics["winless"] = sum(dead.values()) / sum(map(len, counts.values()))
        self.picture(engine, "winners", plots.winners, {_title(name): count for name, count in counts.items()})
        self.scalars(engine, "winless", dead)


class Activations(Handler):
    """Statistics of what layers put out on a fixed batch, see `activity`.

    Args:
        sample: held-out batch of inputs of the model.
        names: of any modules of the model, e.g. those behind the nonlinearity; None = the Hebbian layers.
    """

    def __init__(self, model: nn.Module, sample: Tensor, names: list[str] | None = None, **where):
        super().__init__(model, **where)
        self.sample, self.names = sample, list(self.layers) if names is None else list(names)

    def show(self, engine: Engine) -> None:
        with taps(self.model, self.names, keep=activity) as read:
            seen = read(self.sample)
        seen = {_title(name): seen[name] for name in self.names}
        self.picture(engine, "activations", plots.activations, seen)
        for figure in ("mean", "std", "inactive", "silent", "sparseness"):
            self.scalars(engine, figure, {name: row[figure] for name, row in seen.items()})


@torch.no_grad()
def wins(layer: nn.Module, x: Tensor) -> Tensor:
    """int64 [K]: of how many patches of x, the layer's input, each neuron is the winner under the layer's rule."""
    rule, weight, how = layer.rule, layer.weight.detach(), {"patches": layer.rule.patches}
    if isinstance(rule, KrotovHopfield):
        how["p"] = rule.p
    elif isinstance(rule, WTA):
        how["cosine"] = rule.similarity == "cosine"
    x = x.to(weight.dtype)
    if isinstance(layer, nn.Conv2d):
        x = x if x.dim() == 4 else x.unsqueeze(0)
        padding = layer.padding
        if isinstance(padding, str) or layer.padding_mode != "zeros":
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode), 0
        how |= {"stride": layer.stride, "padding": padding, "dilation": layer.dilation}
    else:
        x = x.reshape(-1, x.shape[-1])
    winners, _ = ops.compete(x, weight, **how)
    return torch.bincount(winners.flatten().long(), minlength=len(weight))


def activity(output: Tensor) -> dict[str, float]:
    """Statistics of a layer's output: [B, K], maps [B, K, H, W], or sequences [B, ..., K].

    "mean", "std", quantiles "q05", "q25", "q50", "q75", "q95" (of at most 2^20 evenly spaced entries); "inactive", the
    share at most 0; "silent", the share of neurons never above 0; "sparseness", 1 − mean(r)² / mean(r²) of r = max(0,
    activation), 0 where all are alike and near 1 where few are active (Treves and Rolls 1991), 1 where all are silent.
    """
    output = output.detach().float()
    axis = 1 if output.dim() == 4 else output.dim() - 1
    entries, active = output.flatten(), output.relu().double()
    quantiles = entries[:: -(-len(entries) // 2**20)].quantile(torch.tensor(QUANTILES, device=output.device))
    silent = (output.movedim(axis, 0).flatten(1) <= 0).all(1)
    power = active.square().mean().item()
    return {
        "mean": entries.double().mean().item(),
        "std": entries.double().std(correction=0).item(),
        **{f"q{100 * q:02.0f}": value for q, value in zip(QUANTILES, quantiles.tolist(), strict=True)},
        "inactive": (entries <= 0).double().mean().item(),
        "silent": silent.double().mean().item(),
        "sparseness": 1 - active.mean().item() ** 2 / power if power else 1.0,
    }


def _title(name: str) -> str:
    return name or "model"
