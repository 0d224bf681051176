"""Figures 1 to 5 of the HebbCL paper, drawn from our own models: the weights of neurons as images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from examples.papers.hebbcl.recipes import Recipe
from examples.papers.hebbcl.unsupervised import ROWS, Data, class_stream, learn, trained, untrained
from hebbkern import plots

SHOWN = {"mnist": 100, "omniglot": 36}  # neurons
VARIANTS = ("HebbCL", "without freezing", "without expansion", "Hebbian learning only")  # a) to d) of Figure 5
COMPARED = 12  # neurons a variant
TITLES = {"mnist": "Figure 2: MNIST", "omniglot": "Figure 3: Omniglot"}


def tiles(weight: Tensor) -> Tensor:
    """Returns the weights of each neuron divided by the largest: the scale of a neuron has no meaning."""
    return weight / weight.abs().flatten(1).amax(1).clamp(min=1e-12).view(-1, *[1] * (weight.dim() - 1))


def weights(name: str, data: Data, recipe: Recipe, folder: Path) -> Path:
    """Draws Figures 2 and 3: neurons after the stream, at even distances in the order in which they were added."""
    model = trained(recipe, data.x, data.y, 0)
    chosen = torch.linspace(0, model.width - 1, min(SHOWN[name], model.width)).long()
    title = f"{TITLES[name]}, {len(chosen)} of {model.width} neurons"
    weight = tiles(model.weight[chosen])
    return plots.weight_grid(weight, folder / f"hebbcl_{name}.png", shape=data.shape, title=title)


def forgetting(data: Data, recipe: Recipe, folder: Path) -> Path:
    """Draws Figure 5: neurons after the first class and the same ones after all classes, for four variants."""
    rows, by_name = [], {row.row: row for row in ROWS}
    for name in VARIANTS:
        rows += before_and_after(by_name[name].recipe(recipe), data)
    title = "Figure 5: after class 0, below after all classes. Pairs from the top:\n" + ", ".join(VARIANTS)
    path = folder / "hebbcl_forgetting.png"
    return plots.weight_grid(tiles(torch.cat(rows)), path, shape=data.shape, columns=COMPARED, title=title)


def before_and_after(recipe: Recipe, data: Data) -> tuple[Tensor, Tensor]:
    """Returns the weights [COMPARED, inputs] of the first neurons that converged to class 0, then and at the end."""
    model, stream = untrained(recipe, data.x.shape[1], 0), class_stream(data.x, data.y, 0)
    learn(model, stream[:1], recipe.batch)
    chosen = model.converged.long().argsort(descending=True, stable=True)[:COMPARED].sort().values
    before = model.weight[chosen].clone()
    learn(model, stream[1:], recipe.batch)
    return before, model.weight[chosen]


def classes(pictured: dict[int, Tensor], folder: Path) -> None:
    """Draws Figures 1 and 4 from the neurons of the first two classes of CIFAR-10, [n, 3, 32, 32] each."""
    airplanes, cars = (tiles(weight) for weight in list(pictured.values())[:2])
    title = "Figure 4: CIFAR-10, neurons of the class airplane"
    plots.weight_grid(airplanes[:100], folder / "hebbcl_cifar10.png", title=title)
    title = "Figure 1: neurons of airplanes (above) and cars (below)"
    both = torch.cat((airplanes[:32], cars[:32]))
    plots.weight_grid(both, folder / "hebbcl_classes.png", columns=16, title=title)
