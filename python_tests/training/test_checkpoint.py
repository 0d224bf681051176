"""Checkpoints: what goes in comes out bit for bit, and what is not whole, or not ours, is refused."""

import json
import os
import random
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("ignite", reason="pytorch-ignite is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

import safetensors.torch

from hebbkern.training import checkpoint
from hebbkern.training.checkpoint import RandomState, Safetensors, last_checkpoint, load
from trainings import write

STORAGE = torch.arange(24.0).reshape(4, 6)
TENSORS = {
    "matrix": torch.randn(3, 5),
    "transposed": STORAGE.T,
    "rows": STORAGE[1:3],
    "the same": STORAGE,
    "expanded": torch.ones(1, 3).expand(4, 3),
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "scalar": torch.tensor(2.5),
    "step": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "also empty": torch.zeros(2, 0),
    "mask": torch.tensor([True, False, True]),
    "bfloat16": torch.randn(7).bfloat16(),
    "float16": torch.tensor([65504.0, 6e-8]).half(),
    "float64": torch.tensor([1 / 3], dtype=torch.float64),
    "bytes": torch.arange(256, dtype=torch.uint8),
    "int64": torch.tensor([-(2**63), 2**63 - 1]),
    "complex": torch.tensor([1 + 2j]).conj(),
    "special": torch.tensor([float("inf"), -float("inf"), -0.0, 1e-45]),
    "parameter": nn.Parameter(torch.randn(2)),
}
REST = [
    *(None, True, False, 0, 1, -1, 2**100, -(2**63), "", "text", "ü \n \x00 😀"),
    *(0.0, 0.1, 1 / 3, 1e-320, 1.7976931348623157e308, float("inf"), -float("inf")),
    *([], [1, [2, [3.5]]], (), (0.9, 0.999), ((1,), [(2,)]), {}, {"a": {}}),
    *({0: "a", 1: "b"}, {"0": 1, 0: 2}, {(1, 2): 3}, {None: 1, True: 2, 2.5: 3}),
    *(OrderedDict(b=1, a=2), Counter([3, 3, 5]), {"tensor": "model/weight"}, {"float": "inf"}, {"_metadata": 1}),
]


def bits(tensor):
    return tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8).tolist()


def there_and_back(value, folder):
    Safetensors(folder)({"value": value}, "checkpoint_1.pt")
    return load(folder / "checkpoint_1.safetensors")["value"]


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_come_back_bit_for_bit(name, tmp_path):
    back = there_and_back(TENSORS, tmp_path)
    assert list(back) == list(TENSORS)
    want, got = TENSORS[name], back[name]
    assert (got.dtype, got.shape, bits(got)) == (want.dtype, want.shape, bits(want))
    assert got.is_contiguous() and got.device.type == "cpu"


@pytest.mark.parametrize("value", REST, ids=repr)
def test_the_rest_comes_back_as_it_was(value, tmp_path):
    back = there_and_back(value, tmp_path)
    assert back == value and type(back) is type(value) and repr(back) == repr(value)


def test_minus_zero_nan_and_numpy(tmp_path):
    zero, nan, single, array, count = there_and_back(
        [-0.0, float("nan"), np.float32(0.1), np.arange(3, dtype=np.uint32), np.int64(4)], tmp_path
    )
    assert str(zero) == "-0.0" and nan != nan and type(nan) is float
    assert single == float(np.float32(0.1)) and (count, type(count)) == (4, int)
    assert isinstance(array, np.ndarray) and array.dtype == np.uint32 and array.tolist() == [0, 1, 2]


def test_the_payload_of_a_nan_survives(tmp_path):
    payload = torch.tensor([0x7FC12345, -0x3FEDCB], dtype=torch.int32)
    assert torch.equal(there_and_back(payload.view(torch.float32), tmp_path).view(torch.int32), payload)


@pytest.mark.parametrize("make", [nn.Linear, lambda *shape: nn.Sequential(nn.Linear(*shape), nn.BatchNorm1d(3))])
def test_a_module_and_its_optimizer(make, tmp_path):
    model, other = make(4, 3), make(4, 3)
    optimizer, twin = (torch.optim.AdamW(one.parameters(), lr=0.1, amsgrad=True) for one in (model, other))
    for _ in range(2):
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    back = there_and_back(saved, tmp_path)
    assert back["model"]._metadata == saved["model"]._metadata and type(back["model"]) is OrderedDict
    other.load_state_dict(back["model"])
    twin.load_state_dict(back["optimizer"])
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
    assert repr(twin.state_dict()) == repr(saved["optimizer"])


def test_weights_are_found_by_any_reader(tmp_path):
    model = nn.Linear(4, 3)
    Safetensors(tmp_path)({"model": model.state_dict()}, "checkpoint_1.pt")
    tensors = safetensors.torch.load_file(tmp_path / "checkpoint_1.safetensors")
    assert torch.equal(tensors["model/weight"], model.weight) and set(tensors) == {"model/weight", "model/bias"}


def test_what_is_loaded_does_not_hang_on_the_file(tmp_path):
    back = there_and_back(TENSORS, tmp_path)
    want = {name: bits(tensor) for name, tensor in TENSORS.items()}
    with open(tmp_path / "checkpoint_1.safetensors", "r+b") as file:
        file.write(bytes(os.path.getsize(file.name)))
    assert {name: bits(tensor) for name, tensor in back.items()} == want


@pytest.mark.parametrize(
    "value, kind",
    [
        (object(), "object"),
        (b"x", "bytes"),
        (torch.eye(2).to_sparse(), "Tensor"),
        (torch.empty(2, device="meta"), "Tensor"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_writing(value, kind, tmp_path):
    message = rf"a checkpoint must hold only dense tensors, .*, got {kind} at trainer/2/extra"
    with pytest.raises(ValueError, match=message):
        Safetensors(tmp_path)({"trainer": [1, 2, {"extra": value}]}, "checkpoint_1.pt")
    assert list(tmp_path.iterdir()) == []


def draw():
    numbers = [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)]
    numbers.append(np.random.standard_normal())  # NumPy and Python keep a second normal number for the next call
    return numbers + [torch.rand(3, device=f"cuda:{i}").tolist() for i in range(torch.cuda.device_count())]


def test_random_numbers_go_on(tmp_path):
    draw()
    state = there_and_back(RandomState().state_dict(), tmp_path)
    want = [draw() for _ in range(3)]
    assert want[0] != want[1]
    RandomState().load_state_dict(state)
    assert [draw() for _ in range(3)] == want


def test_the_last_is_of_the_most_iterations(tmp_path):
    assert last_checkpoint(tmp_path) is None and last_checkpoint(tmp_path / "missing") is None
    write(tmp_path, 9, 100, 20)
    for other in (
        "checkpoint_300.pt",
        "best_400.safetensors",
        "checkpoint_500.safetensors.bak",
        "checkpoint_x.safetensors",
    ):
        (tmp_path / other).write_bytes(b"other")
    assert last_checkpoint(str(tmp_path)) == tmp_path / "checkpoint_100.safetensors"


def cuts(size, header):
    return {0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, (header + size) // 2, size - 4, size - 1}


@pytest.mark.parametrize("before", [True, False])
def test_a_torn_file_is_refused_wherever_it_was_cut(before, tmp_path):
    write(tmp_path, *([5, 10, 20] if before else []), 30)
    path = tmp_path / "checkpoint_30.safetensors"
    data = path.read_bytes()
    if before:
        (tmp_path / "checkpoint_20.safetensors").write_bytes(data[:-9])
    whole = "checkpoint_10.safetensors" if before else "no checkpoint"
    for cut in cuts(len(data), 8 + int.from_bytes(data[:8], "little")):
        path.write_bytes(data[:cut])
        with pytest.raises(
            ValueError, match=rf"checkpoint_30.safetensors must be a whole .*; before it, {whole} is whole$"
        ):
            load(last_checkpoint(tmp_path))
        assert path.read_bytes() == data[:cut]
    path.write_bytes(data + b"\0")
    with pytest.raises(ValueError, match=r"checkpoint_30.safetensors must be a whole"):
        load(path)


def test_a_changed_byte_is_noticed_wherever_it_is(tmp_path):
    write(tmp_path, 1)
    path = tmp_path / "checkpoint_1.safetensors"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ValueError, match=r"checkpoint_1.safetensors must"):
            print(place, load(path))


@pytest.mark.parametrize("old, new", [(b"F32", b"I32"), (b"[2,20]", b"[20,2]"), (b"[0,2]", b"[0,3]")])
def test_another_shape_or_type_of_the_same_bytes_is_noticed(old, new, tmp_path):
    Safetensors(tmp_path)({"matrix": torch.ones(2, 20), "empty": torch.ones(0, 2)}, "checkpoint_1.pt")
    path = tmp_path / "checkpoint_1.safetensors"
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(ValueError, match="must hold what was written, got another checksum"):
        load(path)


def test_keys_that_read_alike_keep_apart(tmp_path):
    state = {0: torch.tensor(1), "0": torch.tensor(2), "a/b": torch.tensor(3), "a": {"b": torch.tensor(4)}}
    assert repr(there_and_back(state, tmp_path)) == repr(state)


def test_blocks_of_zeros_are_noticed(tmp_path):
    write(tmp_path, 1)
    path = tmp_path / "checkpoint_1.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-80] + bytes(80))
    with pytest.raises(ValueError, match="must hold what was written, got another checksum; before it, no checkpoint"):
        load(path)


def test_a_file_of_somebody_else_is_refused(tmp_path):
    path = tmp_path / "checkpoint_3.safetensors"
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"weight": torch.ones(3)}, path, metadata)
        with pytest.raises(
            ValueError, match=r"checkpoint_3.safetensors must be a checkpoint of hebbkern, got another's"
        ):
            load(path)
    torch.save({"weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"checkpoint_3.safetensors must be a whole safetensors file"):
        load(path)
    with pytest.raises(
        FileNotFoundError, match=r"path must be a checkpoint, got .*checkpoint_4.safetensors, which is no file"
    ):
        load(tmp_path / "checkpoint_4.safetensors")


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_VERSION", "2")
        write(tmp_path, 5)
    with pytest.raises(ValueError, match=r"checkpoint_5.safetensors must be of format version 1, .*, got 2$"):
        load(tmp_path / "checkpoint_5.safetensors")


def test_the_metadata_says_what_it_is(tmp_path):
    write(tmp_path, 5)
    with safetensors.safe_open(tmp_path / "checkpoint_5.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"]) == ("hebbkern.checkpoint", "1")
    assert "NaN" not in json.dumps(metadata) and json.loads(metadata["state"])
