"""Learning tasks one after the other: the loop of all DHP experiments.

    for run in side_by_side([learn(benchmark, settings, seed, "cpu") for seed in range(3)]):
        print(run["R"])                  # accuracies in percent, [task learnt][task asked]

Data lie in memory as tensors, batches are gathered by index. On a GPU a step is captured as a CUDA graph once a task,
and many runs learn side by side, each on a stream of its own: steps as small as these leave most of a GPU idle.
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

AT_ONCE = 5000  # samples that are judged in one pass
BLOCK = 10  # steps in a CUDA graph: with one in each, launching it takes longer than its kernels do
TURN = 10  # blocks until the next run's turn, and between two looks at the plastic part


@dataclass(frozen=True)
class Settings:
    """How a network learns its tasks; the defaults are those of appendix A.1 without consolidation."""

    method: str = "Finetune"  # or SI, Online EWC, MAS; Scratch: a new network for each task
    dhp: bool = False
    strength: float = 0.0  # λ of the method
    xi: float = 0.1  # ξ of SI
    samples: int | None = None  # of a task that Online EWC and MAS look at; None: all
    per_sample: bool = True  # whether they look at each sample's gradient, or at the mean gradient of each batch
    optimizer: str = "SGD"
    lr: float = 0.01
    momentum: float = 0.0
    batch: int = 64
    tasks: int | None = None  # the first so many; None: all
    epochs: int = 10
    patience: int = 0  # epochs without a better validation accuracy, after the first `epochs`, that end a task; 0: none
    most: int = 30  # epochs, where there is patience
    eta: float = 0.001
    bounded: bool = False  # η is kept from 0 to 1 after each step
    per_connection: bool = False
    heads: str = "shared"
    inputs: str = "none"  # or standardise, centre, zca: see hebbkern.datasets
    twice: bool = True  # two sets of slow weights in a readout without DHP
    start: str = "inputs"  # slow weights of readouts from ±1/√inputs as in torch, or ±1/√"classes" as listing 1 has it

    @property
    def row(self) -> str:
        """Its name in Table 1."""
        if not self.dhp:
            return self.method
        return "DHP Softmax" if self.method == "Finetune" else f"DHP Softmax + {self.method}"


@dataclass
class Benchmark:
    """Tasks to learn from, to choose by and to test with (labels counted from 0 in each), and a network for them."""

    name: str
    train: list[Task]
    validation: list[Task]
    test: list[Task]
    network: Callable[[str, Callable[[int, int], nn.Module]], Network] = field(repr=False)  # of heads and readout


def readout(settings: Settings) -> Callable[[int, int], nn.Module]:
    """(inputs, classes) -> the layer that the settings ask for."""

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
    """What holds the slow weights. Raises ValueError for a method that is not known."""
    names, strength = network.slow_weights(), settings.strength
    looked_at = {"samples": settings.samples, "per_sample": settings.per_sample}
    methods = {
        "Finetune": lambda: Consolidation(),
        "Scratch": lambda: Consolidation(),
        "SI": lambda: SynapticIntelligence(names, strength, xi=settings.xi),
        "Online EWC": lambda: OnlineEWC(names, strength, seed=seed, **looked_at),
        "MAS": lambda: MAS(names, strength, **looked_at),
    }
    if settings.method not in methods:
        raise ValueError(f"dhp_training: method must be one of {', '.join(methods)}, got {settings.method}")
    return methods[settings.method]()


class Learner:
    """A network, what moves it and what holds it."""

    def __init__(self, benchmark: Benchmark, settings: Settings, seed: int, device: torch.device):
        torch.manual_seed(seed)  # dropout draws from it too: runs with dropout repeat only if they learn alone
        self.network = benchmark.network(settings.heads, readout(settings)).to(device)
        self.method, self.settings = consolidation(settings, self.network, seed), settings

    def begin(self) -> None:
        """A task: momenta start from 0."""
        settings, cuda = self.settings, next(self.network.parameters()).is_cuda
        parameters = self.network.parameters()
        if settings.optimizer == "Adam":
            self.optimizer = torch.optim.Adam(parameters, settings.lr, fused=True, capturable=cuda)
        else:
            self.optimizer = torch.optim.SGD(parameters, settings.lr, settings.momentum, foreach=True)

    def step(self, x: Tensor, labels: Tensor, task: int) -> None:
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
        """[3]: mean η, ‖Hebb‖ and ‖α‖ of the readout that learns (Figure 3)."""
        layer = self.network.readouts[self.network.heads.readout(task)]
        if not isinstance(layer, DHPLinear):
            return None
        with torch.no_grad():
            return torch.stack([layer.eta.mean(), layer.trace.norm(), layer.alpha.norm()])

    def finite(self) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in self.network.state_dict().values())

    @torch.no_grad()
    def right(self, task: int, x: Tensor, labels: Tensor) -> Tensor:
        """The share of samples that the network gets right, as a tensor: on a GPU nobody waits for it yet."""
        self.network.eval()
        pairs = zip(x.split(AT_ONCE), labels.split(AT_ONCE), strict=True)
        hits = sum((self.network(a, task).argmax(1) == b).sum() for a, b in pairs)
        self.network.train()
        return hits / len(x)


class Steps:
    """A learner's steps on a task's samples x [n, ...], labels [n]; on a GPU CUDA graphs of `BLOCK` after the first."""

    def __init__(self, learner: Learner, task: int, x: Tensor, labels: Tensor, batch: int):
        self.learner, self.task, self.x, self.labels, self.batch = learner, task, x, labels, batch
        self.positions = torch.zeros(BLOCK * batch, dtype=torch.int64, device=x.device)
        self.graph, self.warm = None, False

    def __call__(self, positions: Tensor) -> None:
        """As many steps as there are batches in positions, `BLOCK` at most; the last batch may be smaller."""
        if self.x.is_cuda and self.warm and len(positions) == len(self.positions):
            self.positions.copy_(positions)
            self.graph = self.graph or self._captured()
            self.graph.replay()
        else:
            self._steps(positions)
            self.warm = True

    def _steps(self, positions: Tensor) -> None:
        for own in positions.split(self.batch):
            self.learner.step(self.x.index_select(0, own), self.labels.index_select(0, own), self.task)

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self.learner.optimizer.zero_grad()  # so that gradients get memory of the graph
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            self._steps(self.positions)
        return graph


def learn(
    benchmark: Benchmark, settings: Settings, seed: int, device: str | torch.device = "cpu", *, on: str = "test"
) -> Iterator[dict | None]:
    """A run: None after every few steps, at last what came out; R is None where weights became infinite.

    Args:
        seed: of the weights and of the orders; that of the benchmark is its own.
        device: on a GPU the run needs a stream of its own, as `side_by_side` gives it.
        on: "test", or "validation": what the accuracies R are of. The other set stays unopened.

    Yields:
        benchmark, settings, seed, on, R: accuracies in percent [learnt][asked], epochs: of each task, seconds,
        device; for DHP Softmax with seed 0 plastic: [looks][η, ‖Hebb‖, ‖α‖], every `TURN` blocks of an epoch.
    """
    learner = Learner(benchmark, settings, seed, torch.device(device))
    told, begin = {"benchmark": benchmark.name, "settings": settings, "seed": seed, "on": on}, time.perf_counter()
    if benchmark.name == "mixture":
        told["tasks"] = [task.name for task in benchmark.train]
    try:
        found = yield from _learnt(learner, benchmark, seed, on)
    except (ValueError, RuntimeError) as error:
        if "finite" not in str(error):
            raise
        found = {"R": None, "error": str(error)}
    about = {"seconds": round(time.perf_counter() - begin, 1), "device": name(torch.device(device))}
    yield told | found | about


def _learnt(learner: Learner, benchmark: Benchmark, seed: int, on: str) -> Generator[None, None, dict]:
    """What `learn` says of the learning itself."""
    settings, device = learner.settings, next(learner.network.parameters()).device
    matrix, epochs, looks = [], [], []
    asked = benchmark.test if on == "test" else benchmark.validation
    for t, task in enumerate(benchmark.train[: settings.tasks]):
        if settings.method == "Scratch" and t:
            learner = Learner(benchmark, settings, seed + 1000 * t, device)
        learner.begin()
        x, labels = whole(task, device)
        steps, best = Steps(learner, t, x, labels, settings.batch), Best(learner, settings)
        for epoch in range(settings.most if settings.patience else settings.epochs):
            order = torch.from_numpy(np.random.default_rng((seed, t, epoch)).permutation(task.samples)).to(device)
            for i, positions in enumerate(order.split(BLOCK * settings.batch)):
                steps(positions)
                if i % TURN == 0:
                    looks.append(learner.plastic(t))
                    yield None
            if settings.patience and (yield from best.over(t, epoch, whole(benchmark.validation[t], device))):
                break
        epochs.append(epoch + 1)
        best.restore()
        if not learner.finite():
            raise ValueError(f"dhp_training: weights must be finite, got others after task {t + 1}")
        del steps  # its graph holds memory
        outputs = lambda network, x, t=t: network.seen(x, t)  # noqa: E731
        size = AT_ONCE if settings.per_sample else settings.batch
        looked_at = zip(x.split(size), labels.split(size), strict=True)
        learner.method.after_task(learner.network, looked_at, outputs)
        yield None
        there = range(t, t + 1) if settings.method == "Scratch" else range(t + 1)
        matrix.append({j: learner.right(j, *whole(asked[j], device)) for j in there})
        yield None
    told = {"epochs": epochs}
    told["R"] = [[round(100 * row[j].item(), 3) if j in row else None for j in range(len(matrix))] for row in matrix]
    if settings.row == "DHP Softmax" and seed == 0:
        told["plastic"] = [[float(f"{value:.4g}") for value in look.tolist()] for look in looks]
    return told


class Best:
    """Early stopping: weights, traces and SI's path of the epoch with the highest validation accuracy of a task."""

    def __init__(self, learner: Learner, settings: Settings):
        self.learner, self.settings = learner, settings
        self.accuracy, self.epoch, self.state = -1.0, 0, None

    def over(self, task: int, epoch: int, samples: tuple[Tensor, Tensor]) -> Generator[None, None, bool]:
        """Whether the task is to end after this epoch."""
        accuracy = self.learner.right(task, *samples)
        yield None  # others work while this is on its way
        if (accuracy := accuracy.item()) > self.accuracy:
            self.accuracy, self.epoch = accuracy, epoch
            self.state = deepcopy((self.learner.network.state_dict(), self.learner.method.state_dict()))
        return epoch + 1 >= self.settings.epochs and epoch - self.epoch >= self.settings.patience

    def restore(self) -> None:
        if self.state is not None:
            self.learner.network.load_state_dict(self.state[0])
            self.learner.method.load_state_dict(self.state[1])


def whole(task: Task, device: torch.device) -> tuple[Tensor, Tensor]:
    x, labels = task[:]
    return x.to(device), labels.to(device)


def side_by_side(runs: Iterable[Iterator[dict | None]], device: str = "cpu", at_once: int = 1) -> Iterator[dict]:
    """What the runs give, as they end. On a GPU `at_once` of them take turns, each on a stream of its own."""
    waiting, going = iter(runs), []
    while True:
        while len(going) < at_once and (run := next(waiting, None)) is not None:
            going.append((run, own_stream() if torch.device(device).type == "cuda" else nullcontext()))
        if not going:
            return
        for one in list(going):
            run, stream = one
            with stream:
                found = next(run)
            if found is not None:
                going.remove(one)
                yield found


def own_stream() -> torch.cuda.StreamContext:
    """A new stream that comes after what was asked for so far."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    return torch.cuda.stream(stream)


def name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, threads: {torch.get_num_threads()}"
