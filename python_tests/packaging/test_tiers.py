"""Which tests a run holds (tiers.py): whatever the seed, each value is drawn; other seeds draw others."""

import itertools
import multiprocessing
import time
from types import SimpleNamespace

import pytest

import tiers

DTYPES, LAYOUTS, LAYERS = ["float32", "float64"], ["contiguous", "sliced", "offset"], range(7)

SECONDS = {"test_hour": 3600, "test_minute": 60, "test_bug": 40}  # of slow tests


def item(name, **parameters):
    """Of a pytest session, as far as tiers.py looks at it."""
    marks = [SimpleNamespace(args=([key], None), kwargs={}) for key in parameters]
    made = SimpleNamespace(
        nodeid=f"{name}{list(parameters.values())}",
        path="test_file.py",
        originalname=name,
        iter_markers=lambda name: marks,
    )
    if parameters:
        made.callspec = SimpleNamespace(params=parameters)
    return Item(made)


class Item:
    """Hashable by identity, as pytest's are."""

    def __init__(self, attributes):
        vars(self).update(vars(attributes))


@pytest.fixture
def suite():
    combinations = list(itertools.product(DTYPES, LAYOUTS, LAYERS))
    items = [item("test_sums", dtype=d, layout=o, layer=y) for d, o, y in combinations]
    slow = [item("test_hour"), item("test_minute"), *(item("test_bug", n=n) for n in "abcd")]
    return [*items, item("test_regression"), *slow]


def drawn(suite, seed, kernels):
    return tiers.drawn(suite, lambda item: kernels, lambda item: SECONDS.get(item.originalname), seed)


def values(items, *names):
    return {tuple(i.callspec.params[name] for name in names) for i in items if i.originalname == "test_sums"}


@pytest.mark.parametrize("kernels", ["eager", "cpu"])
def test_every_value_is_drawn_whatever_the_seed(suite, kernels):
    for seed in range(20):
        kept = drawn(suite, seed, kernels)
        for name, wanted in (("dtype", DTYPES), ("layout", LAYOUTS), ("layer", LAYERS)):
            assert values(kept, name) == {(value,) for value in wanted}


@pytest.mark.parametrize("kernels", ["triton", "cuda"])
def test_slow_kernels_are_drawn_by_every_seed_and_every_value_by_several(suite, kernels):
    sets = [drawn(suite, seed, kernels) for seed in range(20)]
    assert all(values(kept, "layer") for kept in sets)
    assert max(len(values(kept, "layer")) for kept in sets) < len(LAYERS)
    for name, wanted in (("dtype", DTYPES), ("layout", LAYOUTS), ("layer", LAYERS)):
        assert values(set().union(*sets), name) == {(value,) for value in wanted}


def test_fast_backends_see_each_two_values_meet(suite):
    kept = drawn(suite, "seed", "cpu")
    assert values(kept, "layout", "layer") == set(itertools.product(LAYOUTS, LAYERS))
    assert len(values(kept, "dtype", "layout", "layer")) < len(DTYPES) * len(LAYOUTS) * len(LAYERS)


def test_seeds_draw_others_until_all_have_run(suite):
    sets = [drawn(suite, seed, "cuda") for seed in range(300)]
    assert sets[0] != sets[1] and sets[0] == drawn(suite, 0, "cuda")
    assert len(values(set().union(*sets), "dtype", "layout", "layer")) == len(DTYPES) * len(LAYOUTS) * len(LAYERS)


def test_regressions_always_run_and_slow_ones_take_turns(suite):
    sets = [drawn(suite, seed, None) for seed in range(20)]
    names = [[i.originalname for i in kept] for kept in sets]
    assert all(n.count("test_regression") == 1 and "test_hour" not in n for n in names)
    # 150 seconds: one of each before a second of any
    assert all(n.count("test_minute") == 1 and n.count("test_bug") == 2 for n in names)
    assert {i.nodeid for i in set().union(*sets) if i.originalname == "test_bug"} == {
        f"test_bug['{n}']" for n in "abcd"
    }


def test_rows_of_one_parametrize_are_one_value():
    mark = SimpleNamespace(args=("a, b", None), kwargs={})
    rows = [item("test_rows", a=a, b=b) for a, b in [(1, 1), (1, 2), (2, 1), (2, 2)]]
    for row in rows:
        row.iter_markers = lambda name: [mark]
    assert len(tiers.drawn(rows, lambda item: None, lambda item: None, 0)) == 4


def test_times():
    assert [tiers.seconds(text) for text in ("90", "90s", "10m", "0.5m")] == [90, 90, 600, 30]


def take_turns(files, alone, log, rounds):
    for _ in range(rounds):
        with tiers.turn(alone, files):
            log.put(("begins", alone))
            time.sleep(0.005)
            log.put(("ends", alone))


def test_a_serial_test_runs_alone_and_is_not_overtaken_for_long(tmp_path):
    files = tmp_path / "queue", tmp_path / "room"
    for file in files:
        file.touch()
    processes = multiprocessing.get_context("spawn")
    log = processes.SimpleQueue()
    workers = [processes.Process(target=take_turns, args=(files, alone, log, 20)) for alone in (False, False, True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    events = [log.get() for _ in range(2 * 20 * len(workers))]
    running = 0
    for event, alone in events:
        running += 1 if event == "begins" else -1
        assert not alone or running == (event == "begins"), "another test ran beside a serial one"
