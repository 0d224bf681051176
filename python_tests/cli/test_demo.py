"""hebbkern demo on a small data set, from the command line: what it prints, writes and measures."""

import argparse
import json

import numpy as np
import pytest
import torch

from hebbkern import cli
from hebbkern.benchmark import baselines
from hebbkern.cli import demo

for package in ("ignite", "matplotlib"):
    pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.fixture
def data(tmp_path):
    """Three classes of noisy bars, 8x8."""
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    images = rng.random((240, 8, 8)) * 0.3
    images[np.arange(240), labels * 2] += 0.7
    path = tmp_path / "bars.npz"
    np.savez(path, x_train=images[:180], y_train=labels[:180], x_test=images[180:], y_test=labels[180:])
    return str(path)


def test_the_demo_learns_times_and_draws(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "STEP", {"samples": 64, "neurons": 100})
    picture, report = tmp_path / "weights.png", tmp_path / "report.json"
    options = ["--neurons", "30", "--epochs", "10", "--batch-size", "20", "--rounds", "1"]
    assert cli.main(["demo", "--data", data, "--picture", str(picture), "--json", str(report), *options]) == 0
    printed, found = capsys.readouterr().out, json.loads(report.read_text())
    assert picture.stat().st_size > 1000 and str(picture) in printed
    assert list(found["accuracy"]) == ["raw pixels", "30 random filters", "30 learnt filters"]
    assert found["accuracy"]["30 learnt filters"] > 0.9
    for name, accuracy in found["accuracy"].items():
        assert f"{name:<36} {100 * accuracy:5.1f} %" in printed
    assert found["step"]["hebbkern"]["ratio"] == 1 and len(found["step"]) == 3
    assert all(row["seconds"] > 0 for row in found["step"].values())


def test_the_same_seed_learns_the_same(data):
    def learnt(seed):
        settings = argparse.Namespace(neurons=10, epochs=2, batch_size=20, lr=0.1, seed=seed)
        return demo.learn(torch.rand(60, 16, generator=torch.Generator().manual_seed(0)), settings)[0]

    assert torch.equal(learnt(0), learnt(0)) and not torch.equal(learnt(0), learnt(1))


def test_a_formulation_that_differs_is_not_timed(monkeypatch):
    monkeypatch.setattr(demo, "STEP", {"samples": 20, "neurons": 10})
    monkeypatch.setattr(baselines, "numpy_krotov_hopfield", lambda W, X, lr: np.add(W, 1, out=W))
    with pytest.raises(AssertionError, match=r"one step: hebbkern differs from NumPy by 1.\de\+00 of its norm"):
        demo.time_steps(torch.rand(20, 16), rounds=1)
