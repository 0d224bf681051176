"""DHPLinear as a torch layer: autocast, state dict, torch.compile, threads, GPUs and errors."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import random
from hebbkern.nn import DHPLinear
from listing import ABSENT, LABELS, batch, head, leaves, listing

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is found")


@pytest.mark.slow(10)
@pytest.mark.parametrize("make", [lambda layer: layer, torch.compile], ids=["eager", "compiled"])
def test_autocast(make):
    """The product has dtype bfloat16; trace, α and η keep float32."""
    torch.compiler.reset()
    layer, body = head(dtype=torch.float32, bias=True), nn.Linear(4, 6)
    x, start = random((7, 4)), layer.trace.clone()
    with torch.autocast("cpu", torch.bfloat16):
        h = body(x).detach().requires_grad_()
        z = make(layer)(h, LABELS)
    assert h.dtype == z.dtype == torch.bfloat16
    z.float().square().sum().backward()
    exact = [p.detach().double().requires_grad_() for p in (h, *leaves(layer), layer.bias)]
    wanted, trace = listing(exact[0], LABELS, start.double(), *exact[1:4])
    (wanted + exact[4]).square().sum().backward()
    torch.testing.assert_close(layer.trace.double(), trace.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(z.double(), (wanted + exact[4]).detach(), rtol=0.05, atol=0.05)
    for got, want in zip((h, *leaves(layer), layer.bias), exact, strict=True):
        assert got.grad.dtype == got.dtype
        torch.testing.assert_close(got.grad.double(), want.grad, rtol=0.05, atol=0.03 * float(want.grad.abs().max()))
    assert {part.dtype for part in (*layer.parameters(), layer.trace)} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert layer.eval()(h).dtype == torch.bfloat16


@pytest.mark.parametrize("per_connection", [False, True])
def test_state_dict_copy_and_pickle(per_connection):
    layer, other = (head(bias=True, per_connection=per_connection) for _ in range(2))
    layer(batch(), LABELS)
    assert set(layer.state_dict()) == {"weight", "alpha", "eta", "bias", "trace"}
    assert not torch.equal(other.trace, layer.trace)
    other.load_state_dict(layer.state_dict())
    for copied in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        before, h = layer.trace.clone(), batch(9)
        assert torch.equal(copied(h, LABELS), layer(h, LABELS)) and torch.equal(copied.trace, layer.trace)
        assert copied.trace.data_ptr() != layer.trace.data_ptr() and not torch.equal(before, layer.trace)
        layer.trace.copy_(before)
    mismatched = head(bias=True, per_connection=not per_connection)
    with pytest.raises(RuntimeError, match="size mismatch for eta"):
        mismatched.load_state_dict(layer.state_dict())
    assert ("one per connection" in repr(layer)) is per_connection
    assert "trace" not in dict(layer.named_parameters()) and layer.float().trace.dtype == torch.float32


def test_initial_values():
    torch.manual_seed(3)
    layer = DHPLinear(400, 10, eta=0.25, dtype=torch.float32)
    torch.manual_seed(3)
    assert torch.equal(layer.weight, nn.Linear(400, 10, bias=False).weight) and layer.bias is None
    assert 0 <= layer.alpha.min() < 1e-4 and 0.0099 < layer.alpha.max() <= 0.01
    assert layer.eta.shape == () and layer.eta == 0.25 and not layer.trace.any() and not layer.trace.requires_grad
    layer(random((4, 400)), torch.arange(4))
    layer.reset_parameters()
    assert layer.eta == 0.25 and not layer.trace.any()
    assert DHPLinear(4, 3, per_connection=True).eta.tolist() == [[pytest.approx(0.001)] * 4] * 3
    with torch.device("meta"):
        assert DHPLinear(4, 3)(torch.empty(2, 4)).shape == (2, 3)


@pytest.mark.slow(14)
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_compiled(compiler):
    torch.compiler.reset()
    layer, twin = (head(dtype=torch.float32, bias=True) for _ in range(2))
    compiled = torch.compile(layer, fullgraph=True, backend=compiler)
    for step, training in enumerate((True, True, False, True, False)):
        layer.train(training), twin.train(training)
        h = batch(step, dtype=torch.float32)
        other = h.detach().clone().requires_grad_()
        z, want = compiled(h, LABELS), twin(other, LABELS)
        torch.testing.assert_close(z, want)
        torch.testing.assert_close(layer.trace, twin.trace)
        assert torch.equal(layer.trace[ABSENT], twin.trace[ABSENT])
        for out in (z, want):
            out.square().sum().backward()
        torch.testing.assert_close(h.grad, other.grad, rtol=1e-4, atol=1e-4)
        for got, one in zip(layer.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(got.grad, one.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(compiled(h), twin(h))


@pytest.mark.slow(8)
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_passes_keep_their_traces(compiler):
    """Three passes are differentiated after the last one, each with its own trace."""
    torch.compiler.reset()
    layer, twin = (head(dtype=torch.float32) for _ in range(2))
    first, second = batch(7, dtype=torch.float32), batch(8, dtype=torch.float32)
    gradients = []
    for one, run in ((layer, torch.compile(layer, fullgraph=True, backend=compiler)), (twin, twin)):
        answers = run(first, LABELS), run(first), run(second, LABELS.flip(0))
        loss = sum(out.square().sum() for out in answers)
        gradients.append(torch.autograd.grad(loss, [first, second, *leaves(one)]))
    torch.testing.assert_close(list(gradients[0]), list(gradients[1]), rtol=1e-4, atol=1e-4)


def test_the_exported_layer_has_torchs_operators_only():
    layer, h = head(dtype=torch.float32).eval(), batch(dtype=torch.float32).detach()
    program = torch.export.export(layer, (h,))
    torch.testing.assert_close(program.module()(h), layer(h))
    assert not any("hebbkern" in str(node.target) for node in program.graph.nodes)


def test_the_trace_is_the_same_on_any_number_of_threads(backend, threads):
    if not backend.any_threads:
        pytest.skip("plain torch adds up in another order on another number of threads")
    h, labels, traces = random((3000, 70)), torch.arange(3000, device=random((1,)).device) % 8 - 1, []
    for number in (1, *backend.threads):
        threads(number)
        torch.manual_seed(0)
        layer = DHPLinear(70, 7, eta=0.5)
        layer(h, labels)
        traces.append(layer.trace.clone())
    assert all(torch.equal(traces[0], one) for one in traces[1:]) and traces[0].any()


NAN = torch.full((7, 6), torch.nan, dtype=torch.float64)
GOOD = torch.ones(7, 6, dtype=torch.float64)
REFUSED = [
    (GOOD[:, :5], LABELS, r"DHPLinear: h must be \[..., 6\], got shape \[7, 5\]"),
    (GOOD.reshape(-1)[:12].reshape(1, 12), LABELS[:1], r"DHPLinear: h must be \[..., 6\], got shape \[1, 12\]"),
    (torch.tensor(1.0).double(), torch.tensor(1), r"DHPLinear: h must be \[..., 6\], got shape \[\]"),
    (GOOD.float(), LABELS, "DHPLinear: h must have the weight's dtype float64, got float32"),
    (GOOD.long(), LABELS, "DHPLinear: h must have the weight's dtype float64, got int64"),
    (GOOD, LABELS[:6], r"DHPLinear: labels must be int64 or int32 of shape \[7\].* got int64 of shape \[6\]"),
    (GOOD, LABELS[:, None], r"DHPLinear: labels must be .* got int64 of shape \[7, 1\]"),
    (GOOD, LABELS.double(), r"DHPLinear: labels must be .* got float64 of shape \[7\]"),
    (GOOD, LABELS > 0, r"DHPLinear: labels must be .* got bool of shape \[7\]"),
    (GOOD, [3] * 7, r"DHPLinear: labels must be .* got list"),
    (GOOD, LABELS.clamp(max=3) + 2, "name neurons 0 to 4, or -1 for no neuron, got 5"),
    (GOOD, LABELS - 1, "name neurons 0 to 4, or -1 for no neuron, got -2"),
    (GOOD, LABELS + 2**33, "name neurons 0 to 4, or -1 for no neuron, got 8589934595"),
    (torch.where(torch.eye(7, 6) > 0, NAN, GOOD), LABELS, "x must be finite, got a NaN or an infinity"),
    (GOOD / 0, LABELS, "x must be finite, got a NaN or an infinity"),
]


@pytest.mark.parametrize(("h", "labels", "message"), REFUSED, ids=[case[2] for case in REFUSED])
@pytest.mark.parametrize("leaf", [False, True])
def test_bad_input_leaves_the_trace(h, labels, message, leaf):
    layer = head(bias=True)
    before = copy.deepcopy(layer.state_dict())
    h = h.clone().requires_grad_(leaf and h.is_floating_point())
    with pytest.raises(ValueError, match=message):
        layer(h, labels)
    assert all(torch.equal(part, before[name]) for name, part in layer.state_dict().items())


def test_autocast_does_not_mix_double():
    layer = head(dtype=torch.float32)
    before = layer.trace.clone()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="dtype float32, got float64"):
        layer(GOOD, LABELS)
    with pytest.raises(ValueError, match="dtype float32, got bfloat16"):
        layer(GOOD.bfloat16(), LABELS)
    assert torch.equal(layer.trace, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_features": 0}, "in_features must be a whole number of at least 1, got 0"),
        ({"out_features": 2.0}, "out_features must be a whole number of at least 1, got 2.0"),
        ({"out_features": True}, "out_features must be a whole number of at least 1, got True"),
        ({"eta": float("nan")}, "eta must be a finite number, got nan"),
        ({"eta": "0.1"}, "eta must be a finite number, got '0.1'"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        DHPLinear(**{"in_features": 4, "out_features": 3} | options)
    assert str(error.value) == f"hebbkern.DHPLinear: {message}"


@pytest.mark.parametrize("cause", ["sums", "eta"])
def test_what_is_not_finite_shows_in_the_output_only(cause):
    """Sums of finite activations can overflow, and η can diverge to NaN."""
    layer, h = head(dtype=torch.float32), random((7, 6))
    if cause == "sums":
        h[LABELS == 3] = 3e38
    else:
        layer.eta.data.fill_(torch.nan)
    before = layer.trace.clone()
    z = layer(h, LABELS)
    assert not z.isfinite().all() and layer.trace.isfinite().all()
    assert torch.equal(layer.trace[[1, 2, 3]], before[[1, 2, 3]])


@needs_gpu
def test_a_gpu_matches_the_cpu():
    layer, h = head(dtype=torch.float32, bias=True), batch(dtype=torch.float32)
    other = copy.deepcopy(layer).cuda()
    there = h.detach().cuda().requires_grad_()
    z, wanted = other(there, LABELS.cuda()), layer(h, LABELS)
    torch.testing.assert_close(z.cpu(), wanted)
    torch.testing.assert_close(other.trace.cpu(), layer.trace)
    z.square().sum().backward(), wanted.square().sum().backward()
    torch.testing.assert_close(there.grad.cpu(), h.grad, rtol=1e-4, atol=1e-4)
    for got, want in zip(other.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(got.grad.cpu(), want.grad, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="DHPLinear: labels must be on h's device cuda:0, got cpu"):
        other(there, LABELS)


@needs_gpu
def test_a_nan_on_a_gpu_shows_in_the_output_only():
    layer = head(dtype=torch.float32).cuda()
    h = torch.ones(7, 6, device="cuda")
    h[0] = torch.nan
    before = layer.trace.clone()
    z = layer(h, LABELS.cuda())
    assert z[0].isnan().all() and torch.equal(layer.trace[3], before[3]) and layer.trace.isfinite().all()


def training(device):
    """(layer, step): step(h, labels) is one training step, which reuses the same memory."""
    torch.manual_seed(0)
    layer = DHPLinear(40, 5, eta=0.1, device=device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def step(h, labels):
        optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(layer(h, labels), labels).backward()
        optimizer.step()

    return layer, step


@needs_gpu
def test_a_captured_step_matches_eager_ones():
    """Forward pass with labels, backward and SGD in one CUDA graph."""
    (layer, step), (twin, eager) = training("cuda"), training("cuda")
    batches = [
        (random((16, 40), device="cuda", seed=i), (torch.arange(16, device="cuda") * (i + 1)) % 5) for i in range(6)
    ]
    h, labels = (part.clone() for part in batches[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(h, labels)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(h, labels)
    layer.load_state_dict(twin.state_dict())
    for x, y in batches:
        h.copy_(x), labels.copy_(y)
        graph.replay()
        eager(x, y)
        torch.testing.assert_close(layer.trace, twin.trace)
        for got, want in zip(layer.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(got, want)
    assert twin.trace.any()


def test_samples_of_zeros_belong_to_the_mean_of_their_class():
    """Even where a class has no others: the trace moves towards 0, and gradients are finite."""
    layer, h = head(), batch(count=4).detach()
    h[2:] = 0
    h.requires_grad_()
    before, eta = layer.trace.clone(), layer.eta.detach()
    layer(h, torch.tensor([0, 1, 1, 2])).square().sum().backward()
    means = torch.stack([h[0], h[1] / 2, torch.zeros_like(h[0])]).detach()
    torch.testing.assert_close(layer.trace[:3], (1 - eta) * before[:3] + eta * means)
    assert torch.equal(layer.trace[3:], before[3:])
    assert all(part.grad.isfinite().all() for part in (h, *leaves(layer)))
