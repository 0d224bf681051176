"""What an installation holds: one wheel for every torch and Python, or a pure Python one; no failure is silent."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import one_wheel_many_torches as wheels

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the kernels do not support Windows yet")

MODULE = """
#include <Python.h>
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__cpu(void) {
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1};
    return PyModule_Create(&module);
}
"""
CUDA_MODULE = """
#include <Python.h>
__global__ void kernel(int* p) { *p = 1; }
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__cuda(void) {
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1};
    kernel<<<1, 1>>>(nullptr);
    return PyModule_Create(&module);
}
"""
LEARN = """
import warnings, torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import hebbkern as hk
    x, weight = torch.rand(4, 3), torch.rand(5, 3)
    for _ in range(2):
        winners, _ = hk.ops.compete(x, weight)
assert torch.equal(winners[:, 0].long(), (x @ weight.T).argmax(1))
said = [str(w.message) for w in caught if "hebbkern" in str(w.message)]
assert len(said) == 1 and "plain torch" in said[0] and "doctor" in said[0], said
print(hk.__file__)
"""


def has_gpu():
    return any(Path("/dev").glob("nvidia[0-9]*"))


whole_build = pytest.mark.slow(25)  # compiles a package


@pytest.fixture
def project(tmp_path):
    """The build of this repository around a kernel that compiles in a second."""
    folder = tmp_path / "project"
    (folder / "csrc" / "cpu").mkdir(parents=True)
    (folder / "csrc" / "cpu" / "module.cpp").write_text(MODULE)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(wheels.ROOT / name, folder)
    (folder / "hebbkern").mkdir()
    (folder / "hebbkern" / "__init__.py").write_text("import torch\n")
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The repository's own wheel with the CPU kernels, and how ninja compiled them: in place, only what has changed."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["build", "--build-lib", folder / "lib", "bdist_wheel", "--bdist-dir", folder / "files"]
    wheels.run(sys.executable, "setup.py", *build, "--dist-dir", folder, cwd=wheels.ROOT, HEBBKERN_BUILD="cpu")
    (path,) = folder.glob("*.whl")
    (ninja,) = (wheels.ROOT / "build").glob("temp.*/build.ninja")
    return path, ninja.read_text()


@whole_build
def test_wheel_is_for_every_python_and_processor(wheel):
    path, commands = wheel
    assert "-cp311-abi3-" in path.name
    assert "TORCH_TARGET_VERSION=0x020b000000000000" in commands
    assert not re.search(r"-m(arch|cpu|tune|avx)", commands)


@whole_build
def test_wheel_holds_every_module_and_no_other_file(wheel):
    held = {name for name in zipfile.ZipFile(wheel[0]).namelist() if not name.startswith("hebbkern-")}
    package = wheels.ROOT / "hebbkern"
    sources = {str(path.relative_to(wheels.ROOT)) for path in (*package.rglob("*.py"), *package.glob("py.typed"))}
    assert held == sources | {"hebbkern/_cpu.abi3.so"}


@whole_build
def test_wheel_uses_only_the_stable_abi(wheel, tmp_path):
    library = zipfile.ZipFile(wheel[0]).extract("hebbkern/_cpu.abi3.so", tmp_path)
    undefined = wheels.run("nm", "-D", "-C", "--undefined-only", library, cwd=tmp_path)
    assert "torch_" in undefined
    assert not re.search(r"\b(at|c10|torch|caffe2)::", undefined), undefined


@whole_build
def test_wheel_passes_abi3audit(wheel, tmp_path):
    pytest.importorskip("abi3audit")
    assert "0 ABI version mismatches" in wheels.run(sys.executable, "-m", "abi3audit", "-v", wheel[0], cwd=tmp_path)


@pytest.fixture
def cuda_kernels():
    """The repository's own compiled CUDA kernels, as the build left them in place."""
    found = sorted((wheels.ROOT / "hebbkern").glob("_cuda*.so"))
    if not found:
        pytest.skip("the CUDA kernels are not built (HEBBKERN_BUILD=cuda)")
    return found[0]


def test_cuda_kernels_use_only_the_stable_abi(cuda_kernels, tmp_path):
    pytest.importorskip("abi3audit")
    undefined = wheels.run("nm", "-D", "-C", "--undefined-only", cuda_kernels, cwd=tmp_path)
    assert "torch_" in undefined
    assert not re.search(r"\b(at|c10|torch|caffe2)::", undefined), undefined
    audited = wheels.run(sys.executable, "-m", "abi3audit", "-v", cuda_kernels, cwd=tmp_path)
    assert "0 ABI version mismatches" in audited


def test_cuda_kernels_load_without_a_gpu_and_without_starting_cuda(cuda_kernels, tmp_path):
    load = "import torch, hebbkern._cuda as c; print(c.architectures, torch.cuda.is_initialized())"
    architectures, initialized = wheels.run(sys.executable, "-c", load, cwd=tmp_path).split()[-2:]
    assert initialized == "False" and all(number.isdigit() for number in architectures.split(","))


@whole_build
@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not on the path")
@pytest.mark.parametrize("broken", [False, True])
def test_both_kinds_of_kernels_in_one_wheel_or_advice(project, tmp_path, broken):
    (project / "csrc" / "cuda").mkdir()
    (project / "csrc" / "cuda" / "module.cu").write_text("this is not CUDA\n" if broken else CUDA_MODULE)
    settings = {"HEBBKERN_BUILD": "auto", "TORCH_CUDA_ARCH_LIST": "9.0"}
    if broken:
        with pytest.raises(RuntimeError, match="HEBBKERN_BUILD=cpu without those for GPUs"):
            wheels.build_wheel(tmp_path, project, **settings)
        return
    path, output = wheels.build_wheel(tmp_path, project, **settings)
    held = zipfile.ZipFile(path).namelist()
    assert {"hebbkern/_cpu.abi3.so", "hebbkern/_cuda.abi3.so"} <= set(held)
    assert "code=sm_90" in output and "sm_80" not in output


@pytest.mark.slow(25)
@pytest.mark.skipif(not shutil.which("nvcc") or has_gpu(), reason="wants nvcc without a GPU")
def test_kernels_for_a_gpu_that_is_not_here_are_left_out_and_named(project, tmp_path):
    (project / "csrc" / "cuda").mkdir()
    (project / "csrc" / "cuda" / "module.cu").write_text(CUDA_MODULE)
    path, output = wheels.build_wheel(tmp_path, project, HEBBKERN_BUILD="auto", TORCH_CUDA_ARCH_LIST="")
    held = zipfile.ZipFile(path).namelist()
    assert "hebbkern/_cpu.abi3.so" in held and "hebbkern/_cuda.abi3.so" not in held
    message = "without the CUDA kernels: no GPU was found. HEBBKERN_BUILD=cuda builds them wherever nvcc is installed."
    assert message in output


@whole_build
def test_wheel_passes_the_operator_suite_under_another_torch(wheel, tmp_path):
    if not wheels.at_hand():
        pytest.skip(f"torch {wheels.OTHER} is not at hand without a download; `make one-wheel` fetches it")
    assert " passed" in wheels.test_under(wheels.other_python(), wheel[0], tmp_path)


@pytest.mark.slow(12)
def test_pure_python_install_runs_on_plain_torch_and_says_so_once(tmp_path):
    wheel, _ = wheels.build_wheel(tmp_path, HEBBKERN_BUILD="none")
    assert wheel.name.endswith("-py3-none-any.whl")
    site = tmp_path / "site"
    wheels.run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", site, wheel, cwd=tmp_path)
    # -S: without the .pth file by which an editable install would lend its compiled kernels.
    path = f"{site}{os.pathsep}{sysconfig.get_path('platlib')}"
    output = wheels.run(sys.executable, "-S", "-c", LEARN, cwd=tmp_path, PYTHONPATH=path, HEBBKERN_BACKEND="")
    assert str(site) in output


@whole_build
@pytest.mark.parametrize("isolated", [False, True])
def test_build_with_and_without_isolation(project, tmp_path, isolated):
    if (
        isolated
        and subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "-d", tmp_path / "reached", "wheel"],
            capture_output=True,
        ).returncode
    ):
        pytest.skip("no package index is reached to fill an isolated build environment from")
    path, output = wheels.build_wheel(tmp_path, project, isolated, HEBBKERN_BUILD="cpu")
    assert "-cp311-abi3-" in path.name
    assert "Collecting torch" not in output


def test_without_a_compiler_one_message_and_pure_python(project, tmp_path):
    path, output = wheels.build_wheel(tmp_path, project, CXX="/no/such/compiler", HEBBKERN_BUILD="auto")
    assert path.name.endswith("-py3-none-any.whl")
    message = "without compiled kernels: no C++ compiler was found (/no/such/compiler); install g++ or clang."
    assert message in output


def test_without_pythons_headers_one_message_and_pure_python(project, tmp_path):
    """As where a distribution keeps them in a package of their own."""
    text = (project / "setup.py").read_text()
    elsewhere = 'import sysconfig\n\nsysconfig.get_path = lambda name, real=sysconfig.get_path: real(name) + "/none"\n'
    assert "import sysconfig\n" in text
    (project / "setup.py").write_text(text.replace("import sysconfig\n", elsewhere, 1))
    path, output = wheels.build_wheel(tmp_path, project, HEBBKERN_BUILD="auto")
    assert path.name.endswith("-py3-none-any.whl")
    assert "without compiled kernels: Python's headers were not found" in output
    assert "python3-dev" in output


@pytest.mark.parametrize(
    ("mode", "compiler", "message"),
    [
        ("cpu", "/no/such/compiler", "HEBBKERN_BUILD=cpu cannot be met: no C++ compiler was found"),
        ("fast", "", "HEBBKERN_BUILD must be auto, none, cpu or cuda, got 'fast'"),
    ],
)
def test_what_cannot_be_built_but_is_insisted_on_fails(project, tmp_path, mode, compiler, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        wheels.build_wheel(tmp_path, project, HEBBKERN_BUILD=mode, CXX=compiler)


@pytest.mark.slow(14)
def test_a_compile_error_fails_and_names_the_way_round(project, tmp_path):
    (project / "csrc" / "cpu" / "broken.cpp").write_text("this is not C++\n")
    with pytest.raises(RuntimeError, match="HEBBKERN_BUILD=none installs without them"):
        wheels.build_wheel(tmp_path, project, HEBBKERN_BUILD="auto")


@pytest.mark.slow(7)
def test_parts_that_need_more_packages_are_imported_when_they_are_named():
    code = "import sys, hebbkern as hk; assert not {'ignite', 'matplotlib'} & set(sys.modules)"
    code += "; assert 'training' in dir(hk); hk.training.train; assert 'ignite' in sys.modules"
    pytest.importorskip("ignite", reason="pytorch-ignite is not installed")
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
