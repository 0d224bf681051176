"""What every operator promises torch: opcheck, compilation, no autograd, clean memory, any batch."""

import warnings

import pytest
import torch

import calls
import cases
import hebbkern as hk
from hebbkern import backends
from hebbkern.ops import library

LAYERS = [calls.LINEAR, calls.CONVOLUTION]


def positional(name, arguments):
    """The arguments as the operator itself takes them, every default filled in."""
    arguments = {key: library.pair(value) if key in GEOMETRY else value for key, value in arguments.items()}
    schema = backends.AUTO.kernels[name]._schema
    return tuple(arguments.get(argument.name, DEFAULTS.get(argument.name)) for argument in schema.arguments)


GEOMETRY = {"stride": 1, "padding": 0, "dilation": 1}
DEFAULTS = {key: library.pair(value) for key, value in GEOMETRY.items()}
DEFAULTS |= {"p": 2.0, "cosine": False, "activation": "relu", "decay": "triangular", "temperature": 1.0}
DEFAULTS |= {"by_response": False, "decay_by_response": False, "average": False}
DEFAULTS |= {"normalise": "none", "rate_power": 0.0, "patches": "raw", "kernel": (), "groups": 1}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=["linear", "convolution"])
@pytest.mark.parametrize("name", calls.OPERATORS)
def test_opcheck(backend, name, layer, dtype):
    arguments = calls.call(name, layer, dtype, backend.device)
    operator = backends.BACKENDS[backend.choice].kernels[name]
    torch.library.opcheck(operator, positional(name, arguments))
    without = {
        key: None if key in ("eligible", "frozen", "responses", "denominator") else v for key, v in arguments.items()
    }
    for key in ("x", "weight", "y"):
        if without.get(key) is not None:
            without[key] = cases.laid_out(without[key], "channels_last").requires_grad_()
    torch.library.opcheck(operator, positional(name, without))


@pytest.mark.parametrize("layer", LAYERS, ids=["linear", "convolution"])
@pytest.mark.parametrize("name", calls.OPERATORS)
def test_fake_results_look_like_real_ones(backend, name, layer):
    for dtype in cases.DTYPES:
        arguments = calls.call(name, layer, dtype, backend.device)
        on_meta = {key: v.to("meta") if isinstance(v, torch.Tensor) else v for key, v in arguments.items()}
        for real, fake in zip(calls.run(name, arguments), calls.run(name, on_meta), strict=True):
            assert (real.shape, real.dtype, real.stride()) == (fake.shape, fake.dtype, fake.stride())


@pytest.mark.parametrize("name", calls.OPERATORS)
def test_compiles_whole(backend, name):
    torch.compiler.reset()
    compiled = torch.compile(getattr(hk.ops, name), fullgraph=True, backend="aot_eager", dynamic=True)
    for seed, layer in enumerate((calls.LINEAR, cases.Layer((33, 21), (11, 21)))):
        arguments = calls.call(name, layer, device=backend.device, seed=seed)
        want = calls.run(name, arguments)
        results = compiled(**arguments)
        if name in calls.IN_PLACE:
            results = arguments["weight"]
        assert calls.same_bits(want, results if isinstance(results, tuple) else [results])


def step(x, weight, lr):
    """A whole rule, with torch's own work around it."""
    winners, responses = hk.ops.compete(x * 2, weight, k=2, padding=1)
    c = torch.tensor([1.0, -0.4], device=x.device)
    options = {"neurons": weight.shape[0], "kernel": weight.shape[2:], "padding": 1}
    total, decay, count = hk.ops.accumulate(x * 2, winners, c, responses=responses, **options)
    dense, patches = hk.ops.dense_update(x, weight)
    nearest, distance = hk.ops.nearest_patch(x, weight)
    hk.ops.apply_(weight, total + dense / patches, decay=decay, denominator=count, lr=lr)
    return hk.ops.kwinners(weight.flatten(1) + 1, 5), nearest, distance


@pytest.mark.slow(54)
def test_a_step_compiles_with_inductor(backend):
    x, weight = cases.tensors(calls.CONVOLUTION, torch.float32, backend.device)
    torch.compiler.reset()  # each backend and each rate compiles anew, up to a limit
    compiled, parameter = torch.compile(step, fullgraph=True), torch.nn.Parameter(weight.clone())
    for lr in (0.1, 0.2, 0.3):  # a schedule does not break the graph
        want, got = step(x, weight, lr), compiled(x, parameter, lr)
        assert torch.allclose(weight, parameter, rtol=1e-5, atol=1e-6)
        for first, second in zip(want, got, strict=True):
            assert torch.allclose(first, second, rtol=1e-4, atol=1e-5)


def test_exports(backend):
    class Model(torch.nn.Module):
        def forward(self, y):
            return hk.ops.kwinners(y, 3, 1) + 1

    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Model(), (torch.randn(4, 9),), dynamic_shapes={"y": {0: batch}})
    y = cases.random((7, 9))
    assert torch.equal(program.module()(y), hk.ops.kwinners(y, 3, 1) + 1)


@pytest.mark.parametrize("layer", LAYERS, ids=["linear", "convolution"])
@pytest.mark.parametrize("name", calls.OPERATORS)
def test_no_autograd(backend, name, layer):
    """Under grad mode, with a leaf that requires grad: no failure, no warning, nothing recorded, the same bits."""
    arguments = calls.call(name, layer, device=backend.device)
    want = calls.run(name, arguments)
    for value in arguments.values():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value.requires_grad_()
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        results = getattr(hk.ops, name)(**arguments)
    results = arguments["weight"] if name in calls.IN_PLACE else results
    results = results if isinstance(results, tuple) else [results]
    assert calls.same_bits(want, results)
    for result in results:
        assert result.grad_fn is None and result.requires_grad == (name in calls.IN_PLACE)


@pytest.mark.parametrize("name", calls.OPERATORS)
def test_inference_mode(backend, name):
    want = calls.run(name, calls.call(name, device=backend.device))
    with torch.inference_mode():
        assert calls.same_bits(want, calls.run(name, calls.call(name, device=backend.device)))


def test_a_saved_weight_is_known_to_have_changed(backend):
    """apply_ between forward and backward is an error of autograd, as any write in place is."""
    weight = cases.random((3, 4)).requires_grad_()
    loss = (weight * weight).sum()
    version = weight._version
    hk.ops.apply_(weight, torch.ones(3, 4), lr=0.1)
    assert weight._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("layer", LAYERS, ids=["linear", "convolution"])
@pytest.mark.parametrize("name", calls.OPERATORS)
def test_every_byte_of_the_results_is_written(backend, name, layer, poison):
    for dtype in cases.DTYPES:
        arguments = calls.call(name, layer, dtype, backend.device)
        want = calls.run(name, arguments)
        poison()
        got = calls.run(name, arguments)
        torch.use_deterministic_algorithms(False)
        assert calls.same_bits(want, got)


def test_poison_poisons(poison):
    poison()
    assert torch.empty(9).isnan().all()


@pytest.mark.parametrize("name", calls.OPERATORS)
def test_inputs_are_left_alone(backend, name):
    for layer in LAYERS:
        arguments = calls.call(name, layer, device=backend.device)
        before = {key: v.clone() for key, v in arguments.items() if isinstance(v, torch.Tensor)}
        calls.run(name, arguments)
        assert calls.same_bits(before.values(), [arguments[key] for key in before])


@pytest.mark.parametrize("layer", LAYERS, ids=["linear", "convolution"])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_an_empty_batch_teaches_nothing(backend, dtype, layer):
    layer = cases.Layer((0, *layer.x[1:]), layer.weight, layer.geometry)
    x, weight = cases.tensors(layer, dtype, backend.device)
    before, options = weight.clone(), {"neurons": layer.neurons, "kernel": layer.kernel}
    winners, responses = hk.ops.compete(x, weight, k=2, **layer.geometry)
    assert winners.shape == responses.shape == (0, 2)
    c = responses.new_tensor([1.0, -0.4])
    total, decay, count = hk.ops.accumulate(x, winners, c, responses=responses, **options, **layer.geometry)
    dense, patches = hk.ops.dense_update(x, weight, **layer.geometry)
    assert total.shape == dense.shape == weight.shape and patches.tolist() == [0]
    assert not (total.any() or decay.any() or count.any() or dense.any())
    for normalise in ("none", "row_max", "row_l2", "global_max"):
        hk.ops.apply_(weight, total, decay=decay, denominator=count, lr=1.0, normalise=normalise)
        hk.ops.apply_(weight, dense, denominator=patches, lr=1.0, normalise=normalise)
    assert calls.same_bits([weight], [before])
