"""Which kernels serve the operators: the compiled ones of the tensors' device, or plain torch.

Importing this module loads the compiled libraries (each registers its kernels with torch for its device) and gives
every operator eager.py's function as the kernel for all other devices. ``backend(name)`` and the environment variable
HEBBKERN_BACKEND override the choice:

    "auto"    by the tensors' device: compiled if there, else plain torch (says so once)
    "cpu"     the same, after making sure that the compiled CPU kernels are there
    "eager"   plain torch, everywhere
"""

import contextlib
import functools
import importlib
import os
import warnings

from hebbkern import eager
from hebbkern.ops import library

COMPILED = {"cpu": "hebbkern._cpu"}  # device type -> the extension that serves it
NAMES = ("auto", "eager", *COMPILED)

_missing = {}  # backend -> why it cannot run
_current = "auto"


def available():
    """Each backend's name, with None if it can run, or the reason why not."""
    return {"eager": None, **{name: _missing.get(name) for name in COMPILED}}


def current():
    """The name chosen by ``backend`` or HEBBKERN_BACKEND; "auto" if neither did."""
    return _current


def select(name):
    """Choose the backend of every operator for the whole process, all threads. Raises RuntimeError if it cannot run."""
    global _current
    if name not in NAMES:
        raise RuntimeError(f"hebbkern: the backend must be one of {', '.join(NAMES)}, got {name!r}")
    if name in _missing:
        raise RuntimeError(f"hebbkern: the backend {name!r} is not available: {_missing[name]}")
    library.choose("eager" if name == "eager" else "default")
    _current = name


@contextlib.contextmanager
def backend(name):
    """Within ``with hebbkern.backend(name):`` the operators run on that backend, in all threads."""
    before = _current
    select(name)
    try:
        yield
    finally:
        select(before)


@functools.cache
def _say_once(device):
    reason = _missing.get(device, f"this version has none for {device}")
    warnings.warn(
        f"hebbkern: no compiled kernels for {device} tensors, plain torch runs instead, which is slower ({reason}). "
        "`hebbkern doctor` says what to do; HEBBKERN_BACKEND=eager asks for plain torch without this warning.",
        RuntimeWarning,
        stacklevel=4,
    )


def _fallback(function):
    @functools.wraps(function)
    def run(tensor, *arguments):
        _say_once(tensor.device.type)
        return function(tensor, *arguments)

    return run


def _load():
    for name, module in COMPILED.items():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            _missing[name] = f"{module} was not built; install again where a C++ compiler is found"
        except ImportError as error:
            _missing[name] = f"{module} does not load: {error}"
    for name in library.chosen:
        function = getattr(eager, name)
        library.LIBRARY.impl(name, _fallback(function), "CompositeExplicitAutograd")
        library.LIBRARY.impl(f"{name}.eager", function, "CompositeExplicitAutograd")


_load()
select(os.environ.get("HEBBKERN_BACKEND") or "auto")
