"""Files that are whole whatever happens, and folders that one process at a time writes to."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

UNFINISHED = ".*.unfinished"  # what `write` leaves in the folder if the process is killed
_held: dict[Path, int] = {}  # folder -> thread, of this process


def write(path: str | Path, content: str | bytes) -> None:
    """Writes a file so that a kill, a full disk or a power cut leaves the file before or the file after, whole.

    The content goes to another file in the same folder (which is made), to the disk, and then to its name. A file that
    holds this content already is not touched.

    Raises:
        OSError: the file cannot be written; it names the file, whose earlier content is unchanged.
    """
    path, data = Path(path), content.encode() if isinstance(content, str) else content
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return
    if path.exists() and not path.is_file():  # such as /dev/null, which must not be replaced
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # "no space left on device" does not name the file
        raise
    _sync(path.parent)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context that one thread of one process at a time enters for a folder, which is made; nested, it enters again.

    The kernel ends the lock with the process, so a kill leaves nothing to clean up. Windows and file systems that have
    no locks let everybody enter, the latter with a warning.

    Raises:
        RuntimeError: another holds the folder; the message says which process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder, thread = folder.resolve(), threading.get_ident()
    if _held.get(folder) == thread:
        yield
        return
    with _lock_file(folder):
        _held[folder] = thread
        try:
            yield
        finally:
            del _held[folder]


@contextlib.contextmanager
def _lock_file(folder: Path) -> Iterator[None]:
    """Holds a lock on the file .lock in the folder, which says who holds it and is removed on leaving."""
    path = folder / ".lock"
    if fcntl is None:
        yield
        return
    while True:
        file = open(path, "a+")  # noqa: SIM115 (closed below)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read().strip() or "another process"
            raise RuntimeError(
                f"hebbkern.training: folder must have one training at a time, got {folder}, which {holder} writes to"
            ) from None
        except OSError as error:
            warnings.warn(f"hebbkern: {folder} is not locked against a second training ({error})", stacklevel=6)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()  # its holder removed it between the two calls above
    with file:
        with contextlib.suppress(OSError):  # of a full disk, on which the lock holds all the same
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Makes the names in `folder` durable, so that a power cut does not lose them; Windows has no way to ask for it."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
