"""Learning tasks one after the other: the loop of all DHP experiments.

    for run in side_by_side([learn(benchmark, settings, seed, "cpu") for seed in range(3)]):
        print(run["R"])                  # accuracies in percent, [after task][of task]

Data are tensors in memory, and batches are gathered by index. On a GPU a step is captured as a CUDA graph once per
task, and many runs learn side by side, each on its own stream: a single run with steps as small as these leaves most of
a GPU idle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from examples.papers.dhp_softmax.networks import Network, TwiceLinear
from hebbkern.continual.consolidation import MAS, Consolidation, OnlineEWC, SynapticIntelligence
from hebbkern.continual.streams import Task
from hebbkern.nn import DHPLinear

AT_ONCE = 5000  # samples per forward pass in evaluation
BLOCK = 10  # steps in a CUDA graph: launching a graph of one step takes longer than its kernels
TURN = 10  # blocks until the next run's turn, and between two records of the plastic part


@dataclass(frozen=True)
class Settings:
    """How a network learns its tasks; the defaults are those of appendix A.1 without consolidation.

    Names and defaults are part of the keys in results/dhp_softmax.json.
    """

    method: str = "Finetune"  # or SI, Online EWC, MAS; Scratch: a new network for each task
    dhp: bool = False
    strength: float = 0.0  # λ of the method
    xi: float = 0.1  # ξ of SI
    samples: int | None = None  # of a task, for the importances of Online EWC and MAS; None: all
    per_sample: bool = True  # importances by the gradient of each sample, or by the mean gradient of each batch
    optimizer: str = "SGD"
    lr: float = 0.01
    momentum: float = 0.0
    batch: int = 64
    tasks: int | None = None  # number of tasks from the first one; None: all
    epochs: int = 10
    patience: int = 0  # epochs without better validation accuracy that end a task, after `epochs`; 0: none
    most: int = 30  # epochs of a task, with patience
    eta: float = 0.001
    bounded: bool = False  # keep η from 0 to 1 after each step
    per_connection: bool = False
    heads: str = "shared"
    inputs: str = "none"  # or standardise, centre, zca: see hebbkern.datasets
    twice: bool = True  # two sets of slow weights in a readout without DHP
    start: str = "inputs"  # initial slow weights of readouts: ±1/√inputs as torch, or ±1/√"classes" as listing 1

    @property
    def row(self) -> str:
        """The name of these settings in Table 1."""
        if not self.dhp:
            return self.method
        return "DHP Softmax" if self.method == "Finetune" else f"DHP Softmax + {self.method}"


@dataclass
class Benchmark:
    """Training, validation and test tasks, whose labels count from 0 in each, and a network for them."""

    name: str
    train: list[Task]
    validation: list[Task]
    test: list[Task]
    network: Callable[[str, Callable[[int, int], nn.Module]], Network] = field(repr=False)  # (heads, readout)


def readout(settings: Settings) -> Callable[[int, int], nn.Module]:
    """Returns a function (inputs, classes) → layer, by the settings."""

    def made(inputs: int, classes: int) -> nn.Module:
        if settings.dhp:
            layer = DHPLinear(inputs, classes, eta=settings.eta, per_connection=settings.per_connection)
        else:
            layer = TwiceLinear(inputs, classes) if settings.twice else nn.Linear(inputs, classes, bias=False)
        if settings.start == "classes":
            bound = classes**-0.5
            for weight in [layer.weight, layer.second] if isinstance(layer, TwiceLinear) else [layer.weight]:
                nn.init.uniform_(weight, -bound, bound)
        return layer

    return made


def consolidation(settings: Settings, network: Network, seed: int) -> Consolidation:
    """Returns the method that consolidates the slow weights.

    Raises:
        ValueError: the method is unknown.
    """
    names, strength = network.slow_weights(), settings.strength
    importances = {"samples": settings.samples, "per_sample": settings.per_sample}
    methods = {
        "Finetune": lambda: Consolidation(),
        "Scratch": lambda: Consolidation(),
        "SI": lambda: SynapticIntelligence(names, strength, xi=settings.xi),
        "Online EWC": lambda: OnlineEWC(names, strength, seed=seed, **importances),
        "MAS": lambda: MAS(names, strength, **importances),
    }
    if settings.method not in methods:
        raise ValueError(f"dhp_softmax training: method must be one of {', '.join(methods)}, got {settings.method}")
    return methods[settings.method]()


class Learner:
    """A network with its optimizer and its consolidation method."""

    def __init__(self, benchmark: Benchmark, settings: Settings, seed: int, device: torch.device):
        torch.manual_seed(seed)  # dropout draws from it too: runs with dropout repeat only on their own
        self.network = benchmark.network(settings.heads, readout(settings)).to(device)
        self.method, self.settings = consolidation(settings, self.network, seed), settings

    def begin(self) -> None:
        """Begins a task, with a new optimizer."""
        settings, cuda = self.settings, next(self.network.parameters()).is_cuda
        parameters = self.network.parameters()
        if settings.optimizer == "Adam":
            self.optimizer = torch.optim.Adam(parameters, settings.lr, fused=True, capturable=cuda)
        else:
            self.optimizer = torch.optim.SGD(parameters, settings.lr, settings.momentum, foreach=True)

    def step(self, x: Tensor, labels: Tensor, task: int) -> None:
        """Takes a gradient step on a batch of the task."""
        self.optimizer.zero_grad()
        self.network.loss(x, labels, task).backward()
        self.method.add_gradient(self.network, x)
        self.optimizer.step()
        self.method.after_step()
        if self.settings.bounded and self.settings.dhp:
            with torch.no_grad():
                for layer in self.network.readouts:
                    layer.eta.clamp_(0, 1)

    def plastic(self, task: int) -> Tensor | None:
        """Returns the mean η, ‖Hebb‖ and ‖α‖ of the task's readout, [3] (Figure 3); None without DHP."""
        layer = self.network.readouts[self.network.heads.readout(task)]
        if not isinstance(layer, DHPLinear):
            return None
        with torch.no_grad():
            return torch.stack([layer.eta.mean(), layer.trace.norm(), layer.alpha.norm()])

    def finite(self) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in self.network.state_dict().values())

    @torch.no_grad()
    def accuracy(self, task: int, x: Tensor, labels: Tensor) -> Tensor:
        """Returns the accuracy, from 0 to 1, as a tensor, so that a GPU need not be waited for."""
        self.network.eval()
        pairs = zip(x.split(AT_ONCE), labels.split(AT_ONCE), strict=True)
        hits = sum((self.network(a, task).argmax(1) == b).sum() for a, b in pairs)
        self.network.train()
        return hits / len(x)


class Steps:
    """Steps on a task's samples x [n, ...], labels [n]; on a GPU as CUDA graphs of `BLOCK` steps after the first."""

    def __init__(self, learner: Learner, task: int, x: Tensor, labels: Tensor, batch: int):
        self.learner, self.task, self.x, self.labels, self.batch = learner, task, x, labels, batch
        self.indices = torch.zeros(BLOCK * batch, dtype=torch.int64, device=x.device)
        self.graph, self.warm = None, False

    def __call__(self, indices: Tensor) -> None:
        """Takes a step per batch of these indices, at most `BLOCK`; the last batch may be smaller."""
        if self.x.is_cuda and self.warm and len(indices) == len(self.indices):
            self.indices.copy_(indices)
            self.graph = self.graph or self._captured()
            self.graph.replay()
        else:
            self._steps(indices)
            self.warm = True

    def _steps(self, indices: Tensor) -> None:
        for own in indices.split(self.batch):
            self.learner.step(self.x.index_select(0, own), self.labels.index_select(0, own), self.task)

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self.learner.optimizer.zero_grad()  # gradients get memory of the graph
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            self._steps(self.indices)
        return graph


def learn(
    benchmark: Benchmark, settings: Settings, seed: int, device: str | torch.device = "cpu", *, on: str = "test"
) -> Iterator[dict | None]:
    """Runs the benchmark: yields None after every few steps, and the results at the end.

    Args:
        seed: of the weights and of the orders; the benchmark has its own.
        device: on a GPU the run needs its own stream, as `side_by_side` gives it.
        on: the samples for the accuracies R, "test" or "validation". The other ones are not read.

    Yields:
        benchmark, settings, seed, on, R (accuracies in percent, [after task][of task]; None where weights became
        infinite), epochs (of each task), seconds, device; for DHP Softmax with seed 0 also plastic, [records][η,
        ‖Hebb‖, ‖α‖], one record every `TURN` blocks of an epoch.
    """
    learner = Learner(benchmark, settings, seed, torch.device(device))
    run, begin = {"benchmark": benchmark.name, "settings": settings, "seed": seed, "on": on}, time.perf_counter()
    if benchmark.name == "mixture":
        run["tasks"] = [task.name for task in benchmark.train]
    try:
        figures = yield from _learn(learner, benchmark, seed, on)
    except (ValueError, RuntimeError) as error:
        if "finite" not in str(error):
            raise
        figures = {"R": None, "error": str(error)}
    about = {"seconds": round(time.perf_counter() - begin, 1), "device": name(torch.device(device))}
    yield run | figures | about


def _learn(learner: Learner, benchmark: Benchmark, seed: int, on: str) -> Generator[None, None, dict]:
    """Learns the tasks in order; returns R, epochs and plastic of `learn`."""
    settings, device = learner.settings, next(learner.network.parameters()).device
    matrix, epochs, records = [], [], []
    evaluated = benchmark.test if on == "test" else benchmark.validation
    for t, task in enumerate(benchmark.train[: settings.tasks]):
        if settings.method == "Scratch" and t:
            learner = Learner(benchmark, settings, seed + 1000 * t, device)
        epochs.append((yield from _learn_task(learner, benchmark, t, seed, records)))
        if not learner.finite():
            raise ValueError(f"dhp_softmax training: weights must be finite, got others after task {t + 1}")
        x, labels = whole(task, device)
        batch_size = AT_ONCE if settings.per_sample else settings.batch
        batches = zip(x.split(batch_size), labels.split(batch_size), strict=True)
        learner.method.after_task(learner.network, batches, lambda network, x, t=t: network.loss_outputs(x, t))
        yield None
        known = range(t, t + 1) if settings.method == "Scratch" else range(t + 1)
        matrix.append({j: learner.accuracy(j, *whole(evaluated[j], device)) for j in known})
        yield None
    R = [[round(100 * row[j].item(), 3) if j in row else None for j in range(len(matrix))] for row in matrix]
    figures = {"epochs": epochs, "R": R}
    if settings.row == "DHP Softmax" and seed == 0:
        figures["plastic"] = [[float(f"{value:.4g}") for value in record.tolist()] for record in records]
    return figures


def _learn_task(
    learner: Learner, benchmark: Benchmark, t: int, seed: int, records: list[Tensor | None]
) -> Generator[None, None, int]:
    """Learns task t, up to its best epoch with early stopping; adds to `records` and returns the number of epochs."""
    settings, device = learner.settings, next(learner.network.parameters()).device
    learner.begin()
    x, labels = whole(benchmark.train[t], device)
    steps, best = Steps(learner, t, x, labels, settings.batch), Best(learner, settings)
    for epoch in range(settings.most if settings.patience else settings.epochs):
        order = torch.from_numpy(np.random.default_rng((seed, t, epoch)).permutation(len(x))).to(device)
        for i, indices in enumerate(order.split(BLOCK * settings.batch)):
            steps(indices)
            if i % TURN == 0:
                records.append(learner.plastic(t))
                yield None
        if settings.patience and (yield from best.ends(t, epoch, whole(benchmark.validation[t], device))):
            break
    best.restore()
    return epoch + 1


class Best:
    """Early stopping: keeps weights, traces and SI's path of the epoch with the highest validation accuracy."""

    def __init__(self, learner: Learner, settings: Settings):
        self.learner, self.settings = learner, settings
        self.accuracy, self.epoch, self.state = -1.0, 0, None

    def ends(self, task: int, epoch: int, samples: tuple[Tensor, Tensor]) -> Generator[None, None, bool]:
        """Returns whether the task ends after this epoch."""
        accuracy = self.learner.accuracy(task, *samples)
        yield None  # other runs take their turn while the GPU computes it
        if (accuracy := accuracy.item()) > self.accuracy:
            self.accuracy, self.epoch = accuracy, epoch
            self.state = deepcopy((self.learner.network.state_dict(), self.learner.method.state_dict()))
        return epoch + 1 >= self.settings.epochs and epoch - self.epoch >= self.settings.patience

    def restore(self) -> None:
        if self.state is not None:
            self.learner.network.load_state_dict(self.state[0])
            self.learner.method.load_state_dict(self.state[1])


def whole(task: Task, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns all samples and labels of a task."""
    x, labels = task[:]
    return x.to(device), labels.to(device)


def side_by_side(runs: Iterable[Iterator[dict | None]], device: str = "cpu", at_once: int = 1) -> Iterator[dict]:
    """Yields the results of the runs as they end. On a GPU `at_once` runs take turns, each on its own stream."""
    waiting, active = iter(runs), []
    while True:
        while len(active) < at_once and (run := next(waiting, None)) is not None:
            active.append((run, own_stream() if torch.device(device).type == "cuda" else nullcontext()))
        if not active:
            return
        for run, stream in list(active):
            with stream:
                result = next(run)
            if result is not None:
                active.remove((run, stream))
                yield result


def own_stream() -> torch.cuda.StreamContext:
    """Returns a new stream that waits for the work so far."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    return torch.cuda.stream(stream)


def name(device: torch.device) -> str:
    """Returns the name of a device for results."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, threads: {torch.get_num_threads()}"
