"""Batches: every sample once an epoch, in a seeded order that starts anywhere and that any number of ranks shares."""

import pytest
import torch

training = pytest.importorskip("hebbkern.training", reason="pytorch-ignite is not installed", exc_type=ImportError)

N = 23
X, LABELS = torch.arange(N * 2.0).reshape(N, 2), torch.arange(N)


def batches(**options):
    return training.Batches(X, LABELS, **{"batch_size": 5, "seed": 7} | options)


def epochs(data, number=1, start=0):
    """What `number` epochs from batch `start` on give, in the trainer's way: seek, then iterate."""
    given, iteration = [], start
    while iteration < number * len(data):
        data.seek(iteration)
        given += list(data)
        iteration = (iteration // len(data) + 1) * len(data)
    return given


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("size", [1, 4, 5, 22, 23, 24, 100])
def test_an_epoch_is_a_permutation_cut_in_batches(size, partial):
    data = batches(batch_size=size, partial=partial)
    sizes = [size] * (N // size) + ([N % size] if N % size and partial else []) if size <= N else [N]
    given = epochs(data)
    assert [len(x) for x, _ in given] == sizes and len(data) == len(sizes)
    assert all(torch.equal(x, X[labels]) for x, labels in given)
    labels = torch.cat([labels for _, labels in given])
    assert len(labels.unique()) == len(labels) == sum(sizes)
    if sum(sizes) == N > size:
        assert torch.equal(labels.sort()[0], LABELS) and not torch.equal(labels, LABELS)


@pytest.mark.parametrize("partial", [False, True])
def test_any_batch_can_be_the_first(partial):
    data = batches(partial=partial)
    whole = epochs(data, 3)
    assert len(whole) == 3 * len(data) == (15 if partial else 12)
    for start in range(len(whole)):
        rest = epochs(batches(partial=partial), 3, start)
        assert len(rest) == len(whole) - start
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(rest, whole[start:], strict=True))


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(data):
        return torch.cat([labels for _, labels in data]).tolist()

    data = batches(batch_size=N)
    torch.manual_seed(1)
    first = order(data)
    torch.manual_seed(2)
    assert order(data) == order(batches(batch_size=4, partial=True)) == first
    data.seek(1)
    assert len({tuple(first), tuple(order(data)), tuple(order(batches(batch_size=N, seed=8)))}) == 3


def test_no_global_random_numbers_are_drawn():
    before = torch.get_rng_state()
    epochs(batches(), 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_all_ranks_together_see_the_batches_of_one(ranks, partial):
    alone = epochs(batches(partial=partial), 2)
    shares = [epochs(batches(partial=partial, rank=rank, ranks=ranks), 2) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(alone)}
    for whole, *parts in zip(alone, *shares, strict=True):
        for i in range(2):
            assert torch.equal(torch.cat([part[i] for part in parts]), whole[i])
        sizes = [len(x) for x, _ in parts]
        assert max(sizes) - min(sizes) <= 1 and sum(sizes) == len(whole[0])
    if ranks == 7:
        assert min(len(x) for x, _ in shares[0] + shares[1]) == 0  # a batch of 5 or 3 samples is not enough for all


def test_images_of_bytes_become_floats_of_0_to_1():
    images = torch.arange(256, dtype=torch.uint8).reshape(64, 1, 2, 2)
    data = training.Batches(images, torch.arange(64), batch_size=16)
    for x, labels in data:
        assert x.dtype == torch.float32 and torch.equal(x, images[labels].double().div(255).float())
    assert images.dtype == torch.uint8 and data.x is images


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_floats_stay_as_they_are(dtype):
    assert {x.dtype for x, _ in training.Batches(X.to(dtype), batch_size=5)} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_batch_is_free_to_keep_and_to_change(dtype):
    source = X.to(dtype)
    data, kept = training.Batches(source.clone(), LABELS, batch_size=5), []
    for x, labels in data:
        kept.append((x, x.clone(), labels, labels.clone()))
    assert all(torch.equal(x, x_then) and torch.equal(own, then) for x, x_then, own, then in kept)
    for x, _, labels, _ in kept:
        x.fill_(-1)
        labels.fill_(-1)
    assert torch.equal(data.x, source) and torch.equal(data.labels, LABELS) and LABELS[1] == 1


def test_without_labels():
    assert [labels for _, labels in training.Batches(X, batch_size=10)] == [None, None]


def test_strided_data():
    strided = training.Batches(X.T.contiguous().T, LABELS, batch_size=5)
    assert all(torch.equal(x, X[labels]) for x, labels in strided)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rank": 2, "ranks": 2}, r"rank must be at least 0 and below ranks \(2\), got 2"),
        ({"rank": -1, "ranks": 2}, r"rank must be at least 0 and below ranks \(2\), got -1"),
        ({"ranks": 0}, r"rank must be at least 0 and below ranks \(0\), got 0"),
    ],
)
def test_what_cannot_be_cut_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        batches(**options)
    with pytest.raises(ValueError, match=r"labels must be one a sample \(23\), got 4"):
        training.Batches(X, LABELS[:4])
    with pytest.raises(ValueError, match="x must hold at least one sample, got none"):
        training.Batches(X[:0])
    with pytest.raises(ValueError, match="x must be a tensor, got ndarray"):
        training.Batches(X.numpy())
    with pytest.raises(ValueError, match="labels must be a tensor, got list"):
        training.Batches(X, LABELS.tolist())
