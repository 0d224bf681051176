"""A cache on disk of learnt weights, and of the features that readouts are trained on.

    cache = Cache(Path("runs/hebbian_cnn/cache"), gigabytes=30)
    x = cache.features("CIFAR10 HPCA HH 0", (60000, 18432), fill)       # bfloat16, mapped from the file
    state = cache.state("CIFAR10 HPCA HH 0", make)

A key must name all that its content depends on. A file gets its name when it is complete, so an interrupted process
leaves no partial file under it. When the features exceed the limit, the least recently used ones are deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BYTES = 2  # of bfloat16


class Cache:
    """A folder whose files are named by a digest of their keys."""

    def __init__(self, folder: Path, gigabytes: float):
        self.folder, self.limit = folder, int(gigabytes * 1e9)
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob("*.partial"):
            if time.time() - partial.stat().st_mtime > 86_400:  # a day: no running process writes it
                partial.unlink(missing_ok=True)

    def _path(self, key: str, suffix: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.{suffix}"

    def features(self, key: str, shape: tuple[int, ...], fill: Callable[[Tensor], Any]) -> Tensor:
        """Returns a bfloat16 tensor of this shape, mapped from its file; `fill` writes it where there is no file."""
        path, count = self._path(key, "bf16"), torch.Size(shape).numel()
        if not path.exists():
            self._make_room(count * BYTES)
            with self._partial(path) as partial:
                fill(torch.from_file(str(partial), shared=True, size=count, dtype=torch.bfloat16).view(shape))
        os.utime(path)
        return torch.from_file(str(path), shared=False, size=count, dtype=torch.bfloat16).view(shape)

    @contextlib.contextmanager
    def _partial(self, path: Path) -> Iterator[Path]:
        """Yields a path to write to; the file then moves to `path`, or is deleted after an error."""
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            yield partial
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        """Deletes least recently used features until `wanted` bytes fit; mapped tensors stay readable."""
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self.folder.glob("*.bf16"))
        held = sum(size for _, size, _ in files)
        for _, size, path in files:
            if held + wanted <= self.limit:
                break
            path.unlink(missing_ok=True)
            held -= size

    def state(self, key: str, make: Callable[[], dict]) -> dict:
        """Returns a dict of tensors and plain values; `make` makes it where there is no file."""
        path = self._path(key, "pt")
        if not path.exists():
            with self._partial(path) as partial:
                torch.save(make(), partial)
        return torch.load(path, weights_only=True)
