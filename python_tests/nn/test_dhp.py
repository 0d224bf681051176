"""DHPLinear against the paper's listing, differentiated by autograd: outputs, trace and gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calls import same_bits
from cases import random
from listing import ABSENT, CLOSE, LABELS, PARTS, PRESENT, batch, head, leaves, listing


@pytest.mark.parametrize("per_connection", [False, True])
def test_the_listing(per_connection):
    layer, h, probe = head(per_connection=per_connection), batch(), random((7, 5), torch.float64, seed=5)
    start = layer.trace.clone()
    wanted, trace = listing(h, LABELS, start, *leaves(layer))
    wanted_gradients = torch.autograd.grad((wanted * probe).sum(), [h, *leaves(layer)])
    z = layer(h, LABELS)
    torch.testing.assert_close(z, wanted, **CLOSE)
    torch.testing.assert_close(layer.trace, trace.detach(), **CLOSE)
    assert torch.equal(layer.trace[ABSENT], start[ABSENT]) and (layer.trace[PRESENT] != start[PRESENT]).all()
    gradients = torch.autograd.grad((z * probe).sum(), [h, *leaves(layer)])
    torch.testing.assert_close(list(gradients), list(wanted_gradients), **CLOSE)
    assert all(gradient.abs().max() > 0.01 for gradient in gradients)


@pytest.mark.parametrize("per_connection", [False, True])
def test_gradients_are_those_of_differences(per_connection):
    layer, start = head(per_connection=per_connection), head().trace

    def answer(h, *parts):
        layer.trace.copy_(start)
        return torch.func.functional_call(layer, dict(zip(PARTS, parts, strict=True)), (h, LABELS))

    assert torch.autograd.gradcheck(answer, (batch(), *leaves(layer)))


@pytest.mark.parametrize("per_connection", [False, True])
def test_steps_of_sgd_match_the_listing(per_connection):
    """Steps of a body and its head: no gradient passes through the trace to an earlier step."""
    body, layer = nn.Linear(4, 6).double(), head(per_connection=per_connection, bias=True)
    other, parts = copy.deepcopy(body), [p.detach().clone().requires_grad_() for p in leaves(layer)]
    bias, trace = layer.bias.detach().clone().requires_grad_(), layer.trace.clone()
    optimizers = [
        torch.optim.SGD([*net, *own], lr=0.05, momentum=0.9)
        for net, own in ((body.parameters(), layer.parameters()), (other.parameters(), [*parts, bias]))
    ]
    for step in range(6):
        x, labels = random((7, 4), torch.float64, seed=step), LABELS.roll(step)
        labels = torch.where(labels > 0, (labels + step) % 5, labels)
        z, trace = listing(torch.tanh(other(x)), labels, trace.detach(), *parts)
        for optimizer, out in zip(optimizers, (layer(torch.tanh(body(x)), labels), z + bias), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(out, labels, ignore_index=-1).backward()
            optimizer.step()
        torch.testing.assert_close(layer.trace, trace.detach(), **CLOSE)
    got = [p.detach() for p in (*body.parameters(), *leaves(layer), layer.bias)]
    torch.testing.assert_close(got, [p.detach() for p in (*other.parameters(), *parts, bias)], **CLOSE)


@pytest.mark.parametrize("shape", [(), (2, 3), (0,), (1,), (3, 0), (2, 1, 2)], ids=str)
def test_any_leading_shape(shape):
    """A single sample, sequences and empty inputs give the results of their rows."""
    layer, flat = head(bias=True), head(bias=True)
    start, h = layer.trace.clone(), random((*shape, 6), torch.float64, seed=6).requires_grad_()
    labels = torch.randint(-1, 5, shape, generator=torch.Generator().manual_seed(1))
    rows = h.detach().reshape(-1, 6).requires_grad_()
    z, wanted = layer(h, labels), flat(rows, labels.reshape(-1))
    assert z.shape == (*shape, 5)
    z.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(z, wanted.reshape(z.shape), **CLOSE)
    torch.testing.assert_close(h.grad, rows.grad.reshape(h.shape), **CLOSE)
    assert torch.equal(layer.trace, flat.trace)
    absent = [c for c in range(5) if c not in labels.reshape(-1).tolist()]
    assert torch.equal(layer.trace[absent], start[absent])
    for got, one in zip(layer.parameters(), flat.parameters(), strict=True):
        torch.testing.assert_close(got.grad, one.grad, **CLOSE)


def test_layouts_and_integer_dtypes():
    want, h = head(), batch().detach()
    z = want(h, LABELS)
    wide, long = torch.zeros(7, 12, dtype=h.dtype), torch.zeros(14, dtype=torch.int64)
    wide[:, ::2], long[::2] = h, LABELS
    layouts = [(h.T.contiguous().T, LABELS.int()), (wide[:, ::2], long[::2]), (h, long.int()[::2])]
    for x, labels in layouts:
        layer = head()
        x.requires_grad_()
        torch.testing.assert_close(layer(x, labels), z, **CLOSE)
        assert torch.equal(layer.trace, want.trace)
        gradient = torch.autograd.grad(layer(x, labels).square().sum(), x)[0]
        leaf = h.clone().requires_grad_()
        layer.trace.copy_(want.trace)
        torch.testing.assert_close(gradient, torch.autograd.grad(layer(leaf, labels).square().sum(), leaf)[0], **CLOSE)


def test_only_training_with_labels_updates_the_trace():
    layer, h = head(), batch()
    start = layer.trace.clone()
    want = h @ (layer.weight + layer.alpha * start).T
    for training, labels in ((True, None), (False, None), (False, LABELS), (False, LABELS + 90)):
        layer.train(training)
        z = layer(h, labels)
        assert torch.equal(layer.trace, start)
        torch.testing.assert_close(z, want, **CLOSE)
    gradients = torch.autograd.grad(layer(h).square().sum(), [h, *leaves(layer)], allow_unused=True)
    wanted = torch.autograd.grad(want.square().sum(), [h, layer.weight, layer.alpha])
    torch.testing.assert_close(list(gradients[:3]), list(wanted), **CLOSE)
    assert gradients[3] is None
    with torch.no_grad():
        layer.train()(h, LABELS)
    torch.testing.assert_close(layer.trace, listing(h, LABELS, start, *leaves(layer))[1].detach(), **CLOSE)


def test_samples_of_no_class_change_nothing():
    layer, h = head(), batch()
    start, parts = layer.trace.clone(), leaves(layer)
    z = layer(h, torch.full((7,), -1))
    assert torch.equal(layer.trace, start)
    torch.testing.assert_close(z, F.linear(h, layer.weight + layer.alpha * start), **CLOSE)
    to_h, to_eta = torch.autograd.grad(z.square().sum(), [h, layer.eta])
    assert to_eta == 0
    wanted = torch.autograd.grad(F.linear(h, parts[0] + parts[1] * start).square().sum(), h)[0]
    torch.testing.assert_close(to_h, wanted, **CLOSE)


def test_absent_classes_keep_their_bits():
    """Also the bits that adding 0 would change."""
    layer = head()
    layer.trace[ABSENT] = -0.0
    before = layer.trace.clone()
    layer(batch(), LABELS)
    assert same_bits([layer.trace[ABSENT]], [before[ABSENT]]) and layer.trace[ABSENT].signbit().all()


def test_two_forward_passes_before_one_backward():
    """With a pass without labels between them: each backward pass uses the trace of its own forward pass."""
    layer, first, second = head(), batch(7), batch(8)
    trace, parts = layer.trace.clone(), leaves(layer)
    one, trace = listing(first, LABELS, trace, *parts)
    between = first @ (parts[0] + parts[1] * trace.detach()).T
    two, _ = listing(second, LABELS.flip(0), trace.detach(), *parts)
    wanted = torch.autograd.grad((one * two * between).sum(), [first, second, *parts])
    got = layer(first, LABELS), layer(first), layer(second, LABELS.flip(0))
    gradients = torch.autograd.grad((got[0] * got[1] * got[2]).sum(), [first, second, *parts])
    torch.testing.assert_close(list(gradients), list(wanted), **CLOSE)


def test_heads_share_a_body():
    """A sample of label −1 has the effect of a sample that is not in the batch."""
    torch.manual_seed(1)
    body, heads = nn.Linear(4, 6).double(), [head(classes=3), head(classes=3)]
    x, task = random((8, 4), torch.float64), torch.tensor([0, 1, 1, 0, 0, 1, 0, 1])
    labels = torch.tensor([2, 0, 1, 1, 2, 0, 0, 0])
    wanted, traces = 0, []
    h = torch.relu(body(x))
    for number, one in enumerate(heads):
        z, trace = listing(h[task == number], labels[task == number], one.trace, *leaves(one))
        wanted = wanted + F.cross_entropy(z, labels[task == number], reduction="sum")
        traces.append(trace.detach())
    every = [*body.parameters(), *(p for one in heads for p in one.parameters())]
    wanted = torch.autograd.grad(wanted, every)
    h, loss = torch.relu(body(x)), 0
    for number, one in enumerate(heads):
        own = torch.where(task == number, labels, -1)
        loss = loss + F.cross_entropy(one(h, own), own, ignore_index=-1, reduction="sum")
    torch.testing.assert_close(list(torch.autograd.grad(loss, every)), list(wanted), **CLOSE)
    torch.testing.assert_close([one.trace for one in heads], traces, **CLOSE)


@pytest.mark.parametrize("frozen", ["weight", "alpha", "eta", "h", "bias"])
def test_parts_without_requires_grad_get_no_gradient(frozen):
    layer, free, h = head(bias=True), head(bias=True), batch()
    free(h, LABELS).square().sum().backward()
    other = h.detach().clone().requires_grad_(frozen != "h")
    if frozen != "h":
        getattr(layer, frozen).requires_grad_(False)
    layer(other, LABELS).square().sum().backward()
    for (name, got), want in zip([("h", other), *layer.named_parameters()], [h, *free.parameters()], strict=True):
        assert got.grad is None if name == frozen else torch.equal(got.grad, want.grad)
    assert torch.equal(layer.trace, free.trace)
