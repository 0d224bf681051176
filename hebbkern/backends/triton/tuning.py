"""Tiles: the first of a short list is the default; HEBBKERN_AUTOTUNE=FILE times them, and FILE keeps the fastest.

Without the variable nothing is timed and the first call costs one compilation. With it, the first call with new shapes
on a GPU tries the list, which takes seconds; later processes take the tiles in FILE, hence give the same bits.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from triton.compiler.errors import CompileTimeAssertionFailure
from triton.runtime.errors import OutOfResources, PTXASError
from triton.testing import do_bench

from hebbkern import files
from hebbkern.backends.triton import launch

_known: dict[str, dict[str, int]] = {}  # file -> {key: index into the list}


def fastest(kernel: str, like: torch.Tensor, shape: Sequence, tiles: Sequence, run: Callable[[Any], Any]) -> Any:
    """One of ``tiles``, for ``run(tile)`` on the device of ``like``; ``shape``: what the choice depends on."""
    path = os.environ.get("HEBBKERN_AUTOTUNE")
    if not path or len(tiles) == 1 or not timeable(like):
        return tiles[0]
    if path not in _known:
        _known[path] = _read(Path(path))
    key = f"{kernel} {like.dtype} {'x'.join(map(str, shape))} {torch.cuda.get_device_name(like.device)}"
    if _known[path].get(key, len(tiles)) >= len(tiles):
        times = [_seconds(run, tile) for tile in tiles]
        _known[path][key] = times.index(min(times))
        files.write(path, json.dumps(_known[path], indent=1, sort_keys=True) + "\n")
    return tiles[_known[path][key]]


def timeable(like: torch.Tensor) -> bool:
    """Whether launches run now, on a GPU, and are not recorded, traced or captured in a CUDA graph."""
    return like.device.type == "cuda" and launch.launches_run() and not torch.cuda.is_current_stream_capturing()


def _seconds(run: Callable, tile: Any) -> Any:
    """Infinite for a tile that needs more than the processor has."""
    try:
        return do_bench(lambda: run(tile))
    except (OutOfResources, PTXASError, CompileTimeAssertionFailure):
        return float("inf")


def _read(path: Path) -> dict[str, int]:
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
