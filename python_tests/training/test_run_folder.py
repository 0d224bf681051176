"""The files of a run folder on a full disk, and two trainings in one folder."""

import contextlib
import dataclasses
import multiprocessing
import os
import threading

import numpy as np
import pytest

module = pytest.importorskip("hebbkern.training.run", reason="ignite is not installed", exc_type=ImportError)
resource = pytest.importorskip("resource", reason="no limits of resources on Windows")

from hebbkern.training import config  # noqa: E402
from hebbkern.training.config import Config  # noqa: E402
from hebbkern.training.engine import Events  # noqa: E402
from trainings import network, train  # noqa: E402


@pytest.fixture
def run(tmp_path):
    """A finished run of two epochs, and its configuration."""
    images = np.random.default_rng(0).random((30, 16))
    np.savez(tmp_path / "x.npz", x_train=images, y_train=np.arange(30) % 3, x_test=images, y_test=np.arange(30) % 3)
    run = Config(data=str(tmp_path / "x.npz"), out=str(tmp_path / "run"), neurons=4, epochs=2, batch_size=5, pictures=0)
    module.run(run)
    return dataclasses.replace(run, resume=True)


@contextlib.contextmanager
def full_disk():
    """As `ulimit -f 0`: no file can grow."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("changes", [{}, {"save_every": 3, "threads": 1}], ids=["same", "other fields"])
def test_a_full_disk_during_a_resume_leaves_a_run_that_can_be_resumed(run, tmp_path, changes):
    folder = tmp_path / "run"
    (folder / "checkpoint_12.safetensors").unlink()
    (folder / "report.json").unlink()
    before = contents(folder)
    with full_disk(), pytest.raises(OSError, match=r"File too large: '.*run/\w+\.\w+'"):
        module.run(dataclasses.replace(run, **changes))
    after = contents(folder)
    assert after["config.yaml"] == before["config.yaml"]
    assert after["checkpoint_6.safetensors"] == before["checkpoint_6.safetensors"]
    assert module.run(run)["epochs"] == 2 and sorted(contents(folder)) == sorted(before | contents(folder))


def test_a_full_disk_leaves_the_report_of_before(run, tmp_path):
    report = tmp_path / "run" / "report.json"
    before = report.read_bytes()
    with full_disk(), pytest.raises(OSError, match=r"File too large: '.*report.json'"):
        module.run(run)
    assert report.read_bytes() == before
    assert not list((tmp_path / "run").glob(".*"))


def test_what_has_not_changed_is_not_written_again(run, tmp_path):
    def written():
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}

    before = written()
    module.run(run)
    after = written()
    assert [name for name in before if before[name] != after[name]] == ["report.json"]  # it has the seconds


def hold(folder, entered, leave):
    def wait(engine):
        entered.set()
        leave.wait(5)

    train(network(), folder, handlers=[(Events.ITERATION_COMPLETED, wait)])


def test_a_second_training_in_a_folder_is_told_who_holds_it(tmp_path):
    processes = multiprocessing.get_context("fork")
    entered, leave = processes.Event(), processes.Event()
    first = processes.Process(target=hold, args=(tmp_path, entered, leave))
    first.start()
    assert entered.wait(5)
    held = contents(tmp_path)
    with pytest.raises(RuntimeError, match=f"folder must have .* which process {first.pid} on .* writes to"):
        train(network(), tmp_path, resume=True)
    assert contents(tmp_path) == held
    first.kill()  # which ends the lock
    first.join()
    assert train(network(), tmp_path, resume=True).state.epoch == 4
    assert not (tmp_path / ".lock").exists()


def test_two_threads_do_not_train_in_one_folder(tmp_path):
    entered, leave = threading.Event(), threading.Event()
    first = threading.Thread(target=hold, args=(tmp_path, entered, leave))
    first.start()
    assert entered.wait(5)
    with pytest.raises(RuntimeError, match=f"which process {os.getpid()} on .* writes to"):
        train(network(), tmp_path, resume=True)
    leave.set()
    first.join()
    assert train(network(), tmp_path, resume=True).state.epoch == 4


def test_a_run_in_a_folder_that_is_held_changes_nothing(run, tmp_path):
    from hebbkern import files

    before = contents(tmp_path / "run")
    entered, leave = threading.Event(), threading.Event()

    def keep():
        with files.locked(tmp_path / "run"):
            entered.set()
            leave.wait(5)

    first = threading.Thread(target=keep)
    first.start()
    assert entered.wait(5)
    with pytest.raises(RuntimeError, match="folder must have one training at a time"):
        module.run(dataclasses.replace(run, threads=1))
    leave.set()
    first.join()
    assert contents(tmp_path / "run") == before and config.load(tmp_path / "run" / "config.yaml")["threads"] is None
