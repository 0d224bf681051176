"""Which kernels serve the operators: the compiled ones of the tensors' device, or plain torch.

Importing this module loads the compiled libraries (each registers its kernels with torch for its device) and gives
every operator eager.py's function as the kernel for all other devices. ``backend(name)`` and the environment variable
HEBBKERN_BACKEND override the choice:

    "auto"    by the tensors' device: compiled if there, else plain torch (says so once)
    "cpu"     the same, after making sure that the compiled CPU kernels are there
    "eager"   plain torch, everywhere

``screening(False)`` and HEBBKERN_SCREENING=off keep the CPU kernels from screening float32 competitions in bf16.
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

SCREENING = {"off": 0, "auto": 1, "always": 2}

_missing = {}  # backend -> why it cannot run
_current = "auto"
_screening = "auto"


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


def screens(mode):
    """Choose for the whole process whether float32 competitions are screened: "auto", "off" or "always"."""
    global _screening
    if mode not in SCREENING:
        raise RuntimeError(f"hebbkern: screening must be one of {', '.join(SCREENING)}, got {mode!r}")
    if "cpu" not in _missing:
        importlib.import_module(COMPILED["cpu"]).screening(SCREENING[mode])
    _screening = mode


def screens_now():
    """What ``screens`` chose last."""
    return _screening


@contextlib.contextmanager
def screening(mode):
    """Within ``with hebbkern.screening(False):`` no competition is screened, in all threads.

    Where the processor has a bf16 matrix unit (AMX), ``compete`` sorts out in bf16 who cannot win, by a proven bound,
    and computes the float32 responses of the others only: same winners, same responses, bit for bit. True does so
    where it is faster (the default), False never, "always" for every shape it can be done for. HEBBKERN_SCREENING=off,
    auto or always sets the default.
    """
    before = _screening
    screens(mode if isinstance(mode, str) else "auto" if mode else "off")
    try:
        yield
    finally:
        screens(before)


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
screens(os.environ.get("HEBBKERN_SCREENING") or "auto")
