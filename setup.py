"""Builds the compiled kernels: csrc/cpu into hebbkern/_cpu, csrc/cuda into hebbkern/_cuda.

One binary serves every torch from 2.11 (torch's stable ABI) and every Python from 3.11 (the limited API).
HEBBKERN_BUILD chooses what is built:

    auto   the kernels that can be built and run here (default); what is left out is named, with the reason
    none   nothing: a pure Python package
    cpu    the CPU kernels, or an error
    cuda   the CPU and the CUDA kernels, or an error; no GPU is needed

"auto" builds the CUDA kernels where nvcc and a GPU are, and without a GPU where TORCH_CUDA_ARCH_LIST asks for them.

MAX_JOBS limits the parallel compilation, TORCH_CUDA_ARCH_LIST names the GPU architectures, CXX the compiler, CUDA_HOME
the CUDA toolkit. NVCC_APPEND_FLAGS is nvcc's own: "make test" turns its warnings into errors with it.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]  # torch itself adds Py_LIMITED_API
# Without traps a comparison may choose between two results that are both computed, so that loops of tanh and exp
# vectorise (5 and 2.6 times as fast with AVX2); no result changes.
FLAGS = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", *DEFINES]
CUDA_FLAGS = ["-O3", "--threads=2", "-Xcompiler=-fvisibility=hidden", *DEFINES]  # 2 architectures at a time
GPUS = "8.0;9.0;10.0;12.0+PTX"


def find_torch():
    """Whether a torch to compile against is here: the build environment's, else the one hebbkern is installed beside.

    pip hides the latter from an isolated build. The stable ABI makes any torch from 2.11 good enough, so taking it
    spares a second download of several gigabytes.
    """
    for paths in ([], list({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")} - set(sys.path))):
        sys.path.extend(paths)
        try:
            import torch

            return torch.__version__ >= (2, 11)
        except (ImportError, OSError):
            sys.path[:] = [path for path in sys.path if path not in paths]
    return False


def find_compiler():
    """Whether a C++ compiler is here; the one found is what torch's build then runs."""
    for command in [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]:
        if shutil.which(shlex.split(command)[0]):
            os.environ["CXX"] = command
            return True
    return False


def missing_for_cpu():
    """What keeps the CPU kernels from being built here, in one sentence, or None."""
    if sys.platform == "win32":
        return "the compiled kernels do not support Windows yet."
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "a free-threaded Python has no limited API to build them for."
    if not find_compiler():
        return f"no C++ compiler was found ({os.environ.get('CXX') or 'c++, g++, clang++'}); install g++ or clang."
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        return f"Python's headers were not found ({header}); install them (python3-dev or python3-devel)."
    return None if find_torch() else "no torch >= 2.11 was found to compile against; install torch first."


def find_toolkit():
    """Name the folder of the nvcc on the path as CUDA_HOME, where that is unset: torch would take a script for it."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    said = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True).stderr
    if found := re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE):
        os.environ["CUDA_HOME"] = str(Path(found[1].strip()).resolve())


def has_gpu():
    """Whether an NVIDIA GPU is here, as the driver says; CUDA is not started."""
    if list(Path("/dev").glob("nvidia[0-9]*")):
        return True
    listing = shutil.which("nvidia-smi")
    return bool(listing) and "GPU 0" in subprocess.run([listing, "-L"], capture_output=True, text=True).stdout


def missing_for_cuda():
    """What keeps the CUDA kernels from being built here, in one sentence, or None. A GPU need not be here."""
    find_toolkit()
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if not list(Path("csrc/cuda").rglob("*.cu")):
        return "this version has no CUDA sources."
    if not CUDA_HOME or not shutil.which("nvcc", path=str(Path(CUDA_HOME, "bin"))):
        return f"no nvcc was found{f' in {CUDA_HOME}/bin' if CUDA_HOME else ''}; set CUDA_HOME."
    if not torch.version.cuda:
        return f"torch {torch.__version__} is a build without CUDA."
    said = subprocess.run([Path(CUDA_HOME, "bin", "nvcc"), "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", said)
    if not release or release[1] != torch.version.cuda.split(".")[0]:
        return f"nvcc {release[0] if release else said!r} is not of torch's CUDA {torch.version.cuda}."
    if tuple(map(int, release.groups())) < (12, 8):
        return f"nvcc {release[0]} is older than 12.8, which knows all of {GPUS}."
    return None


def architectures(asked):
    """What is compiled for of those asked for; the kernels copy asynchronously, which begins with 8.0."""
    known = [name for name in re.split(r"[;\s]+", asked or "") if name and not re.match(r"[1-7]\.", name)]
    return ";".join(known) or GPUS


def compiled(with_cuda):
    """The arguments of setup() that compile the kernels."""
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    class Build(BuildExtension):
        def build_extensions(self):
            try:
                super().build_extensions()
            except Exception as error:
                advice = "the kernels did not compile (see above); HEBBKERN_BUILD=none installs without them"
                advice += ", HEBBKERN_BUILD=cpu without those for GPUs." if with_cuda else "."
                raise SystemExit(f"{error}\nhebbkern: {advice}") from error

    def extension(make, device, flags):
        sources = sorted(str(path) for path in Path("csrc", device).rglob("*") if path.suffix in (".cpp", ".cu"))
        options = {"include_dirs": [str(Path("csrc").resolve())], "extra_compile_args": flags, "py_limited_api": True}
        return make(f"hebbkern._{device}", sources, **options)

    modules = [extension(CppExtension, "cpu", {"cxx": FLAGS})]
    if with_cuda:
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures(os.environ.get("TORCH_CUDA_ARCH_LIST"))
        modules.append(extension(CUDAExtension, "cuda", {"cxx": FLAGS, "nvcc": CUDA_FLAGS}))
    wheel = {"bdist_wheel": {"py_limited_api": "cp311"}}
    return {"ext_modules": modules, "cmdclass": {"build_ext": Build}, "options": wheel}


def plan(mode):
    """The arguments of setup() that depend on the machine and on HEBBKERN_BUILD."""
    if mode not in ("auto", "none", "cpu", "cuda"):
        raise SystemExit(f"hebbkern: HEBBKERN_BUILD must be auto, none, cpu or cuda, got {mode!r}")
    if mode == "none":
        return {}
    no_cpu = missing_for_cpu()
    if no_cpu and "install torch" in no_cpu and "setuptools.build_meta" in sys.modules and "egg_info" in sys.argv:
        return {"setup_requires": ["torch>=2.11"]}  # the installer asks what the build needs, and brings it
    no_cuda = None if no_cpu or mode == "cpu" else missing_for_cuda()
    if mode == "auto" and not (no_cuda or os.environ.get("TORCH_CUDA_ARCH_LIST") or has_gpu()):
        no_cuda = "no GPU was found."
    for missing, insist in ((no_cpu, mode != "auto"), (no_cuda, mode == "cuda")):
        if missing and insist:
            raise SystemExit(f"hebbkern: HEBBKERN_BUILD={mode} cannot be met: {missing}")
    if no_cpu:
        print(f"hebbkern: installing without compiled kernels: {no_cpu} Plain torch runs instead.", file=sys.stderr)
        return {}
    if no_cuda:
        advice = "HEBBKERN_BUILD=cuda builds them wherever nvcc is installed."
        print(f"hebbkern: installing without the CUDA kernels: {no_cuda} {advice}", file=sys.stderr)
    return compiled(with_cuda=mode != "cpu" and not no_cuda)


setup(**plan(os.environ.get("HEBBKERN_BUILD", "auto")))
