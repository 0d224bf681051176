"""Networks, tasks and plain formulas in float64 for the tests of consolidation."""

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import nn

from hebbkern.continual.consolidation import EWC, L2, MAS, SI, OnlineEWC

QUADRATIC = {"EWC": EWC, "OnlineEWC": OnlineEWC, "SI": SI, "MAS": MAS, "L2": L2}
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


class Mixed(nn.Module):
    """Every kind of parameter: convolution, normalisation, in-place ReLU, a layer used twice, one used functionally."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm1d(12)
        self.first = nn.Linear(12, 12)
        self.twice = nn.Linear(12, 12)
        self.bare = nn.Linear(12, 12)
        self.scale = nn.LayerNorm(12)
        self.last = nn.Linear(12, 4)
        self.unused = nn.Linear(12, 4)

    def forward(self, x):
        h = F.max_pool2d(self.conv(x), 2).flatten(1)
        h = F.relu(self.first(self.norm(h)), inplace=True)
        h = torch.tanh(self.twice(torch.tanh(self.twice(h))))
        h = F.linear(h, self.bare.weight, self.bare.bias) + self.bare(h)
        return self.last(F.dropout(self.scale(h), 0.5, self.training))


def mlp(seed=0, sizes=(5, 7, 6, 4)):
    torch.manual_seed(seed)
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).double()


def mixed():
    torch.manual_seed(3)
    model = Mixed().double()
    model(torch.randn(9, 1, 4, 4).double())  # moves the running statistics
    return model


def task(seed, n=11, shape=(5,), classes=4, size=4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    return list(zip(x.split(size), torch.randint(classes, (n,), generator=generator).split(size), strict=True))


def perturbed(model, seed=9, by=0.3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += by * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def same(a, b):
    """Whether two nested states have the same bits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def slow_gradients(model, data, score):
    """The gradients of each sample, by autograd on that sample alone, in evaluation mode."""
    model = copy.deepcopy(model).eval()
    for x, labels in data:
        for i in range(len(x)):
            value = score(model(x[i : i + 1])[0], None if labels is None else labels[i])
            yield torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)


def slow_mean(model, data, score, measure):
    measured = [[measure(g) for g in gradients] for gradients in slow_gradients(model, data, score)]
    return [torch.stack(one).mean(0) for one in zip(*measured, strict=True)]


def slow_fisher(model, data):
    return slow_mean(model, data, lambda out, label: out.log_softmax(0)[label], torch.square)


def slow_mas(model, data):
    return slow_mean(model, data, lambda out, _: (out**2).sum(), torch.abs)


def square(importance, model, anchor):
    terms = zip(importance, model.parameters(), anchor, strict=True)
    return sum((of * (p - by) ** 2).sum() for of, p, by in terms)


def train(model, method, data, *, add=False, lr=0.05, outputs=None, momentum=0.0):
    """The training loop of the documentation."""
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=momentum)
    for x, labels in data:
        out = model(x) if outputs is None else outputs(model, x)
        if add:
            optimizer.zero_grad()
            F.cross_entropy(out, labels).backward()
            method.add_gradient(model, x)
        else:
            loss = F.cross_entropy(out, labels) + method.penalty(model, x)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        method.after_step()
