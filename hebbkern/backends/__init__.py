"""Which kernels serve the operators: the compiled ones of the tensors' device, Triton's, or plain torch.

Importing this module loads the compiled libraries (each registers its kernels with torch for its device) and gives
every operator eager.py's function as the kernel for all other devices. ``backend(name)`` and the environment variable
HEBBKERN_BACKEND override the choice:

    "auto"    by the tensors' device: compiled if there, else on a GPU Triton's, else plain torch (says so once)
    "cpu"     the same, after making sure that the compiled CPU kernels are there
    "cuda"    the same, after making sure of those for GPUs; with HEBBKERN_CUDA_HOST=FILE they run on CPU tensors too
    "triton"  Triton's on a GPU even where compiled ones are; with TRITON_INTERPRET=1 on CPU tensors too, slowly
    "eager"   plain torch, everywhere

``screening(False)`` and HEBBKERN_SCREENING=off keep kernels from screening float32 competitions in bf16; on a GPU they
do so only for "always".
"""

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import warnings

import torch
from torch._subclasses.functional_tensor import FunctionalTensorMode

from hebbkern.backends import triton
from hebbkern.backends.cuda import stages as cuda
from hebbkern.backends.eager import kernels as eager
from hebbkern.ops import checks, library

COMPILED = {"cpu": "hebbkern._cpu", "cuda": "hebbkern._cuda"}  # device type -> the extension that serves it
NAMES = ("auto", "eager", "triton", *COMPILED)

SCREENING = {"off": 0, "auto": 1, "always": 2}

_missing = {}  # backend -> why it cannot run
_current = "auto"
_screening = "auto"


def available():
    """Each backend's name, with None if it can run, or the reason why not."""
    return {name: _why_not(name) for name in NAMES[1:]}


def current():
    """The name chosen by ``backend`` or HEBBKERN_BACKEND; "auto" if neither did."""
    return _current


def select(name):
    """Choose the backend of every operator for the whole process, all threads. Raises RuntimeError if it cannot run."""
    global _current
    if name not in NAMES:
        raise RuntimeError(f"hebbkern: the backend must be one of {', '.join(NAMES)}, got {name!r}")
    if reason := _why_not(name):
        raise RuntimeError(f"hebbkern: the backend {name!r} is not available: {reason}")
    library.choose(name if name in library.OVERLOADS else "default")
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


def set_screening(mode):
    """Choose for the whole process whether float32 competitions are screened: "auto", "off" or "always"."""
    global _screening
    if mode not in SCREENING:
        raise RuntimeError(f"hebbkern: screening must be one of {', '.join(SCREENING)}, got {mode!r}")
    for name in COMPILED:
        if name not in _missing:
            _import(name).screening(SCREENING[mode])
    _screening = mode


def get_screening():
    """What ``screens`` chose last."""
    return _screening


@contextlib.contextmanager
def screening(mode):
    """Within ``with hebbkern.screening(False):`` no competition is screened, in all threads.

    Where the processor has a bf16 matrix unit (AMX, a GPU's tensor cores), ``compete`` sorts out in bf16 who cannot
    win, by a proven bound, and computes the float32 responses of the others only: the same winners; with compiled
    kernels the same bits, by Triton responses that were summed in another order. True does so where it is faster (the
    default: on the CPU by shape, on a GPU never), False never, "always" for every shape it can be done for.
    HEBBKERN_SCREENING=off, auto or always sets the default.
    """
    before = _screening
    set_screening(mode if isinstance(mode, str) else "auto" if mode else "off")
    try:
        yield
    finally:
        set_screening(before)


def synchronize(device=None):
    """Wait for ``device`` (by default all that took steps), then raise RuntimeError if steps were skipped unnoticed.

    On a GPU nobody waits to see whether a step's numbers are finite: a step with a NaN or an infinity is skipped, the
    weights left as before, and counted. The next step there by the same kernels (compiled or Triton's) says so if it is
    known by then; this makes sure.
    """
    device = None if device is None else torch.device(device)
    if device is not None and device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    triton.report_skipped(device)
    _tell_of_compiled(device)


def _tell_of_compiled(device):
    """What the compiled kernels counted of steps that were skipped, as ``synchronize`` tells of Triton's."""
    on_cpu = sys.modules.get("_cuda_host")
    compiled = on_cpu or sys.modules.get(COMPILED["cuda"])
    for index in compiled.stepped() if compiled else ():
        known = torch.device("cpu") if on_cpu else torch.device("cuda", index)
        if device is None or known == device:
            if known.type == "cuda":
                torch.cuda.synchronize(known)
            checks.none_skipped(compiled.skipped(index), known)


@functools.cache
def _say_once(device):
    reason = _why_not("triton" if device == "cuda" else device) or f"this version has none for {device}"
    warnings.warn(
        f"hebbkern: no compiled kernels for {device} tensors, plain torch runs instead, which is slower ({reason}). "
        "`hebbkern doctor` says what to do; HEBBKERN_BACKEND=eager asks for plain torch without this warning.",
        RuntimeWarning,
        stacklevel=4,
    )


def _elsewhere(name):
    """Operator ``name`` on tensors that the kernels compiled for GPUs do not serve."""

    def run(tensor, *arguments):
        return library.operator(name)(tensor, *arguments)

    return run


def _fallback(function):
    @functools.wraps(function)
    def run(tensor, *arguments):
        _say_once(tensor.device.type)
        return function(tensor, *arguments)

    return run


def _by_triton(name):
    """The Triton kernel of operator ``name``, imported with its first use; elsewhere that of the tensors' device."""

    def run(tensor, *arguments):
        if triton.supports(tensor):
            return triton.kernels()[name](tensor, *arguments)
        # With TRITON_INTERPRET=1 nobody but eager serves a GPU: the device's own kernel is this function.
        return library.operator(name, "eager" if tensor.device.type == "cuda" else "default")(tensor, *arguments)

    return run


@functools.cache
def _compiled_for(index):
    """Whether the compiled kernels hold code for GPU ``index``: of its generation and not newer, or PTX of an older."""
    if index >= torch.cuda.device_count():
        return False
    known = [int(number) // 10 for number in importlib.import_module(COMPILED["cuda"]).architectures.split(",")]
    major, minor = torch.cuda.get_device_capability(index)
    own = 10 * major + minor
    return any(number // 10 == major and number <= own for number in known) or own > max(known)


def _takes_compiled(tensor):
    """Whether the compiled kernels serve ``tensor``, which is on a GPU; emulated ones serve the CPU."""
    return "cuda" not in _missing and not emulated() and _compiled_for(tensor.device.index or 0)


def _on_gpu(name):
    """Operator ``name`` by the compiled kernels if they are there, else by Triton's."""
    otherwise = _fallback(getattr(eager, name)) if "triton" in _missing else _by_triton(name)

    def run(tensor, *arguments):
        if not _takes_compiled(tensor):
            return otherwise(tensor, *arguments)
        if tensor.is_cuda and library.chosen[name] is library.operator(name):  # which public functions need not call
            library.straight.add(tensor.get_device())
        return library.compiled[name](tensor, *arguments)

    return run


def _show_to_compile(name):
    """Let torch.compile see the Triton kernels of operator ``name``, as torch.library.triton_op does for new ones.

    Those in place stay whole: besides the weights they write, to count skipped steps, what no graph knows of. So does
    dense_update, whose products by ATen a graph would compute with whatever precision is set when it runs.
    """

    def decompose(mode, operator, types, arguments, named):
        from torch.export._trace import custom_triton_ops_decomposition_disabled  # only there where something compiles

        exporting = custom_triton_ops_decomposition_disabled()
        elsewhere = exporting or named or arguments[0].device.type != "cuda" or "triton" in _missing
        if elsewhere or (operator._overloadname == "default" and _takes_compiled(arguments[0])):
            return mode.__torch_dispatch__(operator, types, arguments, named)
        with mode:
            return triton.trace(name, *arguments)

    for overload in ("default", "triton"):
        torch.library.register_torch_dispatch(
            f"hebbkern::{name}" + (f".{overload}" if overload != "default" else ""),
            FunctionalTensorMode,
            decompose,
            lib=library.LIBRARY,
        )


def _why_not(name):
    """Why this backend cannot run, or None. Looks for a GPU only where that is the question."""
    if name == "triton" and name not in _missing and os.environ.get("TRITON_INTERPRET") != "1":
        return None if torch.cuda.is_available() else "no GPU is found (TRITON_INTERPRET=1 runs it on the CPU, slowly)"
    if name == "cuda" and name not in _missing and not emulated():
        if not torch.cuda.is_available():
            return "no GPU is found"
        code = _compiled_for(torch.cuda.current_device())
        return (
            None if code else "hebbkern._cuda was built for other GPUs; install again with TORCH_CUDA_ARCH_LIST unset"
        )
    return _missing.get(name)


def emulated():
    """The file of kernels for GPUs that were compiled for the CPU, as the tests do to run them without one."""
    return os.environ.get("HEBBKERN_CUDA_HOST")


def _import(name):
    """The extension that serves ``name``."""
    if name == "cuda" and emulated():
        loader = importlib.machinery.ExtensionFileLoader("_cuda_host", emulated())
        specification = importlib.util.spec_from_file_location("_cuda_host", emulated(), loader=loader)
        return sys.modules.setdefault("_cuda_host", importlib.util.module_from_spec(specification))
    return importlib.import_module(COMPILED[name])


def _load():
    if importlib.util.find_spec("triton") is None:
        _missing["triton"] = "triton is not installed; CUDA builds of torch for Linux bring it, pip install triton does"
    for name, module in COMPILED.items():
        try:
            _import(name)
        except ModuleNotFoundError:
            compiler = "nvcc" if name == "cuda" else "a C++ compiler"
            _missing[name] = f"{module} was not built; install again where {compiler} is found"
        except ImportError as error:
            _missing[name] = f"{module} does not load: {error}"
    for name in library.chosen:
        function = getattr(eager, name)
        library.LIBRARY.impl(name, _fallback(function), "CompositeExplicitAutograd")
        library.LIBRARY.impl(f"{name}.eager", function, "CompositeExplicitAutograd")
        library.LIBRARY.impl(f"{name}.triton", _by_triton(name), "CompositeExplicitAutograd")
        library.LIBRARY.impl(f"{name}.cuda", _elsewhere(name), "CompositeExplicitAutograd")
        library.LIBRARY.impl(name, _on_gpu(name), "CUDA")
        if not name.endswith("_") and name != "dense_update":
            _show_to_compile(name)
    if "cuda" not in _missing:
        for name in (
            "dense_update",
            "dense_step_",
        ):  # whose products are ATen's, with settings that only Python reaches
            library.LIBRARY.impl(f"{name}.cuda", getattr(cuda, name), "CPU" if emulated() else "CUDA")


_load()
select(os.environ.get("HEBBKERN_BACKEND") or "auto")
set_screening(os.environ.get("HEBBKERN_SCREENING") or "auto")
