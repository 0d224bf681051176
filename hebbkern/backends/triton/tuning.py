"""Tiles: the first of a short list is the default; HEBBKERN_AUTOTUNE=FILE has them timed, and FILE keep the fastest.

Without the variable nothing is timed and the first call costs one compilation. With it, the first call with new shapes
on a GPU tries the list, which takes seconds; FILE makes later processes take the same tiles, hence give the same bits.
"""

import json
import os
from pathlib import Path

import torch
from triton.compiler.errors import CompileTimeAssertionFailure
from triton.runtime.errors import OutOfResources, PTXASError
from triton.testing import do_bench

from hebbkern.backends.triton import launch

_known = {}  # file -> {key: index into the list}


def fastest(kernel, like, shape, tiles, run):
    """One of ``tiles``, for ``run(tile)`` on the device of ``like``; ``shape`` is what the choice depends on."""
    path = os.environ.get("HEBBKERN_AUTOTUNE")
    if not path or len(tiles) == 1 or not timeable(like):
        return tiles[0]
    if path not in _known:
        _known[path] = _read(Path(path))
    key = f"{kernel} {like.dtype} {'x'.join(map(str, shape))} {torch.cuda.get_device_name(like.device)}"
    if _known[path].get(key, len(tiles)) >= len(tiles):
        times = [_seconds(run, tile) for tile in tiles]
        _known[path][key] = times.index(min(times))
        _write(Path(path), _known[path])
    return tiles[_known[path][key]]


def timeable(like):
    """Whether launches run now, on a GPU: not where they are recorded, traced or captured in a CUDA graph."""
    return like.device.type == "cuda" and launch.launches_run() and not torch.cuda.is_current_stream_capturing()


def _seconds(run, tile):
    """Infinite for a tile that asks for more than the processor has."""
    try:
        return do_bench(lambda: run(tile))
    except (OutOfResources, PTXASError, CompileTimeAssertionFailure):
        return float("inf")


def _write(path, choices):
    """All at once: another process may be reading."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(choices, indent=1, sort_keys=True) + "\n")
    os.replace(partial, path)


def _read(path):
    """The choices that ``path`` holds; none where it does not exist."""
    if not path.exists():
        return {}
    try:
        choices = json.loads(path.read_text())
        if all(isinstance(choice, int) and choice >= 0 for choice in choices.values()):
            return choices
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"hebbkern: HEBBKERN_AUTOTUNE must name a file of choices that hebbkern wrote, got {path}")
