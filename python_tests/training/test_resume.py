"""A training that is killed (SIGKILL, in the middle of anything) and resumed ends with the bits of one that was not."""

import multiprocessing
import random
import time

import pytest
import torch

pytest.importorskip("ignite", reason="pytorch-ignite is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

import resumable
from hebbkern import training
from hebbkern.training.checkpoint import last_checkpoint, load

# Each training is a process of its own, forked from a server that has imported everything: seconds less a start.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["resumable"])


def start(target, *arguments):
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    return process


def finish(process):
    process.join(timeout=60)
    assert process.exitcode == 0


def parts(value, place=""):
    """{place: what is there} of all that a checkpoint holds, tensors as their bytes."""
    if isinstance(value, torch.Tensor):
        return {place: (value.dtype, value.shape, value.reshape(-1).view(torch.uint8).tolist())}
    if not isinstance(value, dict | list | tuple):
        return {place: repr(value)}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {where: one for key, item in items for where, one in parts(item, f"{place}/{key}").items()}


def ending(folder):
    """All that the last checkpoint says, and the names of the files in the folder."""
    return parts(load(last_checkpoint(folder))) | {"files": sorted(path.name for path in folder.iterdir())}


def differing(a, b):
    return sorted(place for place in a.keys() | b.keys() if a.get(place) != b.get(place))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(start(resumable.run, folder))
    end = ending(folder)
    assert end["/trainer/iteration"] == repr(resumable.ITERATIONS) and len(end["files"]) == 2
    assert {"/model/0.weight", "/optimizer/state/0/momentum_buffer", "/random/python/1/0"} <= set(end)
    return end


def reached(folder):
    last = last_checkpoint(folder)
    return int(last.stem.split("_")[1]) if last else 0


def kill(process, folder, iteration, delay):
    """Kills the training a while (seconds) after it has come to `iteration`; says how far it was by then."""
    end = time.monotonic() + 60
    while reached(folder) < iteration:
        assert process.exitcode is None and time.monotonic() < end
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.join()
    assert process.exitcode == -9
    return reached(folder)


@pytest.mark.slow(83)
def test_ten_kills_change_no_bit(tmp_path, whole):
    moments, stops = random.Random(4), []
    for i in range(10):
        # Somewhere in the (i+1)th of twelve parts, but later than before; the delay ends between two writes or in one.
        iteration = max(int((i + moments.random()) * resumable.ITERATIONS / 12), reached(tmp_path) + 1)
        process = start(resumable.run, tmp_path)
        stops.append(kill(process, tmp_path, iteration, 0.02 * moments.random()))
        if last := last_checkpoint(tmp_path):
            load(last)
    assert len(set(stops)) == 10 and stops == sorted(stops) and stops[-1] < resumable.ITERATIONS
    finish(start(resumable.run, tmp_path))
    assert differing(ending(tmp_path), whole) == []


PLACES = ["half written", "before the sync", "before the name", "before the folder's sync", "before the old one goes"]


@pytest.mark.slow(37)
def test_kills_within_writes_change_no_bit(tmp_path, whole):
    for i, place in enumerate(PLACES):
        iteration = 30 + 45 * i
        process = start(resumable.run_until, place, iteration, tmp_path)
        process.join(timeout=60)
        assert process.exitcode == -9, place
        assert reached(tmp_path) == (iteration if place == "before the folder's sync" else iteration - 1), place
        assert len(list(tmp_path.glob(".*.unfinished"))) == (place in PLACES[:3]), place
    finish(start(resumable.run, tmp_path))
    assert differing(ending(tmp_path), whole) == []


@pytest.mark.slow(40)
def test_each_layer_to_its_end(tmp_path):
    folders = [tmp_path / "whole", tmp_path / "killed"]
    finish(start(resumable.run, folders[0], "greedy"))
    for iteration in (20, 110, 190):  # within the first layer's time, the second's and the supervised part's
        kill(start(resumable.run, folders[1], "greedy"), folders[1], iteration, 0.005)
    finish(start(resumable.run, folders[1], "greedy"))
    assert differing(*map(ending, folders)) == []


@pytest.mark.slow(8)
def test_a_torn_last_checkpoint_is_refused_and_left_alone(tmp_path):
    process = start(resumable.run, tmp_path)
    kill(process, tmp_path, 5, 0)
    last = last_checkpoint(tmp_path)
    earlier = last.with_name("checkpoint_1.safetensors")  # a kill may find the one before removed already
    earlier.write_bytes(last.read_bytes())
    last.write_bytes(last.read_bytes()[:-10])
    before = {path: path.read_bytes() for path in tmp_path.glob("checkpoint_*")}
    previous = max(before.keys() - {last}, key=lambda path: int(path.stem.split("_")[1]))
    message = rf"{last.name} must be a whole .*; before it, {previous.name} is whole$"
    with pytest.raises(ValueError, match=message):
        resumable.run(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.glob("checkpoint_*")} == before
    assert len(before) in (2, 3) and training.last_checkpoint(tmp_path) == last
