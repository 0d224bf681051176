"""Writing checkpoints: the last one stays whole whatever happens, and ignite decides how many are kept."""

import builtins
import errno
import os

import pytest
import torch
from torch import nn

pytest.importorskip("ignite", reason="pytorch-ignite is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint

from hebbkern.training import checkpoint
from hebbkern.training.checkpoint import Safetensors, last_checkpoint, load
from trainings import write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class FullDisk:
    """A file that takes so many bytes before the disk is full."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.file.write(data[: self.room])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_the_disk(patch, room):
    opened = builtins.open
    patch.setattr(
        builtins,
        "open",
        lambda name, mode="r": FullDisk(opened(name, mode), room) if mode == "wb" else opened(name, mode),
    )


@pytest.mark.parametrize("rewrite", [False, True])
@pytest.mark.parametrize("room", [0, 100])
def test_a_full_disk_leaves_the_good_one_whole(room, rewrite, tmp_path, monkeypatch):
    handler = write(tmp_path, 7)
    name = "checkpoint_7" if rewrite else "checkpoint_8"
    with monkeypatch.context() as patch:
        fill_the_disk(patch, room)
        with pytest.raises(OSError, match=rf"No space left on device: '.*{name}.safetensors'"):
            handler({"model": {"weight": torch.zeros(40)}}, f"{name}.pt")
    assert names(tmp_path) == ["checkpoint_7.safetensors"]
    assert load(last_checkpoint(tmp_path))["model"]["weight"].unique().tolist() == [7.0]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_the_good_one_is_whole_until_the_next_is_on_disk(fails, tmp_path, monkeypatch):
    write(tmp_path, 7)

    def fail(*_):
        assert load(tmp_path / "checkpoint_7.safetensors")["model"]["weight"][0] == 7
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, fail)
        with pytest.raises(OSError, match="broken"):
            write(tmp_path, 7, value=1)
    assert (
        names(tmp_path) == ["checkpoint_7.safetensors"] and load(last_checkpoint(tmp_path))["model"]["weight"][0] == 7
    )


def test_the_order_on_disk(tmp_path, monkeypatch):
    """Content, then name, then the folder: after a power cut a name without its content would be worse than none."""
    done = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(handle):
        done.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
        real_sync(handle)

    def replace(source, target):
        done.append(("replace", os.path.basename(source), os.path.basename(target)))
        assert os.path.dirname(source) == os.path.dirname(target)
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write(tmp_path, 7)
    unfinished = f".checkpoint_7.safetensors.{os.getpid()}.unfinished"
    assert done == [("sync", unfinished), ("replace", unfinished, "checkpoint_7.safetensors"), ("sync", tmp_path.name)]


def test_what_a_kill_left_is_no_checkpoint_and_goes_at_the_next_start(tmp_path):
    write(tmp_path, 7)
    (tmp_path / ".checkpoint_8.safetensors.123.unfinished").write_bytes(b"half")
    (tmp_path / "config.yaml").write_text("mine")
    assert last_checkpoint(tmp_path).name == "checkpoint_7.safetensors"
    Safetensors(tmp_path)
    assert names(tmp_path) == ["checkpoint_7.safetensors", "config.yaml"]


def test_the_mode_is_that_of_other_files(tmp_path):
    write(tmp_path, 7)
    (tmp_path / "other").write_bytes(b"")
    assert (tmp_path / "checkpoint_7.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_removing(tmp_path):
    handler = write(tmp_path, 7, 8)
    handler.remove("checkpoint_9.pt")  # is not there
    handler.remove("checkpoint_7.pt")
    assert names(tmp_path) == ["checkpoint_8.safetensors"]
    handler.remove("checkpoint_8.pt")  # the only one waits
    assert names(tmp_path) == ["checkpoint_8.safetensors"]
    (tmp_path / "best_9.safetensors").write_bytes(b"of another handler")
    handler.remove("checkpoint_8.pt")
    assert names(tmp_path) == ["best_9.safetensors", "checkpoint_8.safetensors"]
    handler({}, "checkpoint_10.pt")
    assert names(tmp_path) == ["best_9.safetensors", "checkpoint_10.safetensors"]
    handler.remove("checkpoint_10.pt")
    handler({"again": 1}, "checkpoint_10.pt")  # as ignite does for a second event of one iteration
    assert load(tmp_path / "checkpoint_10.safetensors") == {"again": 1}


@pytest.mark.parametrize("name", ["checkpoint_7.pt", "checkpoint_7.safetensors", "checkpoint_7"])
def test_the_file_is_safetensors_whatever_ignite_calls_it(name, tmp_path):
    Safetensors(tmp_path / "deep" / "er")({}, name)
    assert names(tmp_path / "deep" / "er") == ["checkpoint_7.safetensors"]


def run(folder, model, until, since=None, **options):
    """An ignite training of `until` epochs of 3 batches with a checkpoint an epoch, going on from `since`."""
    trainer = Engine(lambda engine, batch: model.weight.data.add_(batch))
    saved = {"model": model, "trainer": trainer}
    options = {"n_saved": 2, "include_self": True} | options
    keeper = Checkpoint(saved, Safetensors(folder), **options)
    if since is not None:
        Checkpoint.load_objects({**saved, "checkpointer": keeper} if options["include_self"] else saved, load(since))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, keeper)
    trainer.run([1.0, 2.0, 4.0], max_epochs=until)
    return trainer


def test_ignite_keeps_as_many_as_it_was_told_after_resuming_too(tmp_path):
    model = nn.Linear(1, 1)
    run(tmp_path, model, 4)
    assert names(tmp_path) == ["checkpoint_12.safetensors", "checkpoint_9.safetensors"]
    again = nn.Linear(1, 1)
    state = load(last_checkpoint(tmp_path))
    assert state["checkpointer"] == {"_saved": [(9, "checkpoint_9.pt"), (12, "checkpoint_12.pt")]}
    assert run(tmp_path, again, 6, last_checkpoint(tmp_path)).state.iteration == 18
    assert names(tmp_path) == ["checkpoint_15.safetensors", "checkpoint_18.safetensors"]
    assert torch.equal(again.weight, model.weight + 14)


def test_one_is_always_there_when_ignite_keeps_one(tmp_path, monkeypatch):
    run(tmp_path, nn.Linear(1, 1), 1, n_saved=1)
    with monkeypatch.context() as patch:
        fill_the_disk(patch, 10)
        with pytest.raises(OSError, match="No space left"):
            run(tmp_path, nn.Linear(1, 1), 2, last_checkpoint(tmp_path), n_saved=1)
    assert load(tmp_path / "checkpoint_3.safetensors")["trainer"]["iteration"] == 3
    run(tmp_path, nn.Linear(1, 1), 2, last_checkpoint(tmp_path), n_saved=1)
    assert names(tmp_path) == ["checkpoint_6.safetensors"]


def test_other_names_of_ignite(tmp_path):
    score = {"score_function": lambda engine: engine.state.iteration / 7, "score_name": "accuracy"}
    run(tmp_path, nn.Linear(1, 1), 2, filename_prefix="best", include_self=False, **score)
    run(tmp_path, nn.Linear(1, 1), 1)
    assert names(tmp_path) == [
        "best_checkpoint_accuracy=0.4286.safetensors",
        "best_checkpoint_accuracy=0.8571.safetensors",
        "checkpoint_3.safetensors",
    ]
    assert last_checkpoint(tmp_path).name == "checkpoint_3.safetensors"
    assert load(tmp_path / "best_checkpoint_accuracy=0.8571.safetensors")["trainer"]["iteration"] == 6


def test_only_the_first_rank_writes(tmp_path, monkeypatch):
    handler = write(tmp_path, 7, 8)
    monkeypatch.setattr(checkpoint.idist, "get_rank", lambda: 1)
    (tmp_path / ".checkpoint_9.safetensors.123.unfinished").write_bytes(b"the first rank is at it")
    handler({}, "checkpoint_9.pt")
    handler.remove("checkpoint_7.pt")
    Safetensors(tmp_path)
    assert names(tmp_path) == [
        ".checkpoint_9.safetensors.123.unfinished",
        "checkpoint_7.safetensors",
        "checkpoint_8.safetensors",
    ]
