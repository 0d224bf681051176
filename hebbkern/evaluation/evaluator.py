"""HebbianEvaluator: trains a readout by backpropagation on the frozen features of a layer, then tests it.

    score = HebbianEvaluator(model, until="features").run((x, labels), (x_test, test_labels))
    HebbianEvaluator(model).attach(trainer, train=(x, labels), validation=(x_val, val_labels), every=5)

After PyTorch-Hebbian, section 4.2 and section 2.2 of its supplement: Adam, cross-entropy, a learning rate lowered on
plateaus, early stopping. Built from ignite's supervised trainer and evaluator (pip install 'hebbkern[train]').
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from hebbkern.checks import MOST_CLASSES
from hebbkern.evaluation.features import MEMORY, Pair, Store, batches, device_of, is_pair, storage, taps

try:
    from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.handlers import EarlyStopping, ReduceLROnPlateauScheduler
    from ignite.metrics import Accuracy, Loss
except ImportError as error:
    raise ImportError("hebbkern.evaluation: pytorch-ignite is missing: pip install 'hebbkern[train]'") from error

PLATEAU = {"factor": 0.2, "patience": 3}  # of the learning rate
MIN_GAIN = 1e-4  # of the held-out loss; a smaller decrease does not count


@dataclass(frozen=True)
class Score:
    """Accuracies from 0 to 1 on the samples that the head was fitted to, on the held-out ones, and on the test set.

    Attributes:
        epochs: how many were run.
        features: numbers a sample.
        cached: "float32", "bfloat16" or "no".
        history: of each epoch the held-out "accuracy" and "loss", and the learning rate "lr".
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

    Features are computed once, in evaluation mode, and kept: as float32 if those of the training set fit into `memory`
    bytes, else as bfloat16 (which the head reads as float32) if those fit. Otherwise each batch of each epoch passes
    through the model again, for which train must be a pair of tensors. Test features are never kept.

    A seeded part of the training set is held out. Its loss lowers the learning rate (see PLATEAU), ends the training,
    and chooses the epoch whose head is kept. The test set is read once, at the end. Deterministic for a seed, on the
    same number of threads; torch's global random state is neither read nor changed.

    Args:
        model: any module; left exactly as it was (modes, gradients, hooks, buffers).
        until: name of the layer whose output is read, as in `model.named_modules()`; None = the model's output.
        head: module from features (float32) to class scores. Each run starts from a copy of it; it may hold lazy
            modules. None = flatten, standardise (batch normalisation without parameters) and one linear layer.
        transform: fixed function of the features, applied before they are kept, e.g. a power and a pooling.
        lr: of Adam. This and the next two defaults are the paper's.
        batch_size: samples a batch.
        epochs: the most epochs.
        held_out: share of the training set.
        patience: epochs without a gain before the training ends.
        seed: of the split, the order and the head's weights.
        memory: bytes.

    Attributes:
        head: after a run, the trained head (None before).

    Raises:
        ValueError: held_out is not between 0 and 1, or batch_size, epochs or patience is below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        until: str | None = None,
        *,
        head: nn.Module | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        lr: float = 1e-3,
        batch_size: int = 256,
        epochs: int = 100,
        held_out: float = 0.1,
        patience: int = 10,
        seed: int = 0,
        memory: int = MEMORY,
    ):
        if not 0 < held_out < 1:
            raise ValueError(f"hebbkern.HebbianEvaluator: held_out must be between 0 and 1, got {held_out}")
        for name, value in (("batch_size", batch_size), ("epochs", epochs), ("patience", patience)):
            if value < 1:
                raise ValueError(f"hebbkern.HebbianEvaluator: {name} must be at least 1, got {value}")
        self.model, self.until, self.initial_head, self.transform = model, until or "", head, transform
        self.lr, self.batch_size, self.epochs, self.held_out = lr, batch_size, epochs, held_out
        self.patience, self.seed, self.memory = patience, seed, memory
        self.head: nn.Module | None = None

    def run(self, train: Pair | Iterable[Pair], test: Pair | Iterable[Pair]) -> Score:
        """Trains the head on `train` and measures it on `test`, which decides nothing.

        Args:
            train, test: pairs of tensors (x, labels), or batches of such (see `hebbkern.evaluation.features`).

        Returns:
            The accuracies and the history of the training.

        Raises:
            ValueError: the layer does not exist, labels do not fit, there are fewer than two samples, or the features
                of batches do not fit into memory.
        """
        device = device_of(self.model)
        with taps(self.model, [self.until], keep=self._keep) as read, torch.enable_grad():
            _seed(self.seed, device)
            data = self._features(train, lambda x: read(x)[self.until])
            if len(data) < 2:
                raise ValueError(f"hebbkern.HebbianEvaluator: train must hold two samples or more, got {len(data)}")
            order = torch.randperm(len(data))
            held_out = min(max(1, round(self.held_out * len(data))), len(data) - 1)
            check, fit = _Part(data, order[:held_out]), _Part(data, order[held_out:])
            self.head = head = self._new_head(data)
            history = self._fit(head, fit, check)

            def accuracy(data: Iterable) -> float:
                # A new evaluator for each set: ignite's engines assume the number of batches of their last run.
                return _evaluator(head, device).run(data).metrics["accuracy"]

            accuracies = accuracy(self._loader(fit)), accuracy(self._loader(check))
            stream = ((read(x)[self.until], labels.to(device)) for x, labels in batches(test, self.batch_size))
            test_accuracy = accuracy(stream)
            features = data[torch.tensor([0])][0].numel()
        return Score(*accuracies, test_accuracy, len(history), features, data.cached, tuple(history))

    def attach(
        self,
        engine: Engine,
        event: Any = None,
        *,
        train: Pair | Iterable[Pair],
        validation: Pair | Iterable[Pair],
        every: int = 1,
        name: str = "readout",
    ) -> Any:
        """Runs after every `every` epochs of a trainer, each time with a new head.

        Writes the accuracy on `validation` to `engine.state.metrics[name]`, that on `train` to [name + "_train"].

        Args:
            engine: any ignite engine.
            event: an ignite event instead of EPOCH_COMPLETED(every=every).
            train, validation: as of `run`. Give validation data here, not the test set that is reported at the end.
            every: epochs.
            name: of the metric.

        Returns:
            ignite's handle, with .remove().
        """

        def measure(engine: Engine) -> None:
            score = self.run(train, validation)
            engine.state.metrics[name], engine.state.metrics[name + "_train"] = score.test, score.train

        return engine.add_event_handler(event or Events.EPOCH_COMPLETED(every=every), measure)

    def _keep(self, layer: nn.Module, output: Tensor) -> Tensor:
        output = output.float()
        return (output if self.transform is None else self.transform(output)).clone()

    def _features(self, source: Pair | Iterable[Pair], read: Callable[[Tensor], Tensor]) -> _Features:
        """The features of a training set: kept if they fit, else computed when they are read."""
        count = len(source[1]) if is_pair(source) else None
        store = Store(self.memory, count)
        for x, labels in batches(source, self.batch_size):
            features = read(x)
            labels = labels.to(features.device)
            if is_pair(source) and storage(len(source[1]) * features[0].numel(), self.memory) is None:
                return _Features(source[0], source[1].long().to(features.device), read)
            store.add({"": features}, labels)
        kept, labels = store.take()
        return _Features(kept[""], labels, None)

    def _new_head(self, data: _Features) -> nn.Module:
        x, _ = data[torch.tensor([0])]
        if self.initial_head is not None:
            head = copy.deepcopy(self.initial_head).to(x.device).eval()
            with torch.no_grad():
                head(x)  # gives lazy modules their shapes
            return head
        inputs, highest, most = x.numel(), int(data.labels.max()), max(MOST_CLASSES, len(data))
        if highest >= most:
            raise ValueError(
                f"hebbkern.HebbianEvaluator: labels must be below {most} (a head of its own has an output for each), "
                f"got {highest}"
            )
        standardise = nn.BatchNorm1d(inputs, affine=False)
        return nn.Sequential(nn.Flatten(), standardise, nn.Linear(inputs, highest + 1)).to(x.device)

    def _loader(self, part: _Part, shuffled: bool = False) -> DataLoader:
        """Whole batches of a part, each read by one list of indices; shuffled ones omit an incomplete last batch."""
        sampler = RandomSampler(part) if shuffled else SequentialSampler(part)
        batch_sampler = BatchSampler(sampler, self.batch_size, shuffled and len(part) >= self.batch_size)
        return DataLoader(part, None, sampler=batch_sampler)

    def _fit(self, head: nn.Module, fit: _Part, check: _Part) -> list[dict[str, float]]:
        """Trains the head, keeps that of the epoch with the lowest held-out loss, and returns the history."""
        optimizer = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], lr=self.lr)
        device = device_of(self.model)
        trainer = _quiet(create_supervised_trainer(head, optimizer, F.cross_entropy, device=device))
        checker = _evaluator(head, device)
        stop = _quiet(EarlyStopping(self.patience, lambda e: e.state.metrics["loss"], trainer, MIN_GAIN, mode="min"))
        plateau = ReduceLROnPlateauScheduler(optimizer, "loss", threshold=MIN_GAIN, threshold_mode="abs", **PLATEAU)
        history: list[dict[str, float]] = []
        best: dict[str, Any] = {"loss": float("inf")}

        def record(engine: Engine) -> None:
            history.append({**engine.state.metrics, "lr": optimizer.param_groups[0]["lr"]})
            if history[-1]["loss"] < best["loss"]:
                best.update(loss=history[-1]["loss"], head=copy.deepcopy(head.state_dict()))

        for handler in (record, plateau, stop):
            checker.add_event_handler(Events.COMPLETED, handler)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: checker.run(self._loader(check)))
        trainer.run(self._loader(fit, shuffled=True), max_epochs=self.epochs)
        if "head" in best:
            head.load_state_dict(best["head"])
        return history


class _Features(Dataset):
    """Features by index, as float32: kept ones, or those of samples that `read` passes through the model."""

    def __init__(self, x: Tensor, labels: Tensor, read: Callable[[Tensor], Tensor] | None):
        self.x, self.labels, self.read = x, labels, read
        self.cached = "no" if read else str(x.dtype).removeprefix("torch.")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        x = self.x[index.to(self.x.device)]
        return (self.read(x) if self.read else x).float(), self.labels[index.to(self.labels.device)]


class _Part(Dataset):
    """Some of the features, read by a list of indices at once."""

    def __init__(self, data: _Features, indices: Tensor):
        self.data, self.indices = data, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: list[int]) -> tuple[Tensor, Tensor]:
        return self.data[self.indices[index]]


def _evaluator(head: nn.Module, device: torch.device) -> Engine:
    metrics = {"accuracy": Accuracy(), "loss": Loss(F.cross_entropy)}
    return _quiet(create_supervised_evaluator(head, metrics=metrics, device=device))


def _seed(seed: int, device: torch.device) -> None:
    """Seeds the random streams that `taps` has forked; torch.manual_seed would seed every device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


def _quiet(part: Any) -> Any:
    part.logger.setLevel(logging.CRITICAL)  # an error is raised, so the log need not repeat it
    return part
