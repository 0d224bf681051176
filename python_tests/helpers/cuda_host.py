"""Compiles csrc/cuda with g++ and the emulation in cudaemu/, so that its kernels run on CPU tensors.

``python python_tests/helpers/cuda_host.py`` builds build/cuda_host/_cuda_host.abi3.so, compiling only what has changed.
Where HEBBKERN_CUDA_HOST names such a file and HEBBKERN_DEVELOPER is 1, hebbkern's backend "cuda" uses it.
"""

import concurrent.futures
import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES, EMULATION = ROOT / "csrc" / "cuda", ROOT / "python_tests" / "cudaemu"
FOLDER = ROOT / "build" / "cuda_host"
INCLUDE = Path(torch.__file__).parent / "include"
FLAGS = [
    "-x", "c++", "-std=c++20", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas", "-Werror",
    "-fpch-preprocess",  # for ccache
    "-DTORCH_TARGET_VERSION=0x020b000000000000", "-DPy_LIMITED_API=0x030b0000",
    f"-I{EMULATION}", f"-isystem{INCLUDE}", f"-isystem{sysconfig.get_path('include')}",
]  # fmt: skip

SHARED = ["cudaemu.h", "torch/csrc/stable/library.h", "torch/csrc/stable/ops.h", "torch/csrc/stable/tensor.h"]


def library(folder=FOLDER):
    return folder / "_cuda_host.abi3.so"


def built():
    """The library, or None if it is missing or older than its sources."""
    if not library().exists():
        return None
    sources = [*headers(SOURCES), *SOURCES.rglob("*.cu")]
    return library() if newest(sources) < library().stat().st_mtime else None


def headers(sources):
    """Files that every object depends on: headers, this module and the version of torch."""
    files = *sources.rglob("*.cuh"), *sources.parent.joinpath("common").glob("*.h"), *EMULATION.glob("*.h")
    return [*files, Path(__file__), Path(torch.__file__).with_name("version.py")]


def newest(paths):
    return max(path.stat().st_mtime for path in paths)


def compiler():
    """The command line of the compiler, CXX or g++; None if it is not installed."""
    command = shlex.split(os.environ.get("CXX") or "g++")
    return command if shutil.which(command[0]) else None


def precompile(command, folder, flags):
    """The header of what every source includes, compiled once; reading it took almost half of the time of each."""
    header = folder / "shared.h"
    target = folder / "shared.h.gch"
    made_of = [*EMULATION.glob("*.h"), Path(__file__), Path(torch.__file__).with_name("version.py")]
    if not target.exists() or target.stat().st_mtime < newest(made_of):
        header.write_text("".join(f'#include "{name}"\n' for name in SHARED))
        run(*command, "-x", "c++-header", *FLAGS[2:], *flags, header, "-o", target)
    return header


def build(folder=FOLDER, flags=(), sources=SOURCES):
    """Compiles what is older than its sources, links, and returns the library.

    Raises RuntimeError with the compiler's output, FileNotFoundError without a compiler.
    """
    command = compiler()
    if command is None:
        raise FileNotFoundError("no g++ is found")
    folder.mkdir(parents=True, exist_ok=True)
    latest = newest(headers(sources))
    shared = precompile(command, folder, flags)

    def compiled(source):
        target = folder / f"{source.stem}.o"
        if not target.exists() or target.stat().st_mtime < max(latest, source.stat().st_mtime):
            run(*command, *FLAGS, "-include", shared, f"-I{sources.parent}", *flags, "-c", source, "-o", target)
        return target

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sorted(sources.rglob("*.cu"))))
    target = library(folder)
    if not target.exists() or target.stat().st_mtime < max(latest, newest(objects)):
        libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", "-pthread"]
        fresh = target.with_suffix(f".{os.getpid()}")  # another process may be loading the old library
        run(*command, "-shared", *flags, "-o", fresh, *objects, *libraries)
        fresh.replace(target)
    return target


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr[-4000:]}")


def main():
    try:
        print(build())
    except FileNotFoundError as error:
        print(f"{error}: the CUDA kernels are not tested.")


if __name__ == "__main__":
    main()
