"""What ptxas made of a kernel: registers, spills, instructions, and how much of a multiprocessor it can fill.

Read from the cubin with cuobjdump, which Triton ships beside its compiler: no GPU is needed.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

REGISTERS = 65536  # of a multiprocessor, on every chip below
RESERVED = 1024  # bytes of shared memory that the system takes in each block

COUNTED = {  # instructions of the machine code, by mnemonic with its suffixes
    "tensor core": r"(HMMA|HGMMA|DMMA|UTC\w*MMA)\b",
    "128-bit loads": r"(LDG\.E\..*128|LDG\.128|LDGSTS.*\.128)",
    "barriers": r"(BAR|SYNCS)\b",
    "local": r"(LDL|STL)\b",
}


@dataclass(frozen=True)
class Chip:
    """Limits of a multiprocessor: CUDA programming guide, compute capabilities, technical specifications."""

    name: str
    capability: int
    warps: int
    blocks: int
    shared: int  # bytes
    block_shared: int  # bytes that one block may have


CHIPS = (
    Chip("sm_80", 80, warps=64, blocks=32, shared=164 << 10, block_shared=163 << 10),
    Chip("sm_90", 90, warps=64, blocks=32, shared=228 << 10, block_shared=227 << 10),
    Chip("sm_100", 100, warps=64, blocks=32, shared=228 << 10, block_shared=227 << 10),
)


def occupancy(chip, registers, shared, warps):
    """Which part of the warps that a multiprocessor can hold it does hold, 0 where not even one block fits."""
    if shared > chip.block_shared:
        return 0.0
    of_a_warp = -(-registers * 32 // 256) * 256  # registers are given out in units of 256
    warps_held = REGISTERS // 4 // max(of_a_warp, 256) * 4  # to each of four schedulers alike
    of_a_block = -(-(shared + RESERVED) // 128) * 128
    blocks = min(chip.blocks, chip.warps // warps, warps_held // (-(-warps // 4) * 4), chip.shared // of_a_block)
    return blocks * warps / chip.warps


def read(cubin):
    """{"registers", "stack", "instructions", and the counts of COUNTED} of the one kernel in ``cubin`` (bytes)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        use, code = _cuobjdump("-res-usage", file.name), _cuobjdump("-sass", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", use)
    if found is None:
        raise ValueError(f"cuobjdump says nothing of registers: {use[:200]!r}")
    return {"registers": int(found[1]), "stack": int(found[2]), **instructions(code)}


def instructions(code):
    """How many instructions ``code`` (the text of cuobjdump -sass) has, and of each kind in COUNTED."""
    line = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
    names = [name for name in line.findall(code) if name != "NOP"]
    return {"instructions": len(names)} | {
        kind: sum(bool(re.match(pattern, name)) for name in names) for kind, pattern in COUNTED.items()
    }


def _cuobjdump(what, file):
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    return subprocess.run([tool, what, file], check=True, capture_output=True, text=True).stdout
