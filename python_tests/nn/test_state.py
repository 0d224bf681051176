"""What learns when: copies, threads, tasks, other processes, recomputed passes and evaluations do not learn."""

import asyncio
import threading

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import copies
import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianLinear

X = random((8, 12), seed=3)


def network():
    torch.manual_seed(0)
    return nn.Sequential(HebbianLinear(12, 6, rule=hk.WTA()), nn.Linear(6, 3))


def learns(model):
    """Whether a forward pass of `model` changes its Hebbian weight."""
    layer = next(module for module in model.modules() if isinstance(module, HebbianLinear))
    before = layer.weight.clone()
    model(X)
    return not torch.equal(layer.weight, before)


COPIES = copies.COPIES | {"AveragedModel": AveragedModel}


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_made_while_learning_never_learns(copied):
    model = network()
    with hk.learning(model, lr=0.1):
        twin = COPIES[copied](model)
        assert not learns(twin) and learns(model)
    assert not learns(twin)


def _learnt_in_child(model, queue):
    before = model[0].weight.clone()
    model(X)
    queue.put(not torch.equal(model[0].weight, before))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow(10))])
def test_another_process_does_not_learn(method):
    if method not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    context = torch.multiprocessing.get_context(method)
    model, queue = network().share_memory(), context.SimpleQueue()
    before = model[0].weight.clone()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child has none of the threads
    try:
        with hk.learning(model, lr=0.1):
            child = context.Process(target=_learnt_in_child, args=(model, queue))
            child.start()
            child.join()
            assert queue.get() is False and torch.equal(model[0].weight, before)
            assert learns(model)
    finally:
        torch.set_num_threads(threads)


def in_thread(run):
    result = []
    thread = threading.Thread(target=lambda: result.append(run()))
    thread.start()
    thread.join()
    return result[0]


def test_another_thread_does_not_learn():
    model = network()
    with hk.learning(model, lr=0.1):
        assert in_thread(lambda: learns(model)) is False
        assert asyncio.run(asyncio.to_thread(learns, model)) is False  # it copies the context variables
        assert learns(model)


def test_each_thread_learns_at_its_own_rate():
    model = network()

    def rate():
        with hk.learning(model, lr=0.5):
            model(X)
            return model[0].learning_state.lr

    with hk.learning(model, lr=0.1):
        model(X)
        assert in_thread(rate) == 0.5 and model[0].learning_state.lr == 0.1


def test_another_asynchronous_task_does_not_learn():
    model, seen = network(), []

    async def teacher():
        with hk.learning(model, lr=0.1):
            await asyncio.sleep(0)
            seen.append(("teacher", learns(model)))
            await asyncio.sleep(0)

    async def reader():
        for _ in range(3):
            seen.append(("reader", learns(model)))
            await asyncio.sleep(0)

    async def both():
        await asyncio.gather(teacher(), reader())

    asyncio.run(both())
    assert sorted(seen) == [("reader", False)] * 3 + [("teacher", True)]


def test_a_task_that_outlives_the_context_stops_learning():
    model = network()

    async def late(inside, ended):
        first = learns(model)
        inside.set()
        await ended.wait()
        return first, learns(model)

    async def main():
        inside, ended = asyncio.Event(), asyncio.Event()
        with hk.learning(model, lr=0.1):
            task = asyncio.create_task(late(inside, ended))  # it inherits the context
            await inside.wait()
        ended.set()
        return await task

    assert asyncio.run(main()) == (True, False)


@pytest.mark.filterwarnings("ignore:.*no layer has learnt")
def test_contexts_left_in_another_order_leave_nothing_behind():
    model = network()
    first, second = hk.learning(model, lr=0.1), hk.learning(model, lr=0.2)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert model[0].learning_state.lr == 0.2
    second.__exit__(None, None, None)
    assert model[0].learning_state is None and not learns(model)


@pytest.mark.filterwarnings("ignore:.*no layer has learnt")
def test_a_context_left_in_another_thread_has_ended():
    model = network()
    context = hk.learning(model, lr=0.1)
    context.__enter__()
    in_thread(lambda: context.__exit__(None, None, None))
    assert model[0].learning_state is None and not learns(model)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_layer_learns_once(reentrant):
    model, plain = network(), network()
    x, same = X.clone().requires_grad_(), X.clone().requires_grad_()
    for _ in range(2):
        with hk.learning(model, lr=0.1):
            model[1](checkpoint(model[0], x, use_reentrant=reentrant)).square().sum().backward()
        with hk.learning(plain, lr=0.1):
            plain(same).square().sum().backward()
    assert torch.equal(model[0].weight, plain[0].weight)
    torch.testing.assert_close(x.grad, same.grad)
    torch.testing.assert_close(model[1].weight.grad, plain[1].weight.grad)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_of_weights_that_have_learnt_since_is_an_error(reentrant):
    model, x = network(), X.clone().requires_grad_()
    with hk.learning(model, lr=0.1):
        losses = [checkpoint(model, x, use_reentrant=reentrant).sum() for _ in range(2)]
        with pytest.raises(RuntimeError, match=r"weight must be that of the pass .* call backward after each forward"):
            sum(losses).backward()


@pytest.mark.parametrize("into", ["weight", "grad"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_compiled_model_in_a_checkpoint_is_an_error(into, reentrant):
    torch.compiler.reset()
    model, x = network(), X.clone().requires_grad_()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with hk.learning(model, lr=0.1, into=into):
        loss = checkpoint(compiled, x, use_reentrant=reentrant).sum()
        learnt = model[0].weight.clone(), model[0].weight.grad
        with pytest.raises(
            RuntimeError, match=r"a compiled layer that learns must not be recomputed in the backward pass"
        ):
            loss.backward()
    assert torch.equal(model[0].weight, learnt[0]) and model[0].weight.grad is learnt[1]


def test_a_checkpoint_inside_a_compiled_function_is_an_error():
    torch.compiler.reset()
    model, x = network(), X.clone().requires_grad_()
    run = torch.compile(lambda x: checkpoint(model, x, use_reentrant=False), fullgraph=True, backend="aot_eager")
    with hk.learning(model, lr=0.1):
        loss = run(x).sum()
        with pytest.raises(RuntimeError, match=r"leave it out of torch.utils.checkpoint, or do not compile it"):
            loss.backward()


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow(25))])
def test_gradients_of_a_compiled_model_that_learns_are_those_of_eager(compiler):
    torch.compiler.reset()
    model, plain = network(), network()
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    x, same = X.clone().requires_grad_(), X.clone().requires_grad_()
    for network_, run, given in ((model, compiled, x), (plain, plain, same)):
        with hk.learning(network_, lr=0.1, strict=True):
            run(given).square().sum().backward()
    torch.testing.assert_close(model[0].weight, plain[0].weight)
    torch.testing.assert_close(x.grad, same.grad)


def test_a_model_that_learns_exports():
    model, twin = network(), network()
    with hk.learning(model, lr=0.1):
        program = torch.export.export(model, (X,)).module()
        assert torch.equal(model[0].weight, twin[0].weight)
        y = program(X)
    with hk.learning(twin, lr=0.1):
        torch.testing.assert_close(y, twin(X))


def test_compiled_models_follow_the_context_of_each_thread():
    torch.compiler.reset()
    model = nn.Sequential(*(HebbianLinear(6, 6, rule=hk.WTA()) for _ in range(3)))
    compiled, x = torch.compile(model, fullgraph=True, backend="eager"), random((8, 6), seed=5)

    def moved():
        before = [layer.weight.clone() for layer in model]
        compiled(x)
        return [not torch.equal(layer.weight, old) for layer, old in zip(model, before, strict=True)]

    assert moved() == [False] * 3
    for names in (["0"], ["1"], ["1", "2"], ["0"]):
        with hk.learning(model, lr=dict.fromkeys(names, 0.1)):
            assert moved() == [str(index) in names for index in range(3)]
            assert in_thread(moved) == [False] * 3
            with hk.nn.no_learning():
                assert moved() == [False] * 3
            with hk.learning(model[2], lr=0.1):
                assert moved() == [str(index) in names or index == 2 for index in range(3)]
    assert moved() == [False] * 3


def test_no_learning_ends_learning_for_a_while():
    model = network()
    with hk.learning(model, lr=0.1):
        with hk.nn.no_learning():
            assert not learns(model) and model[0].learning_state is None
            with hk.learning(model, lr=0.1):
                assert learns(model)
        assert learns(model)
    with hk.nn.no_learning():
        assert not learns(model)


LABELS = torch.arange(8) % 3
LOOKS = {
    "EWC.after_task": lambda model: hk.continual.EWC(model, 1.0).after_task(model, [(X, LABELS)]),
    "MAS.after_task": lambda model: hk.continual.MAS(model, 1.0).after_task(model, [(X, LABELS)]),
    "LwF.after_task and penalty": lambda model: distil(model),
    "evaluation.linear_probes": lambda model: hk.evaluation.linear_probes(model, (X, LABELS), (X, LABELS)),
    "evaluation.eval_mode": lambda model: look(model),
}


def distil(model):
    method = hk.continual.LwF(1.0)
    method.after_task(model, [(X, LABELS)])
    method.penalty(model, X).backward()


def look(model):
    with hk.evaluation.features.eval_mode(model):
        model(X)


@pytest.mark.parametrize("name", LOOKS)
def test_looking_at_a_model_never_teaches_it(name):
    model = network()
    with hk.learning(model, lr=0.1):
        model(X)
        before = model[0].weight.clone()
        LOOKS[name](model)
        assert torch.equal(model[0].weight, before)
        assert learns(model)
