"""Networks and benchmarks of examples.papers.dhp_softmax: heads, losses, consolidated weights, numbers of samples."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from examples.papers.dhp_softmax import benchmarks
from examples.papers.dhp_softmax.networks import Heads, Network, TwiceLinear, perceptron
from hebbkern.continual import streams
from hebbkern.datasets import Dataset
from hebbkern.nn import DHPLinear

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("kind", "outputs", "first", "readouts"),
    [
        ("own", (2, 3, 4), [0, 0, 0], [0, 1, 2]),
        ("one", (9,), [0, 2, 5], [0, 0, 0]),
        ("masked", (9,), [0, 2, 5], [0, 0, 0]),
        ("shared", (4,), [0, 0, 0], [0, 0, 0]),
    ],
)
def test_heads(kind, outputs, first, readouts):
    heads = Heads(kind, (2, 3, 4))
    assert heads.outputs == outputs
    assert [heads.first(t) for t in range(3)] == first
    assert [heads.readout(t) for t in range(3)] == readouts
    with pytest.raises(ValueError, match="heads must be one of own, one, masked, shared, got none"):
        Heads("none", (2, 3))


@pytest.mark.parametrize("kind", ["own", "one", "masked", "shared"])
def test_the_loss_is_over_the_outputs_that_the_head_says(kind):
    classes, labels = (2, 3), torch.tensor([0, 1, 1, 0])
    network = Network(nn.Identity(), 5, Heads(kind, classes), lambda n, k: nn.Linear(n, k, bias=False)).double()
    x = torch.randn(4, 5, generator=GENERATOR, dtype=torch.float64)
    for t in (0, 1):
        weight = network.readouts[t if kind == "own" else 0].weight
        z = x @ weight.T
        first, own = {"own": (0, classes[t]), "shared": (0, classes[t])}.get(kind, ((0, 2)[t], classes[t]))
        over = slice(None) if kind == "one" else slice(first, first + own)
        right = torch.stack([z[i, first + label] for i, label in enumerate(labels.tolist())])
        wanted = (z[:, over].exp().sum(1).log() - right).mean()
        torch.testing.assert_close(network.loss(x, labels, t), wanted)
        torch.testing.assert_close(network(x, t), z[:, first : first + own])
        torch.testing.assert_close(network.loss_outputs(x, t), z[:, over])


@pytest.mark.parametrize(("kind", "row"), [("own", 0), ("one", 2), ("masked", 2), ("shared", 0)])
def test_a_dhp_readout_keeps_the_mean_of_each_class(kind, row):
    network = Network(nn.Identity(), 5, Heads(kind, (2, 3)), lambda n, k: DHPLinear(n, k, eta=0.25))
    x, labels = torch.randn(4, 5, generator=GENERATOR), torch.tensor([0, 2, 2, 2])
    network.loss(x, labels, 1)
    trace = network.readouts[-1].trace
    wanted = torch.zeros_like(trace)
    wanted[row], wanted[row + 2] = 0.25 * x[0], 0.25 * x[1:].mean(0)
    torch.testing.assert_close(trace, wanted)
    network(x, 1)
    network.loss_outputs(x, 1)
    network.eval()
    network.loss(x, labels, 1)
    torch.testing.assert_close(trace, wanted)


def test_what_is_held_is_all_but_the_plastic_part():
    def network(readout):
        return Network(perceptron(6, 4), 4, Heads("own", (2, 2)), readout)

    body = ["body.1.weight", "body.1.bias"]
    assert network(DHPLinear).slow_weights() == [*body, "readouts.0.weight", "readouts.1.weight"]
    twice = [f"readouts.{head}.{name}" for head in (0, 1) for name in ("weight", "second")]
    assert network(TwiceLinear).slow_weights() == [*body, *twice]


def test_two_sets_of_weights_count_as_a_dhp_readout_and_answer_as_their_sum():
    layer, dhp = TwiceLinear(7, 3), DHPLinear(7, 3)
    assert sum(p.numel() for p in layer.parameters()) == dhp.weight.numel() + dhp.alpha.numel()
    assert layer.weight.abs().max() < 7**-0.5 and not torch.equal(layer.weight, layer.second)
    one = nn.Linear(7, 3, bias=False)
    one.weight.data = (layer.weight + layer.second).detach()
    x = torch.randn(4, 7, generator=GENERATOR)
    torch.testing.assert_close(layer(x), one(x))
    for model in (layer, one):
        F.cross_entropy(model(x), torch.tensor([0, 1, 2, 0])).backward()
    torch.testing.assert_close(layer.weight.grad, one.weight.grad)
    torch.testing.assert_close(layer.second.grad, one.weight.grad)


def test_imbalanced_has_the_counts_of_table_2():
    of_mnist = torch.tensor([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
    y = torch.repeat_interleave(torch.arange(10), of_mnist)
    data = Dataset("mnist", torch.zeros(len(y), 1, 2, 2), y, torch.zeros(20, 1, 2, 2), torch.arange(20) % 10)
    made = benchmarks.build("imbalanced", {"mnist": data}, 3)
    totals = [sum(column) for column in zip(*streams.DHP_COUNTS, strict=True)]
    assert [part.samples for part in made.validation] == [total // 12 for total in totals]
    assert [part.samples for part in made.train] == [total - total // 12 for total in totals]
    both = [
        torch.cat((kept.labels, out.labels)).bincount() for kept, out in zip(made.train, made.validation, strict=True)
    ]
    assert torch.equal(torch.stack(both, 1), torch.tensor(streams.DHP_COUNTS))
    assert both[2][8] == 76 and both[9].tolist() == [3933, 886, 3555, 3749, 927, 1413, 3993, 3650, 1709, 2045]
    assert all(part.samples == 20 for part in made.test)
    again = benchmarks.build("imbalanced", {"mnist": data}, 4)  # one choice of samples for all seeds
    assert all(torch.equal(a.indices, b.indices) for a, b in zip(made.train, again.train, strict=True))
    few = replace(data, x_train=data.x_train[::10], y_train=y[::10])  # a tenth of the images, a tenth of the counts
    part = benchmarks.build("imbalanced", {"mnist": few}, 3)
    for kept, out, total in zip(part.train, part.validation, totals, strict=True):
        assert abs(kept.samples + out.samples - total / 10) <= 5 + 1  # each of ten rounded, 595 for 595.8 at most
    with pytest.raises(ValueError, match="must hold mnist, got no mnist"):
        benchmarks.build("imbalanced", {}, 3)
