"""Every kernel of hebbkern.backends.triton, compiled for several GPUs; no GPU is needed.

``builds`` turns the launches of the workloads into the distinct compilations of Triton at run time: argument types,
alignment and compile-time settings as its runtime specialises them. ``one_of_each`` keeps one of each configuration.
``rows`` compiles them for each chip and reads the machine code. ``problems`` returns what fails the report: a spill,
more shared memory than a block may have, or a product of halves or of tf32 without tensor cores. Kernels must not be
interpreted (no TRITON_INTERPRET).
"""

import importlib
import math
import multiprocessing
import os
import pkgutil
import re
import warnings
from dataclasses import dataclass

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import hebbkern.backends.triton
from hebbkern.backends.triton.launch import name_of
from hebbkern.benchmark.report import aligned

from . import cubin

TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.bool: "i1",
}
SIZES = ("PARTS", "LIMIT", "TILES", "BLOCK", "BLOCK_R")  # settings that follow from the sizes of tensors
INSIDE, GROUPED = 8, 10  # of a SHAPE (patches.py): whether there is no padding, whether there are groups
ALIGNED = 16  # bytes of an address, or the divisor of an integer, that the compiler knows
ON_TENSOR_CORES = re.compile(
    r"tt\.dot(?:_scaled)? .*(?:inputPrecision = (?:tf32|tf32x3|bf16x3|bf16x6)\b|tensor<[\dx]*x(?:bf16|f16)[,>].*\*)"
)


@dataclass(frozen=True)
class Build:
    """One compilation: a kernel with the types of its arguments and its compile-time settings."""

    module: str
    kernel: str
    signature: tuple  # (name, type) pairs
    constants: tuple  # (name, value) pairs
    settings: tuple  # names of the constants that the launcher sets
    aligned: tuple  # positions
    warps: int
    stages: int
    registers: int | None  # that a thread may have

    @property
    def dtype(self):
        """The type of the first tensor argument."""
        return next(kind[1:] for _, kind in self.signature if kind.startswith("*"))

    @property
    def label(self):
        """The compile-time settings, without the arguments that Triton makes constant."""
        return " ".join(f"{name}={value}" for name, value in self.constants if name in self.settings).replace(", ", ",")

    @property
    def configuration(self):
        """The launcher's choices, without those that only follow from the size of the layer."""
        chosen = {name: value for name, value in self.constants if name in self.settings and name not in SIZES}
        if "SHAPE" in chosen:
            chosen["SHAPE"] = chosen["SHAPE"][:2] == (1, 1), chosen["SHAPE"][GROUPED]
        if "FORM" in chosen:  # of a weight in apply.py
            chosen["FORM"] = chosen["FORM"][0] == 0
        if "PRECISION" not in chosen:  # nothing is multiplied: tiles are as large as the layer, up to a limit
            chosen = {name: value for name, value in chosen.items() if not name.startswith("BLOCK")}
        return self.module, self.kernel, self.dtype, tuple(chosen.items()), self.warps, self.stages, self.registers

    @property
    def work(self):
        """How much the kernel does: the size of its tiles, the number of its tensors, and whether there is padding."""
        tile = math.prod(value for name, value in self.constants if name.startswith("BLOCK"))
        padded = any(name == "SHAPE" and not value[INSIDE] for name, value in self.constants)
        return tile, sum(kind[0] == "*" for _, kind in self.signature), padded


def every_kernel():
    """The names, as in "compete.compete_kernel", of all kernels that the modules of hebbkern.backends.triton define."""
    names = []
    for module in pkgutil.iter_modules(hebbkern.backends.triton.__path__, "hebbkern.backends.triton."):
        members = vars(importlib.import_module(module.name)).items()
        kernels = [value for name, value in members if name.endswith("_kernel") and hasattr(value, "arg_names")]
        names += [name_of(kernel) for kernel in kernels if kernel.fn.__module__ == module.name]
    return names


def build(launch):
    """The compilation that Triton's runtime does for ``launch``."""
    kernel, signature, constants, aligned = launch.kernel, [], [], []
    given = dict(zip(kernel.arg_names, launch.arguments, strict=False)) | launch.settings
    for position, parameter in enumerate(kernel.params):
        value = given.get(parameter.name, parameter.default)
        value = getattr(value, "value", value) if isinstance(value, triton.language.constexpr) else value
        kind = "constexpr" if parameter.is_constexpr else _kind(value, parameter)
        signature.append((parameter.name, kind))
        if kind == "constexpr":
            constants.append((parameter.name, value))
        elif not parameter.do_not_specialize_on_alignment and _aligned(value):
            aligned.append(position)
    function = kernel.fn
    return Build(
        function.__module__,
        function.__name__,
        tuple(signature),
        tuple(constants),
        tuple(launch.settings),
        tuple(aligned),
        launch.warps,
        launch.stages,
        launch.registers,
    )


def _kind(value, parameter):
    if parameter.annotation_type:
        if value is None:  # Triton would not take it for a constexpr
            raise TypeError(f"{parameter.name}: None for a {parameter.annotation_type}")
        return parameter.annotation_type
    if value is None:
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        if value == 1 and not parameter.do_not_specialize:
            return "constexpr"
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    raise TypeError(f"{parameter.name}: no type for {value!r}")


def _aligned(value):
    if isinstance(value, torch.Tensor):
        return value.storage_offset() * value.element_size() % ALIGNED == 0
    return isinstance(value, int) and not isinstance(value, bool) and value % ALIGNED == 0


def builds(traces):
    """{Build: names of the workloads that need it} of ``traces``: {name: triton_recording.Trace}."""
    needed = {}
    for name, trace in traces.items():
        for launch in trace.launches:
            needed.setdefault(build(launch), []).append(name)
    return {key: list(dict.fromkeys(names)) for key, names in needed.items()}


def one_of_each(wanted):
    """Of every configuration the Build with the most work, with the names of all workloads that need it."""
    best, names = {}, {}
    for each, workloads in wanted.items():
        key = each.configuration
        names.setdefault(key, []).extend(workloads)
        if key not in best or each.work > best[key].work:
            best[key] = each
    return {best[key]: list(dict.fromkeys(names[key])) for key in best}


def compile_for(chip, wanted):
    """The row of ``wanted`` (a Build) for ``chip``, and its cubin; None where it does not compile."""
    warnings.simplefilter("ignore")
    kernel = getattr(importlib.import_module(wanted.module), wanted.kernel)
    attributes = {(position,): [["tt.divisibility", ALIGNED]] for position in wanted.aligned}
    source = ASTSource(kernel, dict(wanted.signature), dict(wanted.constants), attributes)
    options = {"num_warps": wanted.warps, "num_stages": wanted.stages, "maxnreg": wanted.registers}
    row = {"kernel": name_of(kernel), "dtype": wanted.dtype, "settings": wanted.label, "chip": chip.name}
    row |= {"warps": wanted.warps, "stages": wanted.stages}
    try:
        made = triton.compile(source, target=GPUTarget("cuda", chip.capability, 32), options=options)
    except Exception as error:  # whatever the compiler raises is a finding about this kernel, not the end of the report
        return row | {"problems": [f"does not compile: {_reason(error)}"]}, None
    row |= cubin.read(made.asm["cubin"]) | {"shared": made.metadata.shared, "warps": made.metadata.num_warps}
    row["occupancy"] = cubin.occupancy(chip, row["registers"], row["shared"], row["warps"])
    row["product"] = bool(ON_TENSOR_CORES.search(made.asm["ttir"]))
    return row, made.asm["cubin"]


def _reason(error):
    """The last sentences of the innermost error; the source stands before them."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[-300:]


def problems(row, chip):
    """A sentence for each problem that fails the report."""
    sentences = []
    if row["local"]:
        sentences.append(f"spills: {row['local']} local loads and stores, {row['stack']} bytes of stack")
    if row["shared"] > chip.block_shared:
        sentences.append(f"{row['shared']} bytes of shared memory, a block of {chip.name} has {chip.block_shared}")
    if row["product"] and not row["tensor core"]:
        sentences.append("multiplies halves or tf32 without tensor cores")
    return sentences


def rows(wanted, chips=cubin.CHIPS):
    """The report's rows: each Build of ``wanted`` for each chip, in as many processes as there are processors."""
    tasks = [(chip, each) for each in wanted for chip in chips]
    # Forked, not spawned: a new interpreter would take longer to import torch than most kernels to compile.
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        made = pool.starmap(compile_for, tasks, chunksize=1)
    for chip in chips:
        compiled = [(row, code) for row, code in made if row["chip"] == chip.name and code is not None]
        codes = [next(iter(cubin.machine_code(made).values())) for _, made in compiled]
        for (row, _), counts in zip(compiled, cubin.counted(chip, codes), strict=True):
            row |= counts
            row["problems"] = problems(row, chip)
    return [row | {"workloads": wanted[each]} for (row, _), (_, each) in zip(made, tasks, strict=True)]


HEAD = ("kernel", "dtype", "chip", "warps", "stages", "registers", "spills", "shared", "occupancy", "tensor core")
HEAD += ("128-bit loads", "barriers", "settings")


def text(rows):
    """The table of ``rows``."""
    return "\n".join(aligned([HEAD, *(tuple(map(str, _cells(row))) for row in rows)]))


def _cells(row):
    start = row["kernel"], row["dtype"], row["chip"], row["warps"], row["stages"]
    if "registers" not in row:
        return *start, *["-"] * 7, row["settings"]
    code = row["registers"], row["local"], row["shared"], f"{row['occupancy']:.0%}"
    return *start, *code, row["tensor core"], row["128-bit loads"], row["barriers"], row["settings"]
