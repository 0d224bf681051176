"""Uses of torch beside learning: recorders, layers that come and go, weights that something else trains too."""

import threading
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianLinear

X = random((8, 12), seed=3)


def network(**options):
    torch.manual_seed(0)
    return nn.Sequential(HebbianLinear(12, 6, rule=hk.WTA(), **options), nn.ReLU(), nn.Linear(6, 3))


def fake(model):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(X))


RECORDERS = {
    "make_fx": lambda model: make_fx(model)(X),
    "make_fx, fake": lambda model: make_fx(model, tracing_mode="fake", _allow_non_fake_inputs=True)(X),
    "make_fx, symbolic": lambda model: make_fx(model, tracing_mode="symbolic", _allow_non_fake_inputs=True)(X),
    "make_fx, pre_dispatch": lambda model: make_fx(model, pre_dispatch=True)(X),
    "symbolic_trace": torch.fx.symbolic_trace,
    "fake tensors": fake,
}


@pytest.mark.parametrize("name", RECORDERS)
def test_recording_a_model_teaches_nothing_and_records_no_learning(name):
    model = network()
    before = model[0].weight.clone()
    with pytest.warns(UserWarning, match="no layer has learnt"), hk.learning(model, lr=0.1):
        graph = RECORDERS[name](model)
    assert torch.equal(model[0].weight, before)
    if graph is not None:
        torch.testing.assert_close(graph(X), model(X))
        assert torch.equal(model[0].weight, before)
    with hk.learning(model, lr=0.1):
        model(X)
    assert not torch.equal(model[0].weight, before)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_model_that_learns_is_not_traced():
    """torch.jit.trace calls the model a second time, as any other caller, to check what it has recorded."""
    model = network()
    before = model[0].weight.clone()
    with (
        pytest.raises(RuntimeError, match=r"must not learn while torch.jit.trace"),
        hk.learning(model, lr=1),
    ):
        torch.jit.trace(model, (X,))
    with pytest.warns(UserWarning, match="no layer has learnt"), hk.learning(model, lr=1):
        with hk.nn.no_learning():
            trace = torch.jit.trace(model, (X,))
        torch.testing.assert_close(trace(X), trace(X))
    assert torch.equal(model[0].weight, before)


def replace(model):
    model[0] = HebbianLinear(12, 6, rule=hk.WTA())


def put_around(model):
    model[1] = nn.Sequential(HebbianLinear(6, 6, rule=hk.WTA()), nn.ReLU())


def convert(model):
    hk.nn.convert(model, {"2": hk.WTA()})


@pytest.mark.parametrize("change", [replace, put_around, convert])
@pytest.mark.parametrize("when", ["inside", "before it is entered"])
def test_a_layer_that_comes_into_the_model_later_is_an_error(change, when):
    model = network()
    context = hk.learning(model, lr=0.1)
    if when != "inside":
        change(model)
    with pytest.raises(RuntimeError, match=r"layer must have been in the model when hebbkern.learning was"), context:
        if when == "inside":
            change(model)
        model(X)
    with hk.learning(model, lr=0.1, strict=True):
        model(X)


def test_layers_outside_the_model_and_in_other_threads_are_no_error():
    model, other, errors = network(), network(), []

    def run():
        try:
            replace(model)
            model(X)
        except RuntimeError as error:
            errors.append(error)

    before = other[0].weight.clone()
    with hk.learning(model, lr=0.1):
        model(X)
        other(X)
        with hk.nn.no_learning():
            put_around(other)
            other(X)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert torch.equal(other[0].weight, before) and not errors


@pytest.mark.parametrize("strict", [False, True])
def test_a_layer_that_has_left_the_model_is_named_by_its_type(strict):
    model = network()
    message = r"\(HebbianLinear\)" if not strict else "must learn inside the context, got HebbianLinear|HebbianLinear"
    seen = pytest.raises(RuntimeError, match=message) if strict else pytest.warns(UserWarning, match="HebbianLinear")
    with seen, hk.learning(model, lr=0.1, strict=strict):
        model[0] = nn.Linear(12, 6)
        model(X)


def toggle(model):
    model.requires_grad_(False)
    model.requires_grad_(True)


def assign(model):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


@pytest.mark.parametrize("into", ["weight", "grad"])
@pytest.mark.parametrize("change", [toggle, assign])
def test_a_weight_that_backpropagation_trains_too_warns(change, into):
    model = network()
    change(model)
    with pytest.warns(UserWarning, match='backpropagation trains the weights of "0" beside the rule'):
        hk.learning(model, lr=0.1, into=into)
    model[0].weight.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hk.learning(model, lr=0.1, into=into)


def test_a_layer_inside_an_adapter_learns_under_its_name():
    class Adapter(nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer, self.down, self.up = base_layer, nn.Linear(12, 2), nn.Linear(2, 6)

        def forward(self, x):
            return self.base_layer(x) + self.up(self.down(x))

    model = network()
    model[0] = Adapter(model[0])
    before = model[0].base_layer.weight.clone()
    with hk.learning(model, lr={"0.base_layer": 0.1}, strict=True):
        model(X).sum().backward()
    assert not torch.equal(model[0].base_layer.weight, before)
    assert model[0].base_layer.weight.grad is None and model[0].down.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_is_cast_inside_goes_on_learning(dtype):
    model = network()
    with hk.learning(model, lr=0.1, strict=True):
        model.to(dtype)
        before = model[0].weight.clone()
        model(X.to(dtype))
    assert not torch.equal(model[0].weight, before) and model[0].weight.dtype == dtype


def test_a_state_dict_that_is_loaded_inside_is_learnt_from():
    model, twin = network(), network()
    state = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    state["0.frozen"] = model[0].frozen.clone()
    with hk.learning(model, lr=0.1):
        model.load_state_dict(state)
        model(X)
    twin.load_state_dict(state)
    with hk.learning(twin, lr=0.1):
        twin(X)
    assert torch.equal(model[0].weight, twin[0].weight)


def test_gradients_of_micro_batches_add_up():
    model, want = network(), 0
    for chunk in X.chunk(4):
        alone = network()
        with hk.learning(alone, into="grad"):
            alone(chunk)
        want = want + alone[0].weight.grad
        with hk.learning(model, into="grad"):
            model(chunk)
    torch.testing.assert_close(model[0].weight.grad, want)


def test_modes_and_contexts_of_a_compiled_model_may_alternate():
    torch.compiler.reset()
    model, twin = network(), network()
    compiled = torch.compile(model, backend="eager")
    for training, learns in [(True, True), (False, False), (False, True), (True, False), (True, True)]:
        for each, run in ((model, compiled), (twin, twin)):
            each.train(training)
            if learns:
                with hk.learning(each, lr=0.1):
                    run(X)
            else:
                run(X)
        torch.testing.assert_close(model[0].weight, twin[0].weight)
