"""Steps where threads are scarce: in the workers of a DataLoader, forked or not; and memory that does not grow."""

import gc
import os
import tracemalloc

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import calls
import cases
import hebbkern as hk

pytestmark = pytest.mark.serial

LARGE = cases.Layer((512, 300), (200, 300))  # worth every thread there is
RULES = [hk.KrotovHopfield(), hk.WTA(coefficient="response"), hk.Supervised(), hk.Sanger()]


def learnt(rule):
    x, weight = cases.tensors(LARGE, torch.float32, "cpu")
    for _ in range(3):
        rule.step_(weight, x, lr=0.1, labels=torch.arange(len(x)) % len(weight))
    return weight


def own_threads():
    """How many threads this process has."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("Threads:"))


started = None  # in a worker: the threads that its first steps took besides its own


def learn_first(worker):
    """Before the queue of a worker's results starts a thread."""
    global started
    before = own_threads()
    for rule in RULES:
        learnt(rule)
    started = own_threads() - before


class Steps(Dataset):
    """Item i: the weights that rule i has learnt, and how many threads the worker may and did take."""

    def __len__(self):
        return len(RULES)

    def __getitem__(self, i):
        return learnt(RULES[i]), torch.get_num_threads(), started


@pytest.mark.slow(11)
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="threads are counted as Linux does")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_step_inside_a_data_loader_takes_one_thread(threads, start):
    """Forked while this process holds a team of threads, of which the child has none."""
    threads(2)
    want = [learnt(rule) for rule in RULES]
    options = {"multiprocessing_context": start, "worker_init_fn": learn_first, "timeout": 100}
    loader = DataLoader(Steps(), batch_size=None, num_workers=2, **options)
    for weight, (got, allowed, taken) in zip(want, loader, strict=True):
        assert calls.same_bits([got], [weight])
        assert (allowed, taken) == (1, 0)


def resident():
    """Bytes of memory in use by this process, Python's and the kernels'."""
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is counted as Linux does")
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_thousand_steps_keep_no_memory(rule):
    x, weight = cases.tensors(cases.Layer((64, 1000), (64, 1000)), torch.float32, "cpu")
    labels = torch.arange(len(x)) % len(weight)

    def used_after(steps):
        for _ in range(steps):
            rule.step_(weight, x, lr=1e-4, labels=labels)
        gc.collect()
        return tracemalloc.get_traced_memory()[0], resident()

    tracemalloc.start()
    try:
        traced, whole = (after - before for before, after in zip(used_after(300), used_after(1000), strict=True))
    finally:
        tracemalloc.stop()
    assert traced < 1000  # less than a byte a step of Python's
    assert whole < 1000 * weight[0].nbytes  # less than a row a step
