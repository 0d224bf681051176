"""HebbianEvaluator: trains a readout by backpropagation on a layer's frozen features, then tests it.

    score = HebbianEvaluator(model, until="features").run((x, y), (x_test, y_test))
    HebbianEvaluator(model).attach(trainer, train=(x, y), validation=(x_val, y_val), every=5)

After PyTorch-Hebbian, section 4.2 and section 2.2 of its supplement: Adam, cross-entropy, a rate lowered on plateaus,
early stopping. Built from ignite's supervised trainer and evaluator (pip install 'hebbkern[train]').
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from hebbkern.evaluation.data import MEMORY, Store, batches, is_pair, storage
from hebbkern.evaluation.taps import device_of, taps

try:
    from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.handlers import EarlyStopping, ReduceLROnPlateauScheduler
    from ignite.metrics import Accuracy, Loss
except ImportError as error:
    raise ImportError("hebbkern.evaluation: pytorch-ignite is missing: pip install 'hebbkern[train]'") from error

PLATEAU = {"factor": 0.2, "patience": 3}  # of the rate
GAIN = 1e-4  # of the held-out loss, below which nothing was gained


@dataclass(frozen=True)
class Score:
    """Accuracies in [0, 1]: on what the head was fitted to, on what was held out of it, on the test set.

    epochs: how many were run. features: numbers a sample. cached: "float32", "bfloat16" or "no". history: for each
    epoch the held-out "accuracy" and "loss", and the rate "lr".
    """

    train: float
    held_out: float
    test: float
    epochs: int
    features: int
    cached: str
    history: tuple[dict[str, float], ...]


class HebbianEvaluator:
    """Trains a head on the frozen features that `model` has up to a layer, and measures it on a test set.

    Features are computed once, in evaluation mode, and kept: as float32 where those of the training set fit into
    `memory` bytes, else as bfloat16 (which the head reads as float32) where those do, else not at all: then each batch
    of each epoch passes through the model anew, for which train must be a pair of tensors. Test features are never
    kept.

    A seeded part of the training set is held out: its loss lowers the rate (by PLATEAU after so many epochs without
    gain), ends the training, and chooses the epoch whose head is kept. The test set is read once, at the end.

    Args:
        model: any module; left exactly as it was (modes, gradients, hooks, buffers).
        until: name of the layer whose output is read, as in `model.named_modules()`; None = the model's output.
        head: module from features (float32) to class scores. Each run starts from a copy of it; it may hold lazy
            modules. None = flatten, standardise (batch normalisation without parameters) and one linear layer.
        transform: fixed function of the features, taken before they are kept, e.g. a power and a pooling.
        lr, size, epochs: of Adam; samples a batch; the most epochs. The defaults are the paper's.
        held_out: share of the training set. patience: epochs without a gain before it ends.
        seed: of the split, the order, the head's weights. memory: bytes.

    Attributes:
        head: after a run, the trained head (None before).

    Deterministic for a seed, on the same number of threads; torch's global random state is neither read nor moved.
    """

    def __init__(
        self,
        model: nn.Module,
        until: str | None = None,
        *,
        head: nn.Module | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        lr: float = 1e-3,
        size: int = 256,
        epochs: int = 100,
        held_out: float = 0.1,
        patience: int = 10,
        seed: int = 0,
        memory: int = MEMORY,
    ):
        if not 0 < held_out < 1:
            raise ValueError(f"hebbkern.HebbianEvaluator: held_out must be between 0 and 1, got {held_out}")
        for name, value in (("size", size), ("epochs", epochs), ("patience", patience)):
            if value < 1:
                raise ValueError(f"hebbkern.HebbianEvaluator: {name} must be at least 1, got {value}")
        self.model, self.until, self.given, self.transform = model, until or "", head, transform
        self.lr, self.size, self.epochs, self.held_out, self.patience = lr, size, epochs, held_out, patience
        self.seed, self.memory, self.head = seed, memory, None

    def run(self, train, test) -> Score:
        """Trains the head on `train` and measures it on `test`, which decides nothing.

        Args:
            train, test: pairs of tensors (x, labels), or batches of such (see `hebbkern.evaluation.data`).

        Raises:
            ValueError: no such layer, labels that do not fit, fewer than two samples, batches whose features do not
                fit into memory.
        """
        with taps(self.model, [self.until], keep=self._keep) as read, torch.enable_grad():
            torch.manual_seed(self.seed)  # of the stream that taps has forked
            data = self._features(train, lambda x: read(x)[self.until])
            if len(data) < 2:
                raise ValueError(f"hebbkern.HebbianEvaluator: train must hold two samples or more, got {len(data)}")
            order = torch.randperm(len(data))
            held_out = min(max(1, round(self.held_out * len(data))), len(data) - 1)
            check, fit = _Part(data, order[:held_out]), _Part(data, order[held_out:])
            self.head = self._head(data)
            evaluate, history = self._fit(fit, check)
            best = evaluate(self._loader(check))["accuracy"]
            train_accuracy = evaluate(self._loader(fit))["accuracy"]
            stream = ((read(x)[self.until], y.to(device_of(self.model))) for x, y in batches(test, self.size))
            test_accuracy = evaluate(stream)["accuracy"]
            features = data[torch.tensor([0])][0].numel()
        return Score(train_accuracy, best, test_accuracy, len(history), features, data.cached, tuple(history))

    def attach(self, engine, event=None, *, train, validation, every: int = 1, name: str = "readout"):
        """Runs after every `every` epochs of a trainer, the head anew each time.

        Writes the accuracy on `validation` to `engine.state.metrics[name]`, that on `train` to [name + "_train"].

        Args:
            engine: any ignite engine. event: an ignite event instead of EPOCH_COMPLETED(every=every).
            train, validation: as of `run`. Give validation data here, not the test set that is reported at the end.

        Returns:
            ignite's handle, with .remove().
        """

        def measure(engine):
            score = self.run(train, validation)
            engine.state.metrics[name], engine.state.metrics[name + "_train"] = score.test, score.train

        return engine.add_event_handler(event or Events.EPOCH_COMPLETED(every=every), measure)

    def _keep(self, output: Tensor) -> Tensor:
        output = output.float()
        return (output if self.transform is None else self.transform(output)).clone()

    def _features(self, source, read) -> _Features:
        """Of a training set: kept if they fit, else to be computed anew."""
        count = len(source[1]) if is_pair(source) else None
        store = Store(self.memory, count)
        for x, labels in batches(source, self.size):
            features = read(x)
            labels = labels.to(features.device)
            if count and storage(count * features[0].numel(), self.memory) is None:
                return _Features(source[0], source[1].long().to(features.device), read)
            store.add({"": features}, labels)
        kept, labels = store.take()
        return _Features(kept[""], labels, None)

    def _head(self, data: _Features) -> nn.Module:
        x, _ = data[torch.tensor([0])]
        if self.given is not None:
            head = copy.deepcopy(self.given).to(x.device).eval()
            with torch.no_grad():
                head(x)  # gives lazy modules their shapes
            return head
        inputs, classes = x.numel(), int(data.labels.max()) + 1
        standardise = nn.BatchNorm1d(inputs, affine=False)
        return nn.Sequential(nn.Flatten(), standardise, nn.Linear(inputs, classes)).to(x.device)

    def _loader(self, part: _Part, shuffled: bool = False) -> DataLoader:
        """Whole batches of a part, taken by one index; shuffled ones leave out what does not fill a batch."""
        sampler = RandomSampler(part) if shuffled else SequentialSampler(part)
        return DataLoader(part, None, sampler=BatchSampler(sampler, self.size, shuffled and len(part) >= self.size))

    def _fit(self, fit: _Part, check: _Part):
        """Trains self.head; gives a function from batches to metrics, and the history."""
        optimiser = torch.optim.Adam([p for p in self.head.parameters() if p.requires_grad], lr=self.lr)
        device = device_of(self.model)
        trainer = _quiet(create_supervised_trainer(self.head, optimiser, F.cross_entropy, device=device))
        checker, evaluator = (_evaluator(self.head, device) for _ in range(2))
        stop = _quiet(EarlyStopping(self.patience, lambda e: e.state.metrics["loss"], trainer, GAIN, mode="min"))
        plateau = ReduceLROnPlateauScheduler(optimiser, "loss", threshold=GAIN, threshold_mode="abs", **PLATEAU)
        history, best = [], {"loss": float("inf")}

        def note(engine):
            history.append({**engine.state.metrics, "lr": optimiser.param_groups[0]["lr"]})
            if history[-1]["loss"] < best["loss"]:
                best.update(loss=history[-1]["loss"], head=copy.deepcopy(self.head.state_dict()))

        for handler in (note, plateau, stop):
            checker.add_event_handler(Events.COMPLETED, handler)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: checker.run(self._loader(check)))
        trainer.run(self._loader(fit, shuffled=True), max_epochs=self.epochs)
        if "head" in best:
            self.head.load_state_dict(best["head"])
        return (lambda data: evaluator.run(data).metrics), history


class _Features(Dataset):
    """Features by index, as float32: kept ones, or those of samples that `read` passes through the model."""

    def __init__(self, x: Tensor, labels: Tensor, read):
        self.x, self.labels, self.read = x, labels, read
        self.cached = "no" if read else str(x.dtype).removeprefix("torch.")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        x = self.x[index.to(self.x.device)]
        return (self.read(x) if self.read else x).float(), self.labels[index.to(self.labels.device)]


class _Part(Dataset):
    """Some of the features, by a list of indices at once."""

    def __init__(self, data: _Features, chosen: Tensor):
        self.data, self.chosen = data, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: list[int]) -> tuple[Tensor, Tensor]:
        return self.data[self.chosen[index]]


def _evaluator(head: nn.Module, device: torch.device) -> Engine:
    metrics = {"accuracy": Accuracy(), "loss": Loss(F.cross_entropy)}
    return _quiet(create_supervised_evaluator(head, metrics=metrics, device=device))


def _quiet(part):
    part.logger.setLevel(logging.CRITICAL)  # errors are raised, which says it once
    return part
