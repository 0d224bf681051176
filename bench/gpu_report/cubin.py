"""What ptxas made of a kernel: registers, spills, instructions and occupancy of a multiprocessor.

Read from cubins with cuobjdump and nvdisasm, which Triton ships beside its compiler: no GPU is needed.
"""

import bisect
import itertools
import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

REGISTERS = 65536  # of a multiprocessor, on every chip below
RESERVED = 1024  # bytes of shared memory that the system takes in each block

COUNTED = {  # instructions of the machine code, by mnemonic with its suffixes
    "tensor core": r"(HMMA|HGMMA|DMMA|UTC\w*MMA)\b",
    "128-bit loads": r"(LDG\.E\..*(128|256)|LDG\.128|LDGSTS.*\.128)",
    "async copies": r"LDGSTS\b",
    "barriers": r"(BAR|SYNCS)\b",
    "local": r"(LDL|STL)\b",
}


@dataclass(frozen=True)
class Chip:
    """Limits of a multiprocessor: CUDA programming guide, compute capabilities, technical specifications."""

    name: str
    capability: int
    isa: str  # for nvdisasm
    warps: int
    blocks: int
    shared: int  # bytes
    block_shared: int  # bytes that one block may have


CHIPS = (
    Chip("sm_80", 80, "SM80", warps=64, blocks=32, shared=164 << 10, block_shared=163 << 10),
    Chip("sm_90", 90, "SM90a", warps=64, blocks=32, shared=228 << 10, block_shared=227 << 10),
    Chip("sm_100", 100, "SM100a", warps=64, blocks=32, shared=228 << 10, block_shared=227 << 10),
)
ALL_CHIPS = (*CHIPS, Chip("sm_120", 120, "SM120a", warps=48, blocks=24, shared=100 << 10, block_shared=99 << 10))


def occupancy(chip, registers, shared, warps):
    """The part of a multiprocessor's warps that are resident; 0 where not one block fits."""
    if shared > chip.block_shared:
        return 0.0
    of_a_warp = -(-registers * 32 // 256) * 256  # registers are given out in units of 256
    warps_held = REGISTERS // 4 // max(of_a_warp, 256) * 4  # to each of four schedulers alike
    of_a_block = -(-(shared + RESERVED) // 128) * 128
    blocks = min(chip.blocks, chip.warps // warps, warps_held // (-(-warps // 4) * 4), chip.shared // of_a_block)
    return blocks * warps / chip.warps


def read(cubin):
    """{"registers", "stack"} of the one kernel in ``cubin`` (bytes)."""
    ((_, use),) = usage(cubin).items()
    return {name: use[name] for name in ("registers", "stack")}


def usage(cubin):
    """{kernel: {"registers", "stack", "static"}} of those in ``cubin``; static: bytes of shared memory it declares."""
    output = _tool("cuobjdump", "-res-usage", cubin)
    kernels = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", output)
    if not kernels:
        raise ValueError(f"the output of cuobjdump has no registers: {output[:200]!r}")
    return {name: dict(zip(("registers", "stack", "static"), map(int, rest), strict=True)) for name, *rest in kernels}


def extracted(library):
    """[(chip's name, cubin)] of all that a compiled library holds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [_path("cuobjdump"), "-xelf", "all", Path(library).resolve()]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return [(path.name.split(".")[-2], path.read_bytes()) for path in sorted(Path(folder).glob("*.cubin"))]


def counted(chip, codes):
    """For each of ``codes`` (machine_code) the number of instructions, and of each kind in COUNTED.

    All are disassembled at once: starting the disassembler takes longer than disassembling most kernels.
    """
    listing = _tool("nvdisasm", "--binary", chip.isa, b"".join(codes)) if codes else ""
    line = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
    instructions = [(int(at, 16), name) for at, name in line.findall(listing)]
    ends = list(itertools.accumulate(map(len, codes)))
    names = [[] for _ in codes]
    for at, name in instructions:
        names[bisect.bisect_right(ends, at)].append(name)
    return [kinds(each) for each in names]


def kinds(names):
    """Counts of the instructions called ``names``."""
    names = [name for name in names if name != "NOP"]
    return {"instructions": len(names)} | {
        kind: sum(bool(re.match(pattern, name)) for name in names) for kind, pattern in COUNTED.items()
    }


def machine_code(cubin):
    """{kernel: its section .text} of an ELF file."""
    (table,), (width, number, strings) = struct.unpack_from("<Q", cubin, 0x28), struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + row * width) for row in range(number)]
    start_of_names, code = sections[strings][4], {}
    for at, _, _, _, start, length in sections:
        name = cubin[start_of_names + at : cubin.index(b"\0", start_of_names + at)].decode()
        if name.startswith(".text."):
            code[name.removeprefix(".text.")] = cubin[start : start + length]
    return code


def _tool(name, *arguments):
    """The output of a tool on a file that holds the last of ``arguments``."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(arguments[-1])
        file.flush()
        command = [_path(name), *arguments[:-1], file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _path(name):
    """The path of a tool that Triton ships."""
    import triton.backends.nvidia

    return Path(triton.backends.nvidia.__file__).parent / "bin" / name
