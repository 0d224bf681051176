"""HEBBKERN_AUTOTUNE: tiles are timed once, kept in a file, and only on a GPU where launches run."""

import importlib
import json

import pytest
import torch

import cases
import hebbkern as hk
import interpreted
import oracle

tuning = importlib.import_module("hebbkern.backends.triton.tuning")
walk = importlib.import_module("hebbkern.backends.triton.walk")
compete = importlib.import_module("hebbkern.backends.triton.compete")

TILES = ("slow", "fast", "middling")
TIMES = {"slow": 3.0, "fast": 1.0, "middling": 2.0}


@pytest.fixture
def on_gpu(monkeypatch):
    """As if a GPU were there; yields what was timed."""
    timed = []

    def measure(call):
        timed.append(call())
        return TIMES[timed[-1]]

    monkeypatch.setattr(tuning, "timeable", lambda like: True)
    monkeypatch.setattr(tuning, "do_bench", measure)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    monkeypatch.setattr(tuning, "_known", {})
    return timed


def choose(shape=(4, 5)):
    return tuning.fastest("kernel", torch.zeros(1), shape, TILES, lambda tile: tile)


def test_without_the_variable_the_first_tile_and_no_timing(on_gpu, monkeypatch):
    monkeypatch.delenv("HEBBKERN_AUTOTUNE", raising=False)
    assert choose() == "slow" and not on_gpu


def test_the_fastest_is_kept_for_later_processes(on_gpu, monkeypatch, tmp_path):
    file = tmp_path / "tiles.json"
    monkeypatch.setenv("HEBBKERN_AUTOTUNE", str(file))
    assert choose() == "fast" and on_gpu == list(TILES)
    assert choose() == "fast" and len(on_gpu) == 3
    assert list(json.loads(file.read_text()).values()) == [1]
    monkeypatch.setattr(tuning, "_known", {})  # another process
    assert choose() == "fast" and len(on_gpu) == 3
    assert choose((4, 6)) == "fast" and len(on_gpu) == 6


def test_nothing_is_timed_where_no_launch_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("HEBBKERN_AUTOTUNE", str(tmp_path / "tiles.json"))
    monkeypatch.setattr(tuning, "do_bench", lambda call: pytest.fail("timed"))
    assert choose() == "slow"  # on the CPU
    names = interpreted.launches("compete", *compete_arguments("meta"))
    assert names and not (tmp_path / "tiles.json").exists()


def test_a_tile_that_does_not_fit_is_not_taken(on_gpu, monkeypatch, tmp_path):
    def measure(call):
        raise tuning.OutOfResources(300000, 200000, "shared memory")

    monkeypatch.setenv("HEBBKERN_AUTOTUNE", str(tmp_path / "tiles.json"))
    monkeypatch.setattr(tuning, "do_bench", lambda call: measure(call) if call() == "fast" else TIMES[call()])
    assert choose() == "middling"


@interpreted.needs_interpreter
def test_a_falling_rate_is_no_new_shape(on_gpu, monkeypatch, tmp_path):
    file = tmp_path / "tiles.json"
    monkeypatch.setenv("HEBBKERN_AUTOTUNE", str(file))
    monkeypatch.setattr(tuning, "do_bench", lambda call: (call(), 1.0)[1])
    x, weight = cases.tensors(cases.Layer((20, 30), (10, 30)), torch.float32, "cpu")
    contents = []
    with hk.backend("triton"):
        for lr in (0.3, 0.2, 0.1):
            hk.ops.winner_step_(weight, x, lr=lr)
            hk.ops.dense_step_(weight, x, lr=lr)
            contents.append(file.read_text())
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("text", ["", "[1]", '{"a": "b"}', '{"a": -1}'])
def test_a_file_of_something_else_is_refused(on_gpu, monkeypatch, tmp_path, text):
    file = tmp_path / "tiles.json"
    file.write_text(text)
    monkeypatch.setenv("HEBBKERN_AUTOTUNE", str(file))
    with pytest.raises(ValueError, match="HEBBKERN_AUTOTUNE must name a file of choices that hebbkern wrote"):
        choose()
    assert file.read_text() == text


@interpreted.needs_interpreter
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_every_tile_finds_the_winners(dtype, monkeypatch):
    layer = cases.Layer((70, 100), (257, 100))
    x, weight = cases.tensors(layer, dtype, "cpu")
    for tile in range(max(map(len, walk.TILES.values()))):
        monkeypatch.setattr(compete, "fastest", lambda *choice, number=tile: choice[3][number % len(choice[3])])
        with hk.backend("triton"), hk.screening("off"):
            oracle.check_compete(hk.ops.compete(x, weight, k=3), x, weight, k=3)


def compete_arguments(device):
    x, weight = torch.empty(64, 100, device=device), torch.empty(2000, 100, device=device)
    return x, weight, 2, 2.0, False, "raw", (1, 1), (0, 0), (1, 1), 1, None


@interpreted.needs_interpreter
def test_launches_are_timed_except_those_in_place(on_gpu, monkeypatch, tmp_path):
    """Every kernel has a list of warps and stages, and what is written in place is written once."""
    monkeypatch.setenv("HEBBKERN_AUTOTUNE", str(tmp_path / "tiles.json"))
    monkeypatch.setattr(tuning, "do_bench", lambda call: (call(), 1.0)[1])
    layer = cases.Layer((70, 100), (90, 100))
    x, weight = cases.tensors(layer, torch.float32, "cpu")
    moved, want = weight.clone(), weight.clone()
    with hk.backend("triton"):
        hk.ops.winner_step_(moved, x, lr=0.1)
        hk.ops.dense_step_(moved, x, lr=0.1, decay="diagonal")
        monkeypatch.delenv("HEBBKERN_AUTOTUNE")
        hk.ops.winner_step_(want, x, lr=0.1)
        hk.ops.dense_step_(want, x, lr=0.1, decay="diagonal")
    assert torch.equal(moved, want) and not torch.equal(moved, weight)
    kernels = {key.split()[0] for key in json.loads((tmp_path / "tiles.json").read_text())}
    assert {"compete.compete_kernel", "accumulate.gather_kernel", "finish.finish_kernel"} <= kernels
    assert not kernels & {"apply.step_kernel", "apply.commit_kernel", "responses.activate_kernel"}
