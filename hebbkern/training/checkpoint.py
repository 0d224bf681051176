"""Checkpoints in safetensors files. A kill, a full disk or a power cut while one is written leaves the last one whole.

`Safetensors` is the save handler of ignite's `Checkpoint`, which decides when, what, and how many checkpoints are kept:

    saved = {"model": model, "optimizer": optimizer, "trainer": trainer, "random": RandomState()}
    keeper = Checkpoint(saved, Safetensors(folder), n_saved=2, include_self=True)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, keeper)

    state = load(last_checkpoint(folder))
    Checkpoint.load_objects({**saved, "checkpointer": keeper}, state)

Tensors are named by their path ("model/0.weight"), so that any reader of safetensors finds them. Everything else is
JSON in the file's metadata, with the name and version of the format and a checksum over all of it.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hebbkern import files
from hebbkern.nn.wrappers import plain_name, plain_names

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

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_FORMAT, _VERSION = "hebbkern.checkpoint", "1"
_NAME = re.compile(r"checkpoint_(\d+)\.safetensors")
_MAPPINGS = {kind.__name__: kind for kind in (dict, OrderedDict, Counter)}  # Counter: milestones of torch's MultiStepLR


class Safetensors(BaseSaveHandler):
    """Save handler of ignite's `Checkpoint` whose files are either whole or absent, whatever happens.

    ignite's names end in ".pt", the files in ".safetensors". Of several processes rank 0 writes. Tensors of any device,
    stride and sharing are written dense, for the CPU; tensors that share memory are written separately.

    Args:
        folder: made if missing. Files of interrupted writes in it are removed, so only one training at a time may
            write there.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._outdated: Path | None = None  # to be removed once another checkpoint is written
        if idist.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(files.UNFINISHED):
                leftover.unlink(missing_ok=True)

    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        """Writes `checkpoint` to a temporary file, then renames the file; ignite's `metadata` is not used.

        Raises:
            ValueError: `checkpoint` holds a value that neither safetensors nor JSON can store.
            OSError: the file cannot be written; the earlier checkpoints are unchanged.
        """
        if idist.get_rank() != 0:
            return
        path = self._path(filename)
        files.write(path, _to_bytes(checkpoint))
        if self._outdated not in (None, path):
            self._outdated.unlink(missing_ok=True)
        self._outdated = None

    def remove(self, filename: str) -> None:
        """Removes a checkpoint if it exists; the only one of its kind is kept until another is written.

        ignite removes before it writes, so with n_saved=1 no checkpoint would exist while the next is written.
        """
        if idist.get_rank() != 0:
            return
        path = self._path(filename)
        others = set(self.folder.glob(re.split(r"\d", path.name)[0] + "*.safetensors")) - {path}
        if others:
            path.unlink(missing_ok=True)
        else:
            self._outdated = path

    def _path(self, filename: str) -> Path:
        return self.folder / f"{filename.removesuffix('.pt').removesuffix('.safetensors')}.safetensors"


class RandomState:
    """The states of the random generators of torch (CPU and every CUDA device), NumPy and Python, to save as one.

    After restoring, the same random numbers follow. States of missing CUDA devices are ignored.

    Args:
        group: a torch.distributed group. The state of each of its processes is saved, so each must call `state_dict`,
            and each gets its own back; a rank that did not exist when the state was saved keeps its present state.
    """

    def __init__(self, group: ProcessGroup | None = None):
        self.group = group

    def state_dict(self) -> dict[str, Any]:
        own = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": np.random.get_state(legacy=False),
            "python": random.getstate(),
        }
        if self.group is None:
            return own
        states: list[Any] = [None] * torch.distributed.get_world_size(self.group)
        torch.distributed.all_gather_object(states, own, group=self.group)
        return {**states[0], "others": states[1:]}

    def load_state_dict(self, state: Mapping) -> None:
        rank = 0 if self.group is None else torch.distributed.get_rank(self.group)
        states = [state, *state.get("others", [])]
        if rank >= len(states):
            return
        own = states[rank]
        torch.set_rng_state(own["torch"])
        for device, one in enumerate(own["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one, device)
        np.random.set_state(own["numpy"])
        random.setstate(own["python"])


class PlainModel:
    """A model to save by the names that it has without torch.compile and DistributedDataParallel around it or in it.

    Any model that has these names without the wrappers, or in others, loads the state.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        state = self.model.state_dict()
        versions = getattr(state, "_metadata", {})
        return self._renamed(state, versions, {name: plain_name(self.model, name) for name in (*state, *versions)})

    def load_state_dict(self, state: Mapping) -> None:
        own = self.model.state_dict()
        versions = {plain_name(self.model, name): name for name in getattr(own, "_metadata", {})}
        names = versions | {plain_name(self.model, name): name for name in own}
        self.model.load_state_dict(self._renamed(state, getattr(state, "_metadata", {}), names))

    @staticmethod
    def _renamed(state: Mapping, versions: Mapping, names: Mapping[str, str]) -> dict[str, Any]:
        renamed: Any = OrderedDict((names.get(name, name), value) for name, value in state.items())
        renamed._metadata = {names.get(name, name): value for name, value in versions.items()}
        return renamed


class PlainOptimizer:
    """An optimizer to save; names that it has of its parameters are saved as `PlainModel` saves them."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()
        groups = [dict(group) for group in state["param_groups"]]
        for group in groups:
            if "param_names" in group:
                group["param_names"] = plain_names(group["param_names"])
        return {**state, "param_groups": groups}

    def load_state_dict(self, state: Mapping) -> None:
        self.optimizer.load_state_dict(dict(state))


def last_checkpoint(folder: str | Path) -> Path | None:
    """Returns the checkpoint_<iteration>.safetensors with the most iterations in `folder`, or None.

    The file is not read, so it may be torn.
    """
    paths = _checkpoints(Path(folder))
    return paths[-1] if paths else None


def load(path: str | Path) -> dict[str, Any]:
    """Reads the nested dict that `Safetensors` wrote, bit for bit, with its tensors on the CPU.

    Raises:
        ValueError: the file is torn (the message names the last whole checkpoint before it, to return to by hand), or
            of another kind or format version.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    try:
        return _read(path)
    except _TornError as error:
        paths = _checkpoints(path.parent)
        earlier = reversed(paths[: paths.index(path)] if path in paths else [])
        before = next((other.name for other in earlier if _is_whole(other)), None)
        raise ValueError(f"{error}; before it, {before or 'no checkpoint'} is whole") from error


class _TornError(ValueError):
    """The content of a file differs from what was written."""


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
            # Copies, because the memory map of the file is not aligned and ends when ignite removes the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (file is not a mapping)
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
        checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, checksum)
    return str(checksum)


def _pack(value: Any, path: tuple, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; its tensors are added to `tensors`. A type that JSON does not have becomes {type: ...}."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, np.generic):
        return _pack(value.item(), path, tensors)
    if isinstance(value, list | tuple):
        packed = [_pack(one, (*path, i), tensors) for i, one in enumerate(value)]
        return packed if isinstance(value, list) else {"tuple": packed}
    if type(value) in _MAPPINGS.values():
        packed = [[_pack(key, path, tensors), _pack(one, (*path, key), tensors)] for key, one in value.items()]
        # A module's state_dict has the versions of its parts as an attribute.
        versions = _pack(getattr(value, "_metadata", None), (*path, "_metadata"), tensors)
        return {type(value).__name__: packed} | ({"_metadata": versions} if versions else {})
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {"array": _store(torch.from_numpy(value), path, tensors)}
    if isinstance(value, Tensor) and value.layout is torch.strided and not (value.is_quantized or value.is_meta):
        return {"tensor": _store(value, path, tensors)}
    where = "/".join(map(str, path))
    raise ValueError(
        "hebbkern.training: a checkpoint must hold only dense tensors, numbers, strings and lists, tuples and dicts of "
        f"those, got {type(value).__name__} at {where}"
    )


def _store(tensor: Tensor, path: tuple, tensors: dict[str, Tensor]) -> str:
    name = "/".join(map(str, path))
    while name in tensors:  # a dict may have the keys 0 and "0"
        name += "'"
    # A copy of its own: safetensors refuses tensors that share memory.
    tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return name


def _unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
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
    restored: Any = _MAPPINGS[kind]({_unpack(key, tensors): _unpack(one, tensors) for key, one in value})
    if "_metadata" in packed:
        restored._metadata = _unpack(packed["_metadata"], tensors)
    return restored


def _checkpoints(folder: Path) -> list[Path]:
    matches = [(_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint_*")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in matches if match)]


def _is_whole(path: Path) -> bool:
    try:
        _read(path)
    except (ValueError, OSError):
        return False
    return True
