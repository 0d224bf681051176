"""Every name of csrc/cpu has one definition: link-time optimisation compares the definitions in all sources."""

import concurrent.futures
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

import cuda_host

SOURCES = Path(__file__).parents[2] / "csrc"
INCLUDE = Path(torch.__file__).parent / "include"
COMPILE = [
    "-std=c++20", "-O1", "-flto", "-Wodr", "-fPIC", "-fvisibility=hidden",
    "-DTORCH_TARGET_VERSION=0x020b000000000000", "-DPy_LIMITED_API=0x030b0000",
    f"-I{SOURCES}", f"-isystem{INCLUDE}", f"-isystem{sysconfig.get_path('include')}",
]  # fmt: skip
LINK = ["-shared", "-O1", "-flto", "-Wodr", "-Werror=odr"]


def links_whole_programs(folder):
    """Whether the compiler is g++ (clang has no -Wodr) and its linker takes link-time optimisation."""
    source = folder / "empty.cpp"
    source.write_text("int answer() { return 42; }\n")
    command = [*(cuda_host.compiler() or ["false"]), *LINK, "-fPIC", source, "-o", folder / "empty.so"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow(200)
def test_every_name_has_one_definition(tmp_path):
    if not links_whole_programs(tmp_path):
        pytest.skip("no g++ with link-time optimisation is found")
    sources = sorted((SOURCES / "cpu").rglob("*.cpp"))
    objects = [tmp_path / f"{source.stem}.o" for source in sources]

    def compiled(source, target):
        cuda_host.run(*cuda_host.compiler(), *COMPILE, "-c", source, "-o", target)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(compiled, sources, objects))
    cuda_host.run(*cuda_host.compiler(), *LINK, *objects, "-o", tmp_path / "all.so")
