"""The short scripts of examples/, run as a user runs them, and the layout of examples/papers."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES, PAPERS = ROOT / "examples", ROOT / "examples" / "papers"
NEEDS = {
    "rule": ["mlxtend"],
    "drop_in": ["torchvision"],
    "own_loop": ["mlxtend"],
    "train": ["mlxtend", "ignite", "safetensors"],
    "continual": ["mlxtend"],
    "dhp": [],
}
FOLDERS = ("krotov_hopfield", "hebbian_cnn", "hebbcl", "dhp_softmax", "common")


def scripts():
    return sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "__init__")


def test_there_are_six_scripts_of_at_most_60_lines():
    assert scripts() == sorted(NEEDS)
    assert max(len((EXAMPLES / f"{name}.py").read_text().splitlines()) for name in NEEDS) <= 60


def output(name):
    for package in NEEDS[name]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow(25)
@pytest.mark.parametrize("name", [name for name in sorted(NEEDS) if name != "dhp"])
def test_learnt_features_are_better_than_random_ones(name):
    learnt, *others = (float(value) for value in re.findall(r"([\d.]+) %", output(name).splitlines()[-1]))
    assert learnt > max(others) + 0.5


@pytest.mark.slow(25)
def test_dhp_learns_its_tasks():
    accuracies = [float(value) for value in re.findall(r"([\d.]+) %", output("dhp"))]
    assert len(accuracies) == 2 and min(accuracies) > 40


def imports(path):
    """The modules that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports stand with their full path"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_paper_imports_another(folder):
    others = tuple(f"examples.papers.{name}." for name in FOLDERS if name not in (folder, "common"))
    for path in (PAPERS / folder).glob("*.py"):
        assert not [name for name in imports(path) if f"{name}.".startswith(others)], path


def test_each_paper_is_a_package_with_a_command_and_a_readme():
    assert {path.name for path in PAPERS.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(FOLDERS)
    for folder in FOLDERS[:-1]:
        assert {"__init__.py", "__main__.py", "README.md"} <= {path.name for path in (PAPERS / folder).iterdir()}
        command = f"python -m examples.papers.{folder}"
        assert command in (PAPERS / folder / "README.md").read_text()
        assert command in (PAPERS / folder / "__main__.py").read_text()


def test_commands_in_the_results_and_their_page_name_modules_that_exist():
    pages = [*(ROOT / "results").glob("*.json"), ROOT / "docs" / "results.md", *PAPERS.glob("*/README.md")]
    modules = {module for page in pages for module in re.findall(r"python -m (examples[\w.]+)", page.read_text())}
    assert len(modules) >= 6
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
