"""hk.learning in two processes: DistributedDataParallel sums updates, FSDP is refused, unsummed learning warns."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianLinear
from hebbkern.nn.learning import hebbian_layers

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        HebbianLinear(12, 6, rule=hk.WTA()), nn.ReLU(), HebbianLinear(6, 4, rule=hk.Hebb()), nn.Linear(4, 2)
    )


X = random((2, 10, 12), seed=3)


def weights(model):
    return [layer.weight.detach().clone() for layer in hebbian_layers(model).values()]


def with_ddp(rank):
    model = DistributedDataParallel(network())
    for _ in range(3):
        with hk.learning(model, lr=0.1):
            model(X[rank]).sum().backward()
    return weights(model)


def with_ddp_into_gradients(rank):
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hk.learning(model, into="grad"):
        model(X[rank]).sum().backward()
    optimizer.step()
    return weights(model)


def with_trainer(rank):
    model = DistributedDataParallel(network())
    trainer = hk.training.hebbian_trainer(model, lr=0.1)
    trainer.run([X[rank]] * 3, max_epochs=1)
    return weights(model)


def by_name(rank):
    rates = []
    for wrap in (DistributedDataParallel, lambda model: torch.compile(DistributedDataParallel(model), backend="eager")):
        for name in ("0", "module.0", "_orig_mod.module.0"):
            model = wrap(network())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with hk.learning(model, lr={name: 0.1}):
                    layers = hebbian_layers(model)
                    rates.append([layer.learning_state and layer.learning_state.lr for layer in layers.values()])
    return list(layers), rates


def without_group(rank):
    model = network()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            with hk.learning(model, lr=0.1):
                model(X[rank])
        group = dist.group.WORLD
        with hk.learning(model, lr=0.1, group=group):
            model(X[rank])
    return [str(each.message) for each in caught]


def all_hebbian(rank):
    model = nn.Sequential(HebbianLinear(12, 6, rule=hk.WTA()))
    try:
        DistributedDataParallel(model)
    except RuntimeError as error:
        refused = str(error)
    torch.manual_seed(0)
    model[0].reset_parameters()
    with hk.learning(model, lr=0.1, group=dist.group.WORLD):
        model(X[rank])
    return refused, model[0].weight.detach()


def refused(learn):
    try:
        learn()
    except ValueError as error:
        return str(error)


def fully_sharded(rank):
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model)
    return refused(lambda: hk.learning(model, lr=0.1))


def fully_sharded_1(rank):
    from torch.distributed.fsdp import FullyShardedDataParallel

    messages = []
    for keeps in (True, False):
        model = FullyShardedDataParallel(network()[:2], use_orig_params=keeps, device_id=torch.device("cpu"))
        messages.append(refused(lambda model=model: hk.learning(model, lr=0.1)))
    return messages


def excluded_from_sharding(rank):
    from torch.distributed.fsdp import fully_shard

    model = network()
    hebbian = {layer.weight for layer in hebbian_layers(model).values()}
    fully_shard(model, ignored_params=hebbian)
    with hk.learning(model, lr=0.1, group=dist.group.WORLD):
        model(X[rank]).sum().backward()
    return weights(model)


SCENES = [with_ddp, with_ddp_into_gradients, with_trainer, by_name, without_group, all_hebbian]
SCENES += [fully_sharded, fully_sharded_1, excluded_from_sharding]


def play(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    warnings.simplefilter("ignore")
    results = {}
    for scene in SCENES:
        try:
            results[scene.__name__] = scene(rank)
        except Exception as error:
            results[scene.__name__] = error
            dist.barrier()
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(play, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def of(ranks, scene):
    results = [rank[scene.__name__] for rank in ranks]
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def learnt_by_one(steps=1):
    """The weights of one process that learns from the data of both."""
    model = network()
    for _ in range(steps):
        with hk.learning(model, lr=0.1):
            model(X.flatten(0, 1))
    return weights(model)


@pytest.mark.parametrize("scene", [with_ddp, with_trainer], ids=lambda scene: scene.__name__)
def test_ranks_of_a_ddp_model_learn_what_one_process_learns(ranks, scene):
    first, second = of(ranks, scene)
    for one, other, want in zip(first, second, learnt_by_one(steps=3), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, want, rtol=1e-5, atol=1e-6)


def test_ranks_of_a_ddp_model_have_equal_gradients(ranks):
    first, second = of(ranks, with_ddp_into_gradients)
    model = network()
    with hk.learning(model, into="grad"):
        model(X.flatten(0, 1))
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for one, other, want in zip(first, second, weights(model), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, want, rtol=1e-5, atol=1e-6)


def test_names_of_layers_do_without_the_prefixes_of_wrappers(ranks):
    for names, rates in of(ranks, by_name):
        assert names == ["0", "2"] and rates == [[0.1, None]] * 6


def test_learning_that_is_not_summed_over_processes_warns(ranks):
    for messages in of(ranks, without_group):
        assert len(messages) == 1 and messages[0].startswith(
            "hebbkern.learning: 2 processes learn each from its own data"
        )


def test_a_model_of_hebbian_parameters_only_needs_no_ddp(ranks):
    (message, first), (_, second) = of(ranks, all_hebbian)
    assert "DistributedDataParallel is not needed" in message  # torch's own; docs/distributed.md says what to do
    assert torch.equal(first, second)


def test_a_sharded_weight_is_refused_where_learning_begins(ranks):
    for message in of(ranks, fully_sharded):
        assert message.startswith(
            'hebbkern.learning: "0" must have a weight that is a parameter of its own, got a DTensor'
        )
    for flattened, hidden in of(ranks, fully_sharded_1):
        assert "got a weight sharded by FullyShardedDataParallel" in flattened and "FSDP" in hidden


def test_weights_that_are_excluded_from_sharding_learn(ranks):
    first, second = of(ranks, excluded_from_sharding)
    for one, other, want in zip(first, second, learnt_by_one(), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, want, rtol=1e-5, atol=1e-6)
