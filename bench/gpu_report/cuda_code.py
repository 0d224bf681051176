"""Every kernel of csrc/cuda as nvcc compiled it into hebbkern/_cuda, for all its architectures; no GPU is needed.

``rows`` reads the library: an instance of each kernel's template a row, with registers, stack and instructions.
``launched`` adds the launches of the workloads (cuda_recording.py): threads, shared memory and occupancy of a block.
``problems`` returns what fails the report.
"""

import re
import shutil
import subprocess
from pathlib import Path

import hebbkern
from hebbkern.benchmark.report import aligned

from . import cubin, cuda_recording

RESERVED_IN_USAGE = 1024  # bytes that cuobjdump counts as shared memory of every kernel from sm_90 on
RECORDED = "sm_90"  # launches are those of an H100: where a block may have less, launchers ask for less
ANONYMOUS = "hebbkern::(anonymous namespace)::"


def library():
    """The compiled kernels, or None where they were not built; they need not load."""
    return next(iter(sorted(Path(hebbkern.__file__).parent.glob("_cuda*.so"))), None)


def rows(path):
    """Of the library at ``path``: a dict for each instance of our kernels and each architecture."""
    chips, instances = {chip.name: chip for chip in cubin.ALL_CHIPS}, []
    for name, made in cubin.extracted(path):
        code = cubin.machine_code(made)
        if name not in chips or not code:
            continue
        for symbol, use in cubin.usage(made).items():
            instances.append({"chip": name, "symbol": symbol, "code": code[symbol], **use})
    names = _demangled([row["symbol"] for row in instances])
    for row, name in zip(instances, names, strict=True):
        row["instance"] = instance(name)
        row["kernel"] = row["instance"].partition("<")[0] if row["instance"] else None
    instances = [row for row in instances if row["instance"]]  # not those of libraries
    for chip in chips.values():
        own = [row for row in instances if row["chip"] == chip.name]
        for row, counts in zip(own, cubin.counted(chip, [row.pop("code") for row in own]), strict=True):
            row |= counts
            row["static"] -= RESERVED_IN_USAGE * (chip.capability >= 90 and row["static"] >= RESERVED_IN_USAGE)
            row["problems"] = problems(row)
    return sorted(instances, key=lambda row: (row["kernel"], row["instance"], row["chip"]))


def instance(name):
    """ "some_kernel<float, 4>" of a demangled ``name``, as launches spell it; None for other libraries' kernels."""
    if ANONYMOUS not in name:
        return None
    depth, end, name = 0, None, name[name.index(ANONYMOUS) + len(ANONYMOUS) :]
    for at, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            end = at
            break
    return spelled(name[:end])


def spelled(name):
    """One spelling of template arguments for two compilers: numbers bare, no anonymous namespace."""
    name = re.sub(r"(?:hebbkern::)?(?:\(anonymous namespace\)|\{anonymous\})::", "", name)
    name = name.replace("(bool)1", "true").replace("(bool)0", "false").replace("hebbkern::", "")
    name = re.sub(r"\((?:unsigned )?(?:int|long|char|short)\)(-?\d+)", r"\1", name)
    name = re.sub(r"\b(\d+)u?l?\b", r"\1", name)
    name = re.sub(r"\b(short|long) unsigned int\b", r"unsigned \1", name)
    return name.replace(" >", ">").strip()


def _demangled(symbols):
    tool = shutil.which("c++filt")
    if tool is None or not symbols:
        return symbols
    return subprocess.run([tool], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )[: len(symbols)]


def problems(row):
    """A sentence for each problem that fails the report."""
    sentences = []
    if row["local"] or row["stack"]:
        sentences.append(f"spills: {row['local']} local loads and stores, {row['stack']} bytes of stack")
    return sentences


def launched(rows, launches):
    """Adds the Launches of ``launches`` ({workload: order}) to ``rows``; returns the instances that no row has.

    A row gets "blocks": [{"threads", "shared", "occupancy", "workloads"}] and the problems of its launches.
    """
    chips = {chip.name: chip for chip in cubin.ALL_CHIPS}
    blocks = {}
    for workload, order in launches.items():
        for launch in cuda_recording.launches(order):
            key = spelled(launch.instance), launch.threads, launch.shared
            blocks.setdefault(key[0], {}).setdefault(key[1:], []).append(workload)
    for row in rows:
        chip, row["blocks"] = chips[row["chip"]], []
        for (threads, dynamic), workloads in blocks.get(row["instance"], {}).items():
            shared = row["static"] + dynamic
            filled = cubin.occupancy(chip, row["registers"], shared, -(-threads // 32))
            if not filled and chip.name != RECORDED:
                filled = None
            block = {"threads": threads, "shared": shared, "occupancy": filled}
            row["blocks"].append(block | {"workloads": list(dict.fromkeys(workloads))})
            if filled == 0:  # None: not known
                row["problems"].append(f"no room for {threads} threads with {shared} bytes of shared memory")
    known = {row["instance"] for row in rows}
    return [name for name in blocks if name not in known]


HEAD = ("kernel", "registers", "spills", "stack", "threads", "shared", "occupancy", "tensor core")
HEAD += ("128-bit loads", "async copies", "barriers", "instructions")
KINDS = ("tensor core", "128-bit loads", "async copies", "barriers", "instructions")


def text(rows):
    """The table of ``rows``, of each instance the largest block that a workload launches; 1/2: where chips differ."""
    chips = list(dict.fromkeys(row["chip"] for row in sorted(rows, key=lambda row: int(row["chip"][3:]))))
    by_instance = {}
    for row in rows:
        by_instance.setdefault(row["instance"], {})[row["chip"]] = row
    table = []
    for name, rows_of in by_instance.items():
        cells = zip(*(_cells(rows_of[chip]) for chip in chips if chip in rows_of), strict=True)
        table.append((name, *("/".join(each if len(set(each)) > 1 else each[:1]) for each in cells)))
    return "\n".join([f"{', '.join(chips)}:", *aligned([HEAD, *table])])


def _cells(row):
    block = max(row.get("blocks", ()), key=lambda block: (block["shared"], block["threads"]), default=None)
    size = "-", row["static"], "-"
    if block is not None:
        filled = "-" if block["occupancy"] is None else f"{block['occupancy']:.0%}"
        size = block["threads"], block["shared"], filled
    return tuple(map(str, (row["registers"], row["local"], row["stack"], *size, *(row[kind] for kind in KINDS))))
