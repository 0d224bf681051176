"""Data-parallel training: processes with a share each learn what one process learns from the whole."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianConv2d, HebbianLinear
from trainings import training

dist = torch.distributed
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

RULES = [hk.WTA(), hk.KrotovHopfield(), hk.Sanger(), hk.SoftWTA(), hk.Supervised()]
SAMPLES, BATCH_SIZE = 50, 16  # three batches of 16, and one of 2


def join(rank, folder, ranks):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    return dist.group.WORLD


def data(rank=0, ranks=1, samples=SAMPLES):
    x, labels = random((samples, 1, 6, 6), seed=3), torch.arange(samples) % 3
    return training.Batches(x, labels, batch_size=BATCH_SIZE, partial=True, rank=rank, ranks=ranks)


def network(rule):
    """Sixty neurons in the first layer: no share of a batch of two has a patch for each of them."""
    torch.manual_seed(0)
    layers = (
        HebbianConv2d(1, 60, 3, rule=rule),
        nn.ReLU(),
        nn.Flatten(),
        HebbianLinear(960, 3, rule=hk.Supervised()),
        nn.Linear(3, 3),
    )
    return nn.Sequential(*layers)


def learn_all(group=None, rank=0, ranks=1):
    """The weights that each rule learns, also with a supervised part, also greedily."""
    learnt = []
    for rule in RULES:
        model = network(rule)
        model[0].weight += rank  # the first process counts
        training.train(model, data(rank, ranks), lr=0.05, epochs=2, group=group)
        learnt.append(model.state_dict())
    model = network(hk.SoftWTA())
    options = {"supervised_from": "4", "optimizer": torch.optim.Adam(model[4].parameters(), lr=0.01)}
    training.train(model, data(rank, ranks), lr=0.05, epochs=1, order="greedy", group=group, **options)
    learnt.append(model.state_dict())
    return learnt


def share(rank, folder, ranks):
    group = join(rank, folder, ranks)
    torch.save(learn_all(group, rank, ranks), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow(34)
@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_learn_like_one(tmp_path, ranks):
    """With three, the last batch leaves one of them without a sample."""
    torch.multiprocessing.spawn(share, args=(str(tmp_path), ranks), nprocs=ranks)
    first, *others = (torch.load(tmp_path / f"{rank}.pt") for rank in range(ranks))
    for i, (state, alone) in enumerate(zip(first, learn_all(), strict=True)):
        start = network(hk.WTA()).state_dict()
        for name, weight in state.items():
            assert all(torch.equal(other[i][name], weight) for other in others)
            torch.testing.assert_close(weight, alone[name], rtol=1e-4, atol=1e-5, msg=f"{i} {name}")
        assert not torch.equal(state["0.weight"], start["0.weight"])
    assert not torch.equal(first[-1]["4.weight"], start["4.weight"])


def revive(rank, folder, ranks):
    group = join(rank, folder, ranks)
    samples = torch.nn.functional.one_hot(torch.arange(40) % 10, 12).float()
    batches = training.Batches(samples, batch_size=20, rank=rank, ranks=ranks)
    torch.manual_seed(rank)
    model = HebbianLinear(12, 10, rule=hk.WTA())
    handlers = [training.ReviveDead(model, steps=4, group=group)]
    training.train(model, batches, lr=0.1, epochs=12, decay="constant", group=group, handlers=handlers)
    torch.save((model.weight.detach(), hk.evaluation.measures.wins(model, samples)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow(20)
def test_processes_revive_the_same_neurons(tmp_path):
    torch.multiprocessing.spawn(revive, args=(str(tmp_path), 2), nprocs=2)
    (first, wins), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first, second) and (wins == 4).all()


def learn_by_hand(group=None, rank=0, ranks=1):
    """learning, layer.learn and gradients, over a group."""
    x, labels = random((21, 12), seed=5), torch.arange(21) % 5
    own = slice(21 * rank // ranks, 21 * (rank + 1) // ranks)
    layers = []
    for rule in RULES:
        layer = HebbianLinear(12, 5, rule=rule)
        layer.weight.copy_(random((5, 12), seed=1))
        layer.frozen[3] = True
        layer.learn(x[own], lr=0.1, labels=labels[own], group=group)
        with hk.learning(layer, lr=0.1, labels=labels[own], group=group):
            layer(x[own])
        with hk.learning(layer, labels=labels[own], into="grad", group=group):
            layer(x[own])
        layers.append((layer.weight.detach(), layer.weight.grad))
    return layers


def share_by_hand(rank, folder, ranks):
    torch.save(learn_by_hand(join(rank, folder, ranks), rank, ranks), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow(25)
def test_own_loops_learn_like_one(tmp_path):
    torch.multiprocessing.spawn(share_by_hand, args=(str(tmp_path), 2), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for one, other, alone in zip(first, second, learn_by_hand(), strict=True):
        for got, same, want in zip(one, other, alone, strict=True):
            assert torch.equal(got, same)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def write(rank, folder, ranks):
    """Trains two epochs, then two more of a resumed training in new objects."""
    group = join(rank, folder, ranks)
    options = {"lr": 0.05, "group": group, "folder": f"{folder}/run", "save_every": 1}

    def stop(engine):
        if engine.state.iteration == 5:
            raise KeyboardInterrupt

    model = network(hk.WTA())
    with pytest.raises(KeyboardInterrupt):
        handlers = [(training.engine.Events.ITERATION_STARTED, stop)]
        training.train(model, data(rank, ranks), epochs=2, handlers=handlers, **options)
    model = network(hk.KrotovHopfield())  # the wrong rule, and weights that must not count
    model[0].rule = hk.WTA()
    nn.init.zeros_(model[3].weight)
    dist.barrier()
    engine = training.train(model, data(rank, ranks), epochs=2, resume=True, **options)
    assert engine.state.iteration == 8
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow(18)
def test_one_process_writes_and_all_read(tmp_path):
    torch.multiprocessing.spawn(write, args=(str(tmp_path), 2), nprocs=2)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["checkpoint_7.safetensors", "checkpoint_8.safetensors"]
    alone = network(hk.WTA())
    training.train(alone, data(), lr=0.05, epochs=2)
    for rank in (0, 1):
        for name, weight in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(weight, alone.state_dict()[name], rtol=1e-4, atol=1e-5)


def drop(rank, folder, ranks):
    """Dropout, whose numbers are other ones in each process: by the seed, and for shares of 5 and of 4 samples."""
    group = join(rank, folder, ranks)
    x, labels = random((27, 6), seed=3), torch.arange(27) % 3

    def run(name, seed, handlers=(), **options):
        torch.manual_seed(0)
        model = nn.Sequential(HebbianLinear(6, 8, rule=hk.Oja()), nn.Dropout(0.5), nn.Linear(8, 3))
        torch.manual_seed(seed + rank)
        batches = training.Batches(x, labels, batch_size=9, rank=rank, ranks=ranks)
        options |= {"supervised_from": "2", "optimizer": torch.optim.SGD(model[2].parameters(), lr=0.5)}
        options |= {"folder": f"{folder}/{name}", "group": group, "handlers": handlers}
        training.train(model, batches, lr=0.1, epochs=3, **options)
        return model.state_dict()

    def stop(engine):
        if engine.state.iteration == 5:
            raise KeyboardInterrupt

    whole = run("whole", 1)
    with pytest.raises(KeyboardInterrupt):
        run("stopped", 1, [(training.engine.Events.ITERATION_STARTED, stop)])
    resumed = run("stopped", 5, resume=True)
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    dist.destroy_process_group()


@pytest.mark.slow(15)
def test_each_process_goes_on_with_its_random_numbers(tmp_path):
    torch.multiprocessing.spawn(drop, args=(str(tmp_path), 2), nprocs=2)


DYING = """
import os, signal, sys, time
import torch, test_distributed
from trainings import training

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()

def die(engine):
    if rank == 1 and engine.state.iteration == 6:
        with open(sys.argv[1] + ".died", "w") as file:
            file.write(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)

training.train(
    test_distributed.network(test_distributed.hk.WTA()), test_distributed.data(rank, 2), lr=0.05, epochs=10**6,
    group=torch.distributed.group.WORLD, folder=sys.argv[1], handlers=[(training.engine.Events.ITERATION_STARTED, die)],
)
"""


@pytest.mark.slow(21)
def test_a_process_that_dies_ends_the_job(tmp_path):
    """Started by torchrun; the checkpoint of the first epoch stays whole."""
    script, here = tmp_path / "dying.py", Path(__file__).parent
    script.write_text(DYING)
    path = os.pathsep.join([str(here), *sys.path])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0 and "SIGKILL" in done.stderr, done.stderr
    assert time.time() - float((tmp_path / "run.died").read_text()) < 30
    latest = training.last_checkpoint(tmp_path / "run")
    assert latest.name == "checkpoint_4.safetensors"
    assert training.checkpoint.load(latest)["trainer"]["iteration"] == 4
