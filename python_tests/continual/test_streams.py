"""Streams of tasks: the samples of each task, their order and transformation, and that nothing is copied."""

import math

import pytest
import torch

from hebbkern.continual import streams
from hebbkern.continual.tasks import Task

CLASSES, N = 10, 200


@pytest.fixture
def data():
    """200 samples of 6 x 4 inputs, all different; labels without any order."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(N).remainder(CLASSES)[torch.randperm(N, generator=generator)]
    return torch.arange(N * 24.0).reshape(N, 6, 4), labels


def numbers(x):
    """The indices in `data` of the samples x: sample i has the inputs 24 i, ..., 24 i + 23."""
    return (x.flatten(1).min(1).values / 24).long()


def joined(batches):
    return tuple(map(torch.cat, zip(*batches, strict=True)))


def task(x, labels, indices=None, **options):
    indices = torch.arange(len(x)) if indices is None else indices
    return Task(x, labels[indices], indices, tuple(range(CLASSES)), **options)


# Task


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("size", [1, 7, 199, 200, 1000])
def test_a_task_is_cut_in_order(data, size, partial):
    x, labels = data
    batches = task(x, labels).batches(size, partial=partial)
    given = list(batches)
    size, rest = min(size, N), N % size if size < N else 0
    assert [len(y) for _, y in given] == [size] * (N // size) + ([rest] if rest and partial else [])
    assert len(given) == len(batches)
    samples, some_labels = joined(given)
    assert torch.equal(samples, x[: len(samples)]) and torch.equal(some_labels, labels[: len(samples)])


def test_iterating_a_task_gives_batches_of_100(data):
    assert [len(x) for x, _ in task(*data)] == [100, 100]


def test_the_shuffled_order_depends_on_seed_and_epoch_alone(data):
    def order(seed, epoch, size=200):
        return tuple(numbers(joined(whole.batches(size, seed=seed, epoch=epoch))[0]).tolist())

    whole = task(*data)
    torch.manual_seed(1)
    first = order(5, 0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert order(5, 0) == order(5, 0, size=7) == first and sorted(first) == list(range(N))
    assert torch.equal(torch.get_rng_state(), before)
    assert len({first, order(5, 1), order(6, 0), order(6, 1), order(2**70, 0), tuple(range(N))}) == 6


def test_shuffled_samples_keep_their_labels(data):
    x, labels = data
    part = task(x, labels, torch.arange(0, N, 3))
    samples, some_labels = joined(part.batches(9, seed=0))
    assert torch.equal(samples, x[numbers(samples)]) and torch.equal(some_labels, labels[numbers(samples)])
    assert sorted(numbers(samples).tolist()) == list(range(0, N, 3))


def test_batches_can_start_anywhere(data):
    batches = task(*data).batches(30, seed=4)
    whole = []
    for epoch in range(3):
        batches.seek(epoch * len(batches))
        whole += list(batches)
        assert torch.equal(whole[-1][0], list(task(*data).batches(30, seed=4, epoch=epoch))[-1][0])
    for start in range(len(whole)):
        batches.seek(start)
        rest = list(batches)
        assert len(rest) == len(batches) - start % len(batches)
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(rest, whole[start:], strict=False))


@pytest.mark.parametrize("indices", [torch.arange(N), torch.arange(40, 103), torch.tensor([8])])
def test_neighbouring_samples_are_views_of_the_data_set(data, indices):
    x, labels = data
    part = task(x, labels, indices)
    first = int(indices[0])
    for samples, some_labels in [*part.batches(20), part[:], part[0:1]]:
        assert samples.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        assert some_labels.untyped_storage().data_ptr() == part.labels.untyped_storage().data_ptr()
    assert torch.equal(part[:][0], x[first : first + len(indices)])


@pytest.mark.parametrize("order", [[3, 2, 1], [1, 3, 5], [4, 4, 4], [1, 2, 4], [2, 4, 3, 5], [0, 2, 2, 3]])
def test_other_samples_are_gathered_right(data, order):
    x, labels = data
    samples, some_labels = task(x, labels, torch.tensor(order))[:]
    assert numbers(samples).tolist() == order and torch.equal(some_labels, labels[order])
    assert samples.untyped_storage().nbytes() == samples.numel() * 4


def test_positions_choose_samples(data):
    x, labels = data
    part = task(x, labels, torch.arange(100, 0, -2))
    samples, some_labels = part[torch.tensor([0, 3, 1])]
    assert numbers(samples).tolist() == [100, 94, 98] and torch.equal(some_labels, labels[[100, 94, 98]])
    assert numbers(part[48:60][0]).tolist() == [4, 2]


def test_images_of_bytes_become_floats_of_0_to_1():
    images = torch.arange(256, dtype=torch.uint8).reshape(64, 2, 2)
    wanted = images.double().div(255).float()
    for stream in (
        streams.permuted(images, torch.zeros(64).long(), 1, identity_first=True),
        streams.split(images, torch.zeros(64).long(), 1),
    ):
        for samples, _ in (stream[0][:], joined(stream[0].batches(9))):
            assert samples.dtype == torch.float32 and torch.equal(samples, wanted)
    mixed, _ = streams.mixture([("bytes", images, torch.zeros(64).long())], size=4)[0][:]
    assert torch.equal(mixed[:, 1, 1:3, 1:3], wanted)
    assert images.dtype == torch.uint8 and images[63, 1, 1] == 255


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_floats_stay_as_they_are(data, dtype):
    x, labels = data
    assert {samples.dtype for samples, _ in task(x.to(dtype), labels)} == {dtype}


def test_a_map_style_data_set_is_read_item_by_item(data):
    x, labels = data

    class Reading(torch.utils.data.Dataset):
        read = 0

        def __len__(self):
            return N

        def __getitem__(self, i):
            self.read += 1
            return x[i], int(labels[i]), "more"

    dataset = Reading()
    part = task(dataset, labels, torch.arange(0, N, 2), transform=lambda x: x + 1)
    samples, some_labels = next(iter(part.batches(5)))
    assert dataset.read == 5 and torch.equal(samples, x[0:10:2] + 1) and torch.equal(some_labels, labels[0:10:2])


# split


def test_split_mnist_has_five_tasks_of_two_classes_each(data):
    x, labels = data
    stream = streams.split(x, labels)
    assert [part.classes for part in stream] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert [part.name for part in stream] == ["0/1", "2/3", "4/5", "6/7", "8/9"]
    for part in stream:
        wanted = [i for i in range(N) if int(labels[i]) in part.classes]
        samples, some_labels = part[:]
        assert numbers(samples).tolist() == wanted and torch.equal(some_labels, labels[wanted])
        assert part.samples == len(wanted) and part.x is x


def test_the_order_of_the_classes_can_be_chosen(data):
    stream = streams.split(*data, 3, classes=[7, 0, 3, 9, 2, 1])
    assert [part.classes for part in stream] == [(7, 0), (3, 9), (2, 1)]
    assert [set(part.labels.tolist()) for part in stream] == [{7, 0}, {3, 9}, {2, 1}]


def test_as_many_tasks_as_classes_give_one_class_after_another(data):
    x, labels = data
    samples, some_labels = joined(streams.unbounded(streams.split(x, labels, CLASSES), 30))
    assert some_labels.tolist() == sorted(labels.tolist())
    assert torch.equal(numbers(samples), labels.argsort(stable=True))


def test_labels_count_from_0_in_each_task_or_go_on(data):
    stream = streams.split(*data, 2, classes=[9, 4, 6, 1])
    own, shared = streams.relabel(stream), streams.relabel(stream, shared=True)
    names = {9: 0, 4: 1, 6: 2, 1: 3}
    for t, part in enumerate(stream):
        wanted = torch.tensor([names[label] for label in part.labels.tolist()])
        assert torch.equal(shared[t].labels, wanted) and torch.equal(own[t].labels, wanted - 2 * t)
        assert own[t].classes == (0, 1) and shared[t].classes == (2 * t, 2 * t + 1)
        assert own[t].x is part.x and own[t].indices is part.indices


def test_test_data_that_lack_a_class_are_numbered_like_the_train_data(data):
    x, labels = data
    few = labels != 0
    train, test = streams.permuted(x, labels, 2), streams.permuted(x[few], labels[few], 2)
    for part in streams.relabel(test, like=train):
        assert torch.equal(part.labels, labels[few])
    assert torch.equal(streams.relabel(test)[0].labels, labels[few] - 1)  # on their own they begin with 0
    with pytest.raises(ValueError, match=r"classes must hold all labels of 'permutation 1', got no \{0\}"):
        streams.relabel(train, like=test)
    with pytest.raises(ValueError, match=r"like must have as many tasks \(2\), got 1"):
        streams.relabel(train, like=test[:1])


# permuted


def test_each_task_permutes_all_inputs_of_all_samples_alike(data):
    x, labels = data
    stream = streams.permuted(x, labels, 4, seed=1)
    orders = set()
    for part in stream:
        samples, some_labels = part[:]
        order = samples[0].flatten().long()  # the first sample counts its inputs
        assert samples.shape == x.shape and sorted(order.tolist()) == list(range(24))
        assert torch.equal(samples.flatten(1), x.flatten(1)[:, order]) and torch.equal(some_labels, labels)
        orders.add(tuple(order.tolist()))
    assert len(orders) == 4 and tuple(range(24)) not in orders


def test_the_first_task_can_stay_as_it_is(data):
    x, labels = data
    stream, other = (streams.permuted(x, labels, 3, seed=1, identity_first=first) for first in (True, False))
    assert torch.equal(stream[0][:][0], x) and not torch.equal(other[0][:][0], x)
    assert all(torch.equal(a[:][0], b[:][0]) for a, b in zip(stream[1:], other[1:], strict=True))


def test_train_and_test_data_are_permuted_alike(data):
    x, labels = data
    train = streams.permuted(x, labels, 3, seed=7)
    torch.manual_seed(0)
    for view in (x[50:90], x[50:90].flatten(1), x[50:90].reshape(40, 1, 4, 6).double()):
        test = streams.permuted(view, labels[50:90], 5, seed=7)
        for here, there in zip(train, test, strict=False):
            assert torch.equal(here[50:90][0].flatten(1).double(), there[:][0].flatten(1).double())
    other = streams.permuted(x, labels, 3, seed=8)
    assert not any(torch.equal(a[:][0], b[:][0]) for a in train for b in other)


def test_no_stream_copies_the_data_set(data):
    x, labels = torch.zeros(1000, 4000), torch.arange(1000) % 10
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        made = (
            streams.permuted(x, labels, 10)
            + streams.split(x, labels)
            + streams.imbalanced(streams.relabel(streams.permuted(x, labels, 10), shared=True))
        )
        made += streams.mixture([("a", x.view(-1, 1, 50, 80), labels)], size=80)
        for part in made:
            next(iter(part.batches(5)))
    taken = sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())
    assert {part.x.untyped_storage().data_ptr() for part in made} == {x.untyped_storage().data_ptr()}
    assert 0 < taken < x.untyped_storage().nbytes() / 2  # everything that was ever allocated, though freed since
    assert sum(part.indices is made[0].indices and part.labels is labels for part in made) == 10


# imbalanced


def test_counts_stay_of_each_class_in_each_task(data):
    x, labels = data
    counts = torch.arange(30).reshape(CLASSES, 3) % 21
    stream = streams.imbalanced(streams.permuted(x, labels, 3), counts.tolist(), seed=2)
    for t, part in enumerate(stream):
        assert torch.bincount(part.labels, minlength=CLASSES).tolist() == counts[:, t].tolist()
        assert part.indices.tolist() == sorted(set(part.indices.tolist()))
        assert torch.equal(part.labels, labels[part.indices]) and part.classes == tuple(range(CLASSES))
    whole = streams.permuted(x, labels, 3)[1]
    assert torch.equal(stream[1][:][0], whole[stream[1].indices][0])  # permuted as before


def test_rows_of_a_table_are_the_classes_of_each_task(data):
    stream = streams.split(*data, 2, classes=[9, 4, 6, 1])
    first, second = streams.imbalanced(stream, [[1, 2], [3, 4]])
    assert (first.labels.bincount()[[9, 4]].tolist(), second.labels.bincount()[[6, 1]].tolist()) == ([1, 3], [2, 4])


def test_table_2_of_the_paper_adds_up_and_fits_mnist():
    totals = [30609, 34515, 26587, 31120, 31781, 32000, 28714, 35622, 26012, 25860]  # its last row
    totals[3] += 30  # where the paper's own entries make 31150
    assert [sum(column) for column in zip(*streams.DHP_COUNTS, strict=True)] == totals
    mnist = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # training images of each digit
    labels = torch.arange(10).repeat_interleave(torch.tensor(mnist))
    stream = streams.imbalanced(streams.permuted(torch.zeros(60000, 1), labels), streams.DHP_COUNTS)
    assert [part.samples for part in stream] == totals


def test_probabilities_of_0_and_1_keep_and_remove_all(data):
    removal = torch.zeros(CLASSES, 2).double()
    removal[4, 0] = removal[:9, 1] = 1
    first, second = streams.imbalanced(streams.permuted(*data, 2), removal=removal.tolist())
    assert torch.bincount(first.labels).tolist() == [20] * 4 + [0] + [20] * 5
    assert second.labels.tolist() == [9] * 20


def test_a_share_of_1_less_the_probability_stays():
    labels = torch.arange(2).repeat_interleave(10000)
    stream = streams.permuted(torch.zeros(20000, 1), labels, 2)
    removal = [[0.1, 0.9], [0.5, 0.3]]
    for t, part in enumerate(streams.imbalanced(stream, removal=removal)):
        for c in range(2):
            p = removal[c][t]
            assert abs((part.labels == c).sum() - 10000 * (1 - p)) < 5 * math.sqrt(10000 * p * (1 - p))


def test_drawn_probabilities_are_uniform():
    """400 shares are uniform in (0, 1), by the Kolmogorov-Smirnov test at 0.1 %: 1.95 / sqrt(n)."""
    labels = torch.arange(20).repeat_interleave(500)
    stream = streams.imbalanced(streams.permuted(torch.zeros(10000, 1), labels, 20), seed=3)
    shares = torch.cat([torch.bincount(part.labels, minlength=20) / 500 for part in stream]).double().sort().values
    distance = (shares - (torch.arange(400).double() + 0.5) / 400).abs().max()
    assert distance < 1.95 / 20


def test_removed_samples_depend_on_their_own_seed(data):
    x, labels = data

    def kept(seed, permutation=0, tasks=2):
        return [
            part.indices.tolist()
            for part in streams.imbalanced(streams.permuted(x, labels, tasks, seed=permutation), seed=seed)
        ]

    torch.manual_seed(1)
    first = kept(0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert kept(0, permutation=9) == kept(0, tasks=4)[:2] == first
    assert torch.equal(torch.get_rng_state(), before)
    assert first[0] != first[1] and kept(1)[0] != first[0]


# mixture


def test_images_of_all_sets_get_one_shape():
    generator = torch.Generator().manual_seed(0)
    grey, colour = torch.rand(5, 28, 28, generator=generator), torch.rand(4, 3, 32, 32, generator=generator)
    odd = torch.rand(3, 1, 27, 30, generator=generator)
    sets = [("grey", grey, torch.arange(5)), ("colour", colour, torch.arange(4)), ("odd", odd, torch.arange(3))]
    stream = streams.mixture(sets)
    assert [part.name for part in stream] == ["grey", "colour", "odd"]
    assert all(part[:][0].shape[1:] == (3, 32, 32) for part in stream)
    for channel in range(3):
        assert torch.equal(stream[0][:][0][:, channel, 2:30, 2:30], grey)
        assert torch.equal(stream[2][:][0][:, channel, 2:29, 1:31], odd[:, 0])
    assert torch.isclose(stream[0][:][0].sum(), 3 * grey.sum()) and torch.isclose(stream[2][:][0].sum(), 3 * odd.sum())
    assert stream[1][:][0].data_ptr() == colour.data_ptr()
    assert [part.classes for part in streams.relabel(stream, shared=True)] == [
        (0, 1, 2, 3, 4),
        (5, 6, 7, 8),
        (9, 10, 11),
    ]
    (one,) = streams.mixture([("grey", grey, torch.arange(5))], size=28, channels=1)
    assert torch.equal(one[:][0], grey[:, None])


def test_split_cifar_10_and_100_is_the_sum_of_two_streams():
    """Zenke et al. 2017: CIFAR-10 whole, then five tasks of ten consecutive classes of CIFAR-100."""
    ten, hundred = torch.zeros(20, 3, 32, 32), torch.zeros(200, 3, 32, 32)
    stream = streams.mixture([("CIFAR-10", ten, torch.arange(20) % 10)])
    stream = stream + streams.split(hundred, torch.arange(200) % 100, 5, classes=range(50))
    heads = streams.relabel(stream)
    assert len(stream) == 6 and [part.classes for part in heads] == [tuple(range(10))] * 6
    assert streams.relabel(stream, shared=True)[5].classes == tuple(range(50, 60))


# unbounded


@pytest.mark.parametrize("size", [1, 3, 20, 33, 64, 500])
@pytest.mark.parametrize("partial", [False, True])
def test_batches_span_the_boundaries(data, size, partial):
    x, labels = data
    stream = streams.split(x, labels)
    order = torch.cat([part.indices for part in stream])
    given = list(streams.unbounded(iter(stream), size, partial=partial))
    rest = [N % size] if N % size and partial else []
    assert [len(y) for _, y in given] == [size] * (N // size) + rest
    if given:
        samples, some_labels = joined(given)
        assert torch.equal(numbers(samples), order[: len(samples)]) and torch.equal(
            some_labels, labels[order][: len(samples)]
        )


def test_batches_inside_one_task_stay_views(data):
    x, labels = data
    halves = [task(x, labels, torch.arange(70)), task(x, labels, torch.arange(70, N))]
    views = [samples.untyped_storage().data_ptr() == x.data_ptr() for samples, _ in streams.unbounded(halves, 30)]
    assert views == [True, True, False, True, True, True, True]


# tasks in trainings and evaluations


def test_evaluations_take_a_task(data):
    from hebbkern.evaluation.features import batches

    seen, labels = joined(batches(streams.permuted(*data, 1)[0], batch_size=64))
    assert torch.equal(labels, data[1]) and torch.equal(seen[:, 0], streams.permuted(*data, 1)[0][:][0][:, 0])


def test_trainings_take_the_batches_of_a_task(data):
    training = pytest.importorskip("hebbkern.training", reason="pytorch-ignite is not installed", exc_type=ImportError)
    import hebbkern as hk

    whole, seen = task(*data, transform=lambda x: x.flatten(1) / 4800), []
    layer = hk.nn.HebbianLinear(24, 5, rule=hk.WTA())
    layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].clone()))
    training.train(layer, whole.batches(64, seed=1), lr=0.1, epochs=2)
    wanted = [x for epoch in range(2) for x, _ in whole.batches(64, seed=1, epoch=epoch)]
    assert len(seen) == 8 and all(torch.equal(a, b) for a, b in zip(seen, wanted, strict=True))


# errors


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda x, y: streams.split(x.numpy(), y), "x must be a tensor, got ndarray"),
        (lambda x, y: streams.split(x[:0], y[:0]), r"x must be \[n, ...\] with at least one sample, got \[0, 6, 4\]"),
        (lambda x, y: streams.permuted(x[:, 0, 0], y), r"x must be \[n, ...\] with at least one sample, got \[200\]"),
        (lambda x, y: streams.split(x, y.tolist()), "labels must be a tensor, got list"),
        (lambda x, y: streams.split(x, y[:4]), r"labels must be int64 \[200\], one for each sample, got int64 \[4\]"),
        (
            lambda x, y: streams.permuted(x, y.int()),
            r"labels must be int64 \[200\], one for each sample, got int32 \[200\]",
        ),
        (lambda x, y: streams.split(x, y, 20), r"tasks must divide the number of classes \(10\), got 20"),
        (lambda x, y: streams.split(x, y, 3), r"tasks must divide the number of classes \(10\), got 3"),
        (lambda x, y: streams.split(x, y, 0), "tasks must be at least 1, got 0"),
        (lambda x, y: streams.split(x, y, 2.0), "tasks must be a whole number, got 2.0"),
        (lambda x, y: streams.split(x, y, 2, classes=[1, 12]), r"classes must be labels .*each once, got \[1, 12\]"),
        (lambda x, y: streams.split(x, y, 2, classes=[1, 1]), r"classes must be labels .*each once, got \[1, 1\]"),
        (lambda x, y: streams.split(x, y, 1, classes=[]), r"tasks must divide the number of classes \(0\), got 1"),
        (lambda x, y: streams.permuted(x, y, 0), "tasks must be at least 1, got 0"),
        (lambda x, y: streams.permuted(x, y, seed=-1), "seed must be at least 0, got -1"),
        (lambda x, y: streams.mixture([]), "sets must hold at least one data set, got none"),
        (lambda x, y: streams.mixture([("a", x[:, None].repeat(1, 2, 1, 1), y)]), r"images of 'a' must be .*1 or 3, H"),
        (
            lambda x, y: streams.mixture([("a", x, y)], size=5),
            r"images of 'a' must be .*with H and W at most 5, got \[200, 6, 4\]",
        ),
        (lambda x, y: streams.mixture([("a", x.flatten(1), y)]), r"images of 'a' must be .*got \[200, 24\]"),
        (lambda x, y: task(x, y).batches(0), "batch_size must be at least 1, got 0"),
        (lambda x, y: task(x, y).batches(5, seed=-1), "seed must be at least 0, got -1"),
        (lambda x, y: task(x, y).batches(5, epoch=-1), "epoch must be at least 0, got -1"),
        (lambda x, y: streams.unbounded([task(x, y)], 0), "batch_size must be at least 1, got 0"),
        (lambda x, y: task(x, y, torch.tensor([], dtype=torch.int64), name="a"), "task 'a' must hold at least one"),
        (lambda x, y: Task(x, y[:1], torch.tensor([200]), ()), "indices must be from 0 to 199, got 200 to 200"),
        (lambda x, y: Task(x, y[:1], torch.tensor([-1]), ()), "indices must be from 0 to 199, got -1 to -1"),
        (lambda x, y: Task(x, y[:1], torch.tensor([1.0]), ()), r"indices must be int64 .*got float32 \[1\] on cpu"),
        (lambda x, y: Task(x, y[:1], [1], ()), "indices must be a tensor, got list"),
        (lambda x, y: Task(x, y, torch.tensor([1]), ()), r"labels must be int64 \[1\], one for each sample"),
    ],
)
def test_wrong_streams_are_refused(data, make, message):
    with pytest.raises(ValueError, match=f"^hebbkern.continual: {message}"):
        make(*data)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"counts": [[1, 21]] * 10},
            "counts of class 0 in 'permutation 2' must be at most 20, the number of its samples, got 21",
        ),
        ({"counts": [[1, -1]] * 10}, "counts must be whole numbers of at least 0"),
        ({"counts": [[1, 0.5]] * 10}, "counts must be whole numbers of at least 0"),
        ({"counts": [[1, 1]] * 9}, r"counts must have a row .*\(10\), a column for each task \(2\), got \[9, 2\]"),
        ({"counts": [[1, 1, 1]] * 10}, r"counts must have a row .*got \[10, 3\]"),
        ({"counts": [1] * 10}, r"counts must have a row .*got \[10\]"),
        ({"removal": [[0.5, 1.5]] * 10}, "removal must be probabilities from 0 to 1"),
        ({"removal": [[0.5, math.nan]] * 10}, "removal must be probabilities from 0 to 1"),
        (
            {"counts": [[1, 1]] * 10, "removal": [[0.5, 1]] * 10},
            "removal must be None where counts are given, got both",
        ),
        ({"counts": [[1, 0]] * 10}, "task 'permutation 2' must hold at least one sample, got none"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
    ],
)
def test_wrong_tables_are_refused(data, options, message):
    with pytest.raises(ValueError, match=f"^hebbkern.continual: {message}"):
        streams.imbalanced(streams.permuted(*data, 2), **options)


def test_streams_do_not_depend_on_the_default_device():
    x, labels = torch.arange(240.0).view(40, 6), torch.arange(40) % 4

    def batches():
        tasks = streams.imbalanced(streams.permuted(x, labels, 2, seed=3)) + streams.split(x, labels, 2)
        return [batch for task in tasks for batch in task.batches(7, seed=5)]

    want = batches()
    with torch.device("meta"):
        got = batches()
    assert all(
        torch.equal(a, b) for pair, other in zip(want, got, strict=True) for a, b in zip(pair, other, strict=True)
    )
