"""`hebbkern demo`: a Krotov-Hopfield layer learns real images without labels, is read out, timed and drawn."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import hebbkern as hk
from hebbkern import datasets, plots
from hebbkern.cli import options
from hebbkern.evaluation import linear_readout, rectified_power

DELTA = 0.2  # a little better than 0.4 on held-out training digits, and fewer neurons stay behind
POWERS = (1.0, 4.5)  # of the features; which one, a held-out part of the training set decides
STEP = {"samples": 1024, "neurons": 2000}  # the step that is timed, PyTorch-Hebbian's supplement, section 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--neurons", type=options.count, default=1000, help="of the layer (default %(default)s)")
    parser.add_argument("--epochs", type=options.count, default=60, help="(default %(default)s)")
    parser.add_argument("--batch", type=options.count, default=100, help="samples a step (default %(default)s)")
    parser.add_argument("--lr", type=float, default=0.2, help="of the first epoch, falls to 0 (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and split (default %(default)s)")
    parser.add_argument("--rounds", type=options.count, default=7, help="samples of each timing (default %(default)s)")
    parser.add_argument("--picture", default="runs/demo/weights.png", help="where to draw (default %(default)s)")


def run(arguments: argparse.Namespace) -> dict:
    """Prints as it goes, and returns what it printed."""
    start = time.perf_counter()
    data = datasets.load(arguments.data, root=arguments.root, download=arguments.download, seed=arguments.seed)
    x, x_test = data.flat()
    shape = "x".join(map(str, data.x_train.shape[1:]))
    print(f"{data.name}: {len(x)} training and {len(x_test)} test images {shape}, {data.classes} classes")
    weight, seconds = learn(x, arguments)
    steps = len(x) // min(arguments.batch, len(x)) * arguments.epochs
    print(f"{arguments.neurons} Krotov-Hopfield neurons learnt in {seconds:.1f} s ({steps} steps), without labels")
    accuracies = compare_readouts(data, weight)
    print("\nTest accuracy of a linear readout")
    for name, accuracy in accuracies.items():
        print(f"  {name:<36} {100 * accuracy:5.1f} %")
    timing = time_steps(x, arguments.rounds)
    print(f"\nOne Krotov-Hopfield step, {STEP['samples']} samples x {x.shape[1]} inputs x {STEP['neurons']} neurons")
    for name, row in timing.items():
        print(f"  {name:<36} {1e3 * row['seconds']:7.1f} ms   {row['ratio']:5.1f}x the time of hebbkern")
    picture = draw(weight, data, arguments.picture)
    whole = time.perf_counter() - start
    print(f"\nThe learnt weights: {picture}\n{whole:.0f} s in all")
    return {
        "command": "hebbkern demo",
        "data": data.name,
        "neurons": arguments.neurons,
        "epochs": arguments.epochs,
        "seed": arguments.seed,
        "threads": torch.get_num_threads(),
        "training_seconds": seconds,
        "accuracy": accuracies,
        "step": timing,
        "picture": str(picture),
        "seconds": whole,
    }


def learn(x: Tensor, arguments: argparse.Namespace) -> tuple[Tensor, float]:
    """The weights of a layer that learnt x, and the seconds it took."""
    from hebbkern import training

    model = nn.Sequential(hk.nn.HebbianLinear(x.shape[1], arguments.neurons, rule=hk.KrotovHopfield(delta=DELTA)))
    layer = model[0]
    layer.weight.copy_(normal_weights(layer.weight.shape, arguments.seed))
    batches = training.Batches(x, batch_size=arguments.batch, seed=arguments.seed)
    start = time.perf_counter()
    training.train(model, batches, lr=arguments.lr, epochs=arguments.epochs, progress=True)
    return layer.weight.detach(), time.perf_counter() - start


def normal_weights(shape, seed: int) -> Tensor:
    """N(0, 1), where Krotov and Hopfield start."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compare_readouts(data: datasets.Dataset, weight: Tensor) -> dict[str, float]:
    """Test accuracy on raw pixels, on random filters and on learnt ones; each choice is made on training samples."""
    x, x_test = data.flat()
    random = normal_weights(weight.shape, seed=1 << 20)
    candidates = {
        "raw pixels": [(x, x_test)],
        f"{len(weight)} random filters": [_features(x, x_test, random, power) for power in POWERS],
        f"{len(weight)} learnt filters": [_features(x, x_test, weight, power) for power in POWERS],
    }
    return {
        name: max(
            (linear_readout(train, data.y_train, test, data.y_test) for train, test in pairs),
            key=lambda readout: readout.held_out,
        ).test
        for name, pairs in candidates.items()
    }


def _features(x: Tensor, x_test: Tensor, weight: Tensor, power: float) -> tuple[Tensor, Tensor]:
    return rectified_power(x, weight, power), rectified_power(x_test, weight, power)


def time_steps(x: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of one step in three formulations, in turns, and how many times hebbkern's each is.

    Raises AssertionError unless the three first agree on the step.
    """
    from hebbkern.benchmark import baselines, peers
    from hebbkern.benchmark.timing import race

    batch = x[torch.arange(STEP["samples"]) % len(x)].contiguous()
    weight, rule = normal_weights((STEP["neurons"], x.shape[1]), seed=0), hk.KrotovHopfield()
    _, eager = peers.formulated("krotov_hopfield", "eager")
    w_numpy, x_numpy, w_eager, w_ours = weight.double().numpy(), batch.double().numpy(), weight.clone(), weight.clone()
    contestants = {
        "NumPy, float64, the authors' notebook": lambda: baselines.numpy_krotov_hopfield(w_numpy, x_numpy, 1e-4),
        "eager torch, one-hot and matmul": lambda: eager(w_eager, batch, 1e-4),
        "hebbkern": lambda: rule.step_(w_ours, batch, lr=1e-4),
    }
    with torch.no_grad():
        baselines.numpy_krotov_hopfield(w_numpy, x_numpy, 0.02)
        eager(w_eager, batch, 0.02)
        rule.step_(w_ours, batch, lr=0.02)
        check_agreement(weight.double().numpy(), w_numpy, {"eager torch": w_eager, "hebbkern": w_ours})
        seconds = race({name: (run, None) for name, run in contestants.items()}, rounds)
    return {name: {"seconds": value, "ratio": value / seconds["hebbkern"]} for name, value in seconds.items()}


def check_agreement(before: np.ndarray, want: np.ndarray, results: dict[str, Tensor]) -> None:
    """Each result must be NumPy's step to a thousandth, but for neurons in which float32 decided a near tie."""
    size = np.abs(want - before).max()
    for name, weight in results.items():
        differs = (np.abs(weight.double().numpy() - want) > 1e-3 * size).any(axis=1).mean()
        assert differs <= 0.005, f"{name} differs from the NumPy step in {100 * differs:.1f} % of the neurons"


def draw(weight: Tensor, data: datasets.Dataset, path: str) -> Path:
    """The first 100 neurons."""
    shape = tuple(data.x_train.shape[1:])
    title = f"{min(100, len(weight))} of {len(weight)} neurons, learnt from {len(data.x_train)} images without labels"
    return plots.weight_grid(weight[:100], path, shape=shape if len(shape) == 3 else None, title=title)
