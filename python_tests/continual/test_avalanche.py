"""from_avalanche on imitations of Avalanche's experiences, and on the library itself if it is installed."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch.utils.data import TensorDataset

from hebbkern.continual import streams
from hebbkern.continual.avalanche import from_avalanche

N = 60


def data():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(N, 1, 3, 3, generator=generator), torch.randperm(N, generator=generator) % 6


class Labelled(TensorDataset):
    """Items (x, label as a number), and targets, as torchvision's data sets have them."""

    def __init__(self, x, labels):
        super().__init__(x, labels)
        self.targets = labels.tolist()

    def __getitem__(self, i):
        x, label = super().__getitem__(i)
        return x, int(label)


class Items(list):
    """A data set as Avalanche has them: items (x, label, task label), and targets of any sequence type."""

    @property
    def targets(self):
        return tuple(label for _, label, _ in self)


@dataclass
class Experience:
    dataset: object


def experience(chosen=range(N), **more):
    x, labels = data()
    made = Experience(Items((x[i], int(labels[i]), 0) for i in chosen))
    for name, value in more.items():
        setattr(made, name, value)
    return made


def check(tasks, experiences):
    """Each task has the samples and labels of its experience, in its order."""
    for task, given in zip(tasks, experiences, strict=True):
        x, labels = task[:]
        wanted = list(given.dataset)
        assert torch.equal(x, torch.stack([item[0] for item in wanted])) and labels.dtype == torch.int64
        assert labels.tolist() == [item[1] for item in wanted]


def test_experiences_become_tasks():
    experiences = [experience(range(9)), experience(range(30, 60))]
    tasks = from_avalanche(iter(experiences))
    check(tasks, experiences)
    assert [task.name for task in tasks] == ["experience 1", "experience 2"]
    assert [task.classes for task in tasks] == [tuple(sorted(set(e.dataset.targets))) for e in experiences]
    assert tasks[1].x is experiences[1].dataset


def test_classes_are_those_of_the_experience():
    (task,) = from_avalanche([experience(classes_in_this_experience=[5, 4, 3, 2, 1, 0, 7])])
    assert task.classes == (0, 1, 2, 3, 4, 5, 7)


def test_tasks_of_avalanche_behave_as_others():
    x, labels = data()
    other = streams.permuted(x, labels, 1, identity_first=True)
    stream = from_avalanche([experience()])
    for make in (lambda s: s, streams.imbalanced, lambda s: streams.relabel(s, shared=True)):
        here, there = make(stream)[0], make(other)[0]
        pairs = zip(here.batches(7, seed=1), there.batches(7, seed=1), strict=True)
        assert all(torch.equal(a, b) and torch.equal(y, z) for (a, y), (b, z) in pairs)
    assert [len(y) for _, y in streams.unbounded(stream + stream, 50)] == [50, 50, 20]


@pytest.mark.parametrize(
    "experiences, message",
    [
        (3, r"experiences must be a stream \(benchmark.train_stream\), got int"),
        ([object()], "experience 1 must have a dataset with targets, got object"),
        ([experience(), Experience([1])], "experience 2 must have a dataset with targets, got list"),
        ([Experience(Items())], "task 'experience 1' must hold at least one sample, got none"),
        ([Experience(Items([("a picture", 0, 0)]))], "samples of experience 1 must be tensors, got str"),
    ],
)
def test_wrong_experiences_are_refused(experiences, message):
    with pytest.raises(ValueError, match=f"^hebbkern.continual: {message}"):
        from_avalanche(experiences)


def test_targets_that_the_items_do_not_have_are_refused():
    class Other(Items):
        targets = (0, 1, 1)

    items = Other([(torch.zeros(2), 0, 0), (torch.zeros(2), 0, 0), (torch.zeros(2), 1, 0)])
    with pytest.raises(ValueError, match=r"labels of experience 1 must be its targets \(1\), got 0"):
        from_avalanche([Experience(items)])


@pytest.fixture(scope="module")
def benchmarks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it imports warns of solvers and plugins that are not there
        reason = "avalanche-lib is not installed"
        return pytest.importorskip("avalanche.benchmarks", reason=reason, exc_type=ImportError)


@pytest.mark.parametrize(
    "options, classes",
    [
        ({"task_labels": False, "shuffle": False}, [(0, 1), (2, 3), (4, 5)]),
        ({"task_labels": False, "fixed_class_order": [4, 0, 1, 5, 3, 2]}, [(0, 4), (1, 5), (2, 3)]),
        ({"task_labels": True, "class_ids_from_zero_in_each_exp": True}, [(0, 1)] * 3),
        ({"task_labels": False, "class_ids_from_zero_from_first_exp": True}, [(0, 1), (2, 3), (4, 5)]),
    ],
)
def test_new_classes(benchmarks, options, classes):
    x, labels = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        benchmark = benchmarks.nc_benchmark(Labelled(x, labels), Labelled(x[:30], labels[:30]), 3, seed=1, **options)
        for stream in (benchmark.train_stream, benchmark.test_stream):
            tasks = from_avalanche(stream)
            check(tasks, stream)
            assert [task.classes for task in tasks] == classes


def test_a_split_is_the_same_from_both(benchmarks):
    x, labels = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sets = Labelled(x, labels), Labelled(x[:30], labels[:30])
        benchmark = benchmarks.nc_benchmark(*sets, 3, task_labels=False, shuffle=False)
        there = from_avalanche(benchmark.train_stream)
    for a, b in zip(streams.split(x, labels, 3), there, strict=True):
        assert a.samples == b.samples and a.classes == b.classes
        assert torch.equal(a[:][0].sort(0).values, b[:][0].sort(0).values)


def test_new_instances_and_class_incremental(benchmarks):
    x, labels = data()
    sets = {"train": Labelled(x, labels), "test": Labelled(x[:30], labels[:30])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        instances = benchmarks.ni_benchmark(sets["train"], sets["test"], 4, seed=1)
        check(from_avalanche(instances.train_stream), instances.train_stream)
        incremental = benchmarks.class_incremental_benchmark(
            dict(sets), num_experiences=2, class_order=[5, 0, 3, 1, 2, 4]
        )
        tasks = from_avalanche(incremental.test_stream)
        check(tasks, incremental.test_stream)
    assert [task.classes for task in tasks] == [(0, 3, 5), (1, 2, 4)]
