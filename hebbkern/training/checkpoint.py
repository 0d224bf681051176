"""Checkpoints: one safetensors file each, written so that a kill, a full disk or a power cut leaves the last one whole.

`Safetensors` is what ignite's own `Checkpoint` writes with; ignite decides when, what, and how many stay:

    saved = {"model": model, "optimizer": optimizer, "trainer": trainer, "random": RandomState()}
    keeper = Checkpoint(saved, Safetensors(folder), n_saved=2, include_self=True)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, keeper)

    state = load(last_checkpoint(folder))
    Checkpoint.load_objects({**saved, "checkpointer": keeper}, state)

The tensors are named by their place ("model/0.weight"), so that any reader of safetensors finds them. Everything else
is JSON in the file's metadata, beside the name and version of the format and a checksum over all of it.
"""

from __future__ import annotations

import json
import os
import random
import re
import zlib
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

try:
    import ignite.distributed as idist
    from ignite.handlers.checkpoint import BaseSaveHandler
except ImportError as error:
    raise ImportError("hebbkern.training: pytorch-ignite is missing: pip install 'hebbkern[train]'") from error
try:
    import safetensors.torch
    from safetensors import SafetensorError, safe_open
except ImportError as error:
    raise ImportError("hebbkern.training: safetensors is missing: pip install 'hebbkern[train]'") from error

_FORMAT, _VERSION = "hebbkern.checkpoint", "1"
_NAME = re.compile(r"checkpoint_(\d+)\.safetensors")
_MAPPINGS = {kind.__name__: kind for kind in (dict, OrderedDict, Counter)}  # Counter: milestones of torch's MultiStepLR


class Safetensors(BaseSaveHandler):
    """Writes what ignite's `Checkpoint` hands over: each checkpoint is there whole or not at all, whatever happens.

    ignite's names end in ".pt", the files in ".safetensors". Of several processes the one of rank 0 writes.
    Tensors of any device, stride and sharing are written dense, for the CPU; those that share memory, each on its own.

    Args:
        folder: made if missing. What a killed write left in it is removed, so one training at a time may write there.
    """

    def __init__(self, folder: str | Path):
        self.folder, self._waiting = Path(folder), None
        if idist.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(".*.safetensors.unfinished"):
                leftover.unlink(missing_ok=True)

    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        """Writes `checkpoint` beside what is there, then gives it its name; ignite's `metadata` is not needed.

        Raises:
            ValueError: `checkpoint` holds what neither safetensors nor JSON can keep.
            OSError: it could not be written; the checkpoints there are as before.
        """
        if idist.get_rank() != 0:
            return
        path, data = self._path(filename), _to_bytes(checkpoint)
        unfinished = path.with_name(f".{path.name}.unfinished")
        try:
            with open(unfinished, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException as error:
            unfinished.unlink(missing_ok=True)
            if isinstance(error, OSError):
                error.filename = str(path)  # "no space left on device" does not say where
            raise
        _sync(self.folder)
        if self._waiting not in (None, path):
            self._waiting.unlink(missing_ok=True)
        self._waiting = None

    def remove(self, filename: str) -> None:
        """Removes a checkpoint, if it is there; the only one of its kind stays until another is written.

        ignite removes before it writes: with n_saved=1 nothing would be left while the next is on its way.
        """
        if idist.get_rank() != 0:
            return
        path = self._path(filename)
        others = set(self.folder.glob(re.split(r"\d", path.name)[0] + "*.safetensors")) - {path}
        if others:
            path.unlink(missing_ok=True)
        else:
            self._waiting = path

    def _path(self, filename: str) -> Path:
        return self.folder / f"{filename.removesuffix('.pt').removesuffix('.safetensors')}.safetensors"


class RandomState:
    """The random generators of torch (the CPU's and every CUDA device's), NumPy and Python, as one state to save.

    Restoring makes what is drawn next the same bits. States of CUDA devices that are not there are left out.
    """

    def state_dict(self) -> dict:
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": np.random.get_state(legacy=False),
            "python": random.getstate(),
        }

    def load_state_dict(self, state: Mapping) -> None:
        torch.set_rng_state(state["torch"])
        for device, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one, device)
        np.random.set_state(state["numpy"])
        random.setstate(state["python"])


def last_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint_<iteration>.safetensors of the most iterations in `folder`, whole or not; None without any."""
    found = _checkpoints(Path(folder))
    return found[-1] if found else None


def load(path: str | Path) -> dict:
    """The nested dict that `Safetensors` wrote, bit for bit, with its tensors on the CPU; nothing is changed on disk.

    Raises:
        ValueError: a torn file (the message names the whole checkpoint before it, to go back to by hand), a file of
            another kind, or of another format version.
    """
    path = Path(path)
    try:
        return _read(path)
    except _TornError as error:
        before = next((other.name for other in reversed(_before(path)) if _is_whole(other)), None)
        raise ValueError(f"{error}; before it, {before or 'no checkpoint'} is whole") from error


class _TornError(ValueError):
    """Not all of a file is what was written."""


def _to_bytes(checkpoint: Mapping) -> bytes:
    tensors: dict[str, Tensor] = {}
    state = json.dumps(_pack(checkpoint, (), tensors), allow_nan=False, separators=(",", ":"))
    metadata = {"format": _FORMAT, "version": _VERSION, "checksum": _checksum(state, tensors), "state": state}
    return safetensors.torch.save(tensors, metadata)


def _read(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"hebbkern.training: path must be a checkpoint, got {path}, which is no file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_format(path, metadata)
            # Copies: what the file maps into memory is neither aligned nor ours once ignite removes it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise _TornError(
            f"hebbkern.training: {path} must be a whole safetensors file, got a torn one ({error})"
        ) from error
    state = metadata.get("state", "")
    if metadata.get("checksum") != _checksum(state, tensors):
        raise _TornError(f"hebbkern.training: {path} must hold what was written, got another checksum")
    return _unpack(json.loads(state), tensors)


def _check_format(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"hebbkern.training: {path} must be a checkpoint of hebbkern, got another's safetensors file")
    if metadata.get("version") != _VERSION:
        raise ValueError(
            f"hebbkern.training: {path} must be of format version {_VERSION}, which this hebbkern reads, "
            f"got {metadata.get('version')}"
        )


def _checksum(state: str, tensors: Mapping[str, Tensor]) -> str:
    checksum = zlib.crc32(state.encode())
    for name, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), checksum)
    return str(checksum)


def _pack(value, place: tuple, tensors: dict[str, Tensor]):
    """`value` as what JSON can say; its tensors go to `tensors`. What JSON has no word for is {kind: ...}."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, np.generic):
        return _pack(value.item(), place, tensors)
    if isinstance(value, list | tuple):
        packed = [_pack(one, (*place, i), tensors) for i, one in enumerate(value)]
        return packed if isinstance(value, list) else {"tuple": packed}
    if type(value) in _MAPPINGS.values():
        packed = [[_pack(key, place, tensors), _pack(one, (*place, key), tensors)] for key, one in value.items()]
        # A module's state_dict carries the versions of its parts as an attribute.
        versions = _pack(getattr(value, "_metadata", None), (*place, "_metadata"), tensors)
        return {type(value).__name__: packed} | ({"_metadata": versions} if versions else {})
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {"array": _store(torch.from_numpy(value), place, tensors)}
    if isinstance(value, Tensor) and value.layout is torch.strided and not (value.is_quantized or value.is_meta):
        return {"tensor": _store(value, place, tensors)}
    where = "/".join(map(str, place))
    raise ValueError(
        "hebbkern.training: a checkpoint must hold only dense tensors, numbers, strings and lists, tuples and dicts of "
        f"those, got {type(value).__name__} at {where}"
    )


def _store(tensor: Tensor, place: tuple, tensors: dict[str, Tensor]) -> str:
    name = "/".join(map(str, place))
    while name in tensors:  # a dict may have the keys 0 and "0"
        name += "'"
    # A copy of its own: safetensors refuses tensors that share memory.
    tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return name


def _unpack(packed, tensors: Mapping[str, Tensor]):
    if isinstance(packed, list):
        return [_unpack(one, tensors) for one in packed]
    if not isinstance(packed, dict):
        return packed
    kind, value = next(iter(packed.items()))
    if kind == "tensor":
        return tensors[value]
    if kind == "array":
        return tensors[value].numpy()
    if kind == "float":
        return float(value)
    if kind == "tuple":
        return tuple(_unpack(value, tensors))
    restored = _MAPPINGS[kind]({_unpack(key, tensors): _unpack(one, tensors) for key, one in value})
    if "_metadata" in packed:
        restored._metadata = _unpack(packed["_metadata"], tensors)
    return restored


def _checkpoints(folder: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in folder.glob("checkpoint_*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _before(path: Path) -> list[Path]:
    found = _checkpoints(path.parent)
    return found[: found.index(path)] if path in found else []


def _is_whole(path: Path) -> bool:
    try:
        _read(path)
    except (ValueError, OSError):
        return False
    return True


def _sync(folder: Path) -> None:
    """Makes the names in `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
