"""One wheel serves many torches: built against this environment's torch, it passes the operator suite under another.

    python python_tests/helpers/one_wheel_many_torches.py [--torch 2.13.0]

The other torch lives in its own virtual environment, .venvs/torch-VERSION, made when it is missing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OTHER = "2.13.0"
STEMS = (
    "compete",
    "nearest_patch",
    "accumulate",
    "dense_update",
    "apply",
    "kwinners",
)  # whose tests are the operator suite
NOT_SOURCES = shutil.ignore_patterns(".*", "*.so", "*.egg-info", "build", "dist", "runs", "results", "__pycache__")


def run(*command, cwd, **environment):
    """The command's output, errors included; a failing command raises with it."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-8000:]}")
    return done.stdout


def build_wheel(folder, project=ROOT, isolated=False, **environment):
    """A wheel built from scratch in a copy of the project without earlier build results, and what the build printed."""
    source, wheels = Path(folder, "source"), Path(folder, "wheels")
    shutil.copytree(project, source, ignore=NOT_SOURCES)
    options = ["--no-deps", "-v", "-w", wheels] + ([] if isolated else ["--no-build-isolation"])
    output = run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=folder, **environment)
    (wheel,) = wheels.glob("*.whl")
    return wheel, output


def at_hand(version=OTHER):
    """Whether the other torch needs no download: its environment is there, or pip finds a wheel without an index."""
    if environment(version).exists():
        return True
    wanted = ["--dry-run", "--quiet", "--no-index", "--no-deps", "--ignore-installed", f"torch=={version}"]
    return not subprocess.run([sys.executable, "-m", "pip", "install", *wanted], capture_output=True).returncode


def environment(version):
    return ROOT / ".venvs" / f"torch-{version}"


def other_python(version=OTHER):
    """The Python of a virtual environment that holds that torch and what the suite needs."""
    folder = environment(version)
    python = folder / "bin" / "python"
    if not folder.exists():
        making = folder.with_suffix(".making")
        run(sys.executable, "-m", "venv", "--clear", making, cwd=ROOT)
        pip = [making / "bin" / "python", "-m", "pip", "install"]
        run(*pip, f"torch=={version}", "numpy", "pytest", "hypothesis", cwd=ROOT)
        making.rename(folder)
    return python


def test_under(python, wheel, folder, *options):
    """Install the wheel beside that Python's torch and run the operator suite on it, far from the sources."""
    tests = Path(folder, "python_tests")
    shutil.copytree(ROOT / "python_tests" / "helpers", tests / "helpers")
    (tests / "ops").mkdir()
    shutil.copy(ROOT / "python_tests" / "conftest.py", tests)
    for stem in STEMS:
        shutil.copy(ROOT / "python_tests" / "ops" / f"test_{stem}.py", tests / "ops")
    shutil.copy(ROOT / "pyproject.toml", folder)
    run(python, "-m", "pip", "install", "--force-reinstall", "--no-deps", wheel, cwd=folder)
    for library in (ROOT / "hebbkern").glob(
        "_cuda*.so"
    ):  # built in place: beside a torch without CUDA it must not harm
        shutil.copy(library, _installed(python, folder))
    where = "import torch, hebbkern; print(torch.__version__, hebbkern.__file__)"
    loaded = run(python, "-c", where, cwd=folder).split()
    assert "site-packages" in loaded[-1], f"the suite would run on {loaded[-1]}, not on the wheel"
    suite = run(python, "-m", "pytest", "-q", "-k", "not eager", *options, cwd=folder, HEBBKERN_BACKEND="cpu")
    return f"torch {loaded[-2]}: {suite.splitlines()[-1]}"


def _installed(python, folder):
    """Where that Python has hebbkern, which is not imported for it."""
    find = "from importlib.util import find_spec; print(find_spec('hebbkern').submodule_search_locations[0])"
    return run(python, "-c", find, cwd=folder).split()[-1]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default=OTHER, metavar="VERSION", help=f"the other torch (default {OTHER})")
    version = parser.parse_args(argv).torch
    with tempfile.TemporaryDirectory() as folder:
        wheel, _ = build_wheel(folder)
        print(wheel.name, "with", ", ".join(name for name in zipfile.ZipFile(wheel).namelist() if ".so" in name))
        print(test_under(other_python(version), wheel, folder, "--all"))


if __name__ == "__main__":
    main()
