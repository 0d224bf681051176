"""Data-parallel learning: two processes that add their updates learn what one learns from both halves."""

import pytest
import torch
import torch.distributed as dist

import hebbkern as hk
from cases import random

RULES = [hk.KrotovHopfield(), hk.WTA(), hk.WTA(average=False), hk.Sanger(), hk.Supervised()]


def learn(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    x, labels = random((2, 30, 20), seed=2), torch.arange(60).view(2, 30) % 12
    learnt = []
    for rule in RULES:
        weight = random((12, 20), seed=1)
        update = rule.update(weight, x[rank], labels=labels[rank])
        own = update.sum.clone()
        rule.apply_(weight, update.all_reduce(), lr=0.1)
        assert torch.equal(update.sum, own)
        learnt.append(weight)
    torch.save(learnt, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow(13)
@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_learn_like_one(tmp_path):
    torch.multiprocessing.spawn(learn, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    x, labels = random((60, 20), seed=2), torch.arange(60) % 12
    for rule, one, other in zip(RULES, first, second, strict=True):
        weight = random((12, 20), seed=1)
        rule.step_(weight, x, labels=labels, lr=0.1)
        assert torch.equal(one, other)
        torch.testing.assert_close(one, weight, rtol=1e-5, atol=1e-6)
        assert not torch.equal(weight, random((12, 20), seed=1))
