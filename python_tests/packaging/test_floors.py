"""The order of the floors: a module imports from its own floor and from those below, never upwards."""

import ast
from pathlib import Path

import hebbkern

PACKAGE = Path(hebbkern.__file__).parent
# From the ground up. Names on one line stand on one floor.
FLOORS = [
    {"_torch_private", "checks", "files", "specifications"},
    {"backends"},
    {"ops"},
    {"update", "reference"},
    {"rules"},
    {"nn"},
    {"__init__"},  # the public face, which imports what lies above it only when that is first named
    {"datasets", "plots", "evaluation"},
    {"training"},
    {"continual"},
    {"benchmark"},
    {"cli"},
    {"__main__"},
]
HEIGHT = {name: height for height, names in enumerate(FLOORS) for name in names}


def room(module):
    """The part of the package that a dotted name belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in HEIGHT else "__init__"


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in imports(ast.parse(path.read_text())):
        if module.split(".")[0] == "hebbkern" and HEIGHT[room(module)] > HEIGHT[own]:
            yield f"{own} -> {module}"


def test_every_module_stands_on_a_floor():
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert names == set(HEIGHT)


def test_no_module_imports_upwards():
    found = [f"{path.relative_to(PACKAGE)}: {line}" for path in sorted(PACKAGE.rglob("*.py")) for line in upward(path)]
    assert not found, "\n".join(found)


def test_an_upward_import_is_found(tmp_path):
    source = "from hebbkern import rules\nimport hebbkern.nn.layers\nfrom hebbkern.checks import fail\n"
    modules = list(imports(ast.parse(source)))
    assert [HEIGHT[room(module)] > HEIGHT["ops"] for module in modules] == [True, True, False]
