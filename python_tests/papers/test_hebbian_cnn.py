"""examples.papers.hebbian_cnn on few made-up images: what it computes, shares and writes; the test set is read once."""

# ruff: noqa: E402 (the modules import packages that may be missing)

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("ignite", "scipy", "tqdm"):
    pytest.importorskip(package, reason=f"{package} is not installed")

ROOT = Path(__file__).parents[2]

from examples.papers.common import memory, tables
from examples.papers.hebbian_cnn import __main__ as command_line
from examples.papers.hebbian_cnn import network, recipes, report, runner, timing
from examples.papers.hebbian_cnn.cache import Cache
from examples.papers.hebbian_cnn.recipes import Cell, Source
from examples.papers.hebbian_cnn.runner import Data, Runner, Settings

TRAIN, TEST = 160, 40


def pictures(path, classes=10):
    """32x32 in colour, each class a bright block at a place of its own."""
    rng, count = np.random.default_rng(0), TRAIN + TEST
    labels = rng.permutation(np.arange(count) % classes)
    images = rng.integers(0, 60, (count, 32, 32, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 16 * (label // 5), 6 * (label % 5)
        image[row : row + 14, column : column + 6] += 150
    np.savez(path, x_train=images[:TRAIN], y_train=labels[:TRAIN], x_test=images[TRAIN:], y_test=labels[TRAIN:])
    return str(path)


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """Counts the calls of memory.keep, which is not run."""
    calls = []
    monkeypatch.setattr(memory, "keep", lambda: calls.append(1))
    return calls


@pytest.fixture
def command(tmp_path):
    folders = ["--results", str(tmp_path / "results"), "--cache", str(tmp_path / "cache")]
    return ["--data", pictures(tmp_path / "a.npz"), "--fast", *folders], tmp_path / "results" / "hebbian_cnn_fast.json"


def made(tmp_path, seed=0, **changed):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(60, 3, 32, 32, generator=generator), torch.arange(60) % 10
    data = Data(x, y, torch.rand(20, 3, 32, 32, generator=generator), torch.arange(20) % 10, 40, 10, "CIFAR10")
    settings = Settings(network.FAST, latent=8, backprop=replace(recipes.BACKPROP, epochs=1, batch=10))
    return Runner(data, Cache(tmp_path, 1), replace(settings, **changed), seed)


@pytest.fixture
def trainings(monkeypatch):
    """Counts the calls of each training."""
    calls = {"learn": 0, "fit": 0}

    def spied(name):
        work = getattr(runner, name)

        def spy(*given, **options):
            calls[name] += 1
            return work(*given, **options)

        return spy

    for name in calls:
        monkeypatch.setattr(runner, name, spied(name))
    return calls


def test_patterns_that_begin_alike_share_what_they_learnt(tmp_path, trainings):
    first = made(tmp_path)
    one = first.stage(Source("HPCA", "BH")).layer.weight.clone()
    assert trainings == {"learn": 1, "fit": 1}  # a Hebbian stage, the network below it
    first.features(Source("HPCA", "BHH"))
    assert trainings == {"learn": 2, "fit": 1}
    again = made(tmp_path)
    assert torch.equal(again.stage(Source("HPCA", "BH")).layer.weight, one)
    first.network(Source("HPCA", "BHBBB"))
    assert trainings == {"learn": 2, "fit": 2}  # its three upper B's and the classifier


def test_lower_layers_stay_as_they_were(tmp_path):
    """A hybrid's second stage sees what the first one of the network trained by backprop answers, bit for bit."""
    known = made(tmp_path)
    below, stage = known.network(Source("backprop", "BBBBB"))[0][:1], known.stage(Source("HPCA", "BH"))
    features = network.outputs(torch.nn.Sequential(stage), network.outputs(below, known.data.inputs(False, False)))
    known.network(Source("HPCA", "BHBBB"))
    assert torch.equal(known.features(Source("HPCA", "BH")), features)


def test_networks_do_not_depend_on_what_was_cached_before(tmp_path):
    """Dropout draws from torch's generator, from which stages are drawn too."""
    cold, warm = made(tmp_path / "a"), made(tmp_path / "b")
    warm.features(Source("HPCA", "HH"))
    warm.features(Source("HPCA", "HH"), mirrored=True)
    states = [known.network(Source("HPCA", "HHBBB"))[1].state_dict() for known in (cold, warm)]
    assert torch.equal(states[0]["1.weight"], states[1]["1.weight"])


def test_settings_and_seeds_share_nothing(tmp_path):
    known, other = made(tmp_path), made(tmp_path, seed=1)
    assert not torch.equal(known.features(Source("random", "H")), other.features(Source("random", "H")))
    rates = recipes.HEBBIAN | {"HPCA": replace(recipes.HEBBIAN["HPCA"], lr=(0.5,) * 5)}
    faster = made(tmp_path, hebbian=rates)
    weights = [one.stage(Source("HPCA", "H")).layer.weight for one in (known, faster)]
    assert not torch.equal(*weights)


def test_random_stages_stay_as_drawn_and_start_as_the_learnt_ones(tmp_path):
    known = made(tmp_path)
    torch.manual_seed(0)
    drawn = network.build("HH", network.FAST, (3, 32, 32), recipes.HEBBIAN["HPCA"].rule)
    for pattern, stage in zip(("H", "HH"), drawn, strict=True):
        assert torch.equal(known.stage(Source("random", pattern)).layer.weight, stage.layer.weight)
        assert not torch.equal(known.stage(Source("HPCA", pattern)).layer.weight, stage.layer.weight)


def test_a_row_sees_the_test_set_once(tmp_path):
    known = made(tmp_path)
    figures = known.measure(Source("random", "H"), "SGD")
    assert 0 <= figures["test"] <= 100 and figures["epoch"] >= 1
    with pytest.raises(AssertionError, match="has seen the test set"):
        known.measure(Source("random", "H"), "SGD")
    known.measure(Source("random", "H"), "SHC")


def test_choices_do_not_depend_on_test_labels(tmp_path):
    one, other = made(tmp_path / "a"), made(tmp_path / "b")
    other.data.y_test.zero_()
    for source, kind in ((Source("HPCA", "BH"), "SGD"), (Source("backprop", "BBBBB"), "head")):
        ours, theirs = one.classifier(source, kind), other.classifier(source, kind)
        assert ours[2] == theirs[2]
        for mine, its in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
            assert torch.equal(mine, its)


def test_the_vae_learns_without_labels(tmp_path):
    plan = replace(recipes.AUTOENCODER, epochs=1, batch=10)
    one, other = made(tmp_path / "a", autoencoder=plan), made(tmp_path / "b", autoencoder=plan)
    other.data.y.zero_()
    weights = [known.stage(Source("VAE", "BB")).layer.weight for known in (one, other)]
    assert torch.equal(*weights)


def test_tables_are_the_papers():
    tables = recipes.tables()
    assert [tables[str(number)].data for number in range(1, 13)] == [data for data in recipes.DATA for _ in range(4)]

    def paper(table, row, measure):
        return next(cell.paper for cell in tables[table].cells if (cell.row, cell.measure) == (row, measure))

    assert paper("1", "layer 4", "HWTA") == 96.58 and paper("5", "layer 5", "HPCA") == 61.12
    assert paper("5", "layer 1", "VAE") == 60.71 and paper("9", "layer 3", "HPCA") == 64.17
    assert paper("6", "BHBBB", "HPCA") == 81.91 and paper("6", "BBBHH", "HWTA") == 78.53
    assert paper("7", "HWTA + SHC", "accuracy") == 82.48 and paper("8", "layer 3", "SHC epochs") == 2
    assert paper("10", "HHHHH", "HPCA") == paper("9", "layer 5", "HPCA") == 59.51
    assert paper("12", "layer 2", "SGD") == 60.84 and paper("11", "backprop", "epochs") == 7
    assert len(tables["6"].cells) == 16 * 3 + 5 and len({cell.row for cell in tables["6"].cells}) == 16


def test_random_filters_stand_beside_every_learnt_ones():
    for name, table in recipes.tables().items():
        asked = {(cell.source, cell.classifier) for cell in table.cells}
        for source, classifier in asked:
            beside = report.LEARNT.get(source.method)
            if beside and classifier != "time":
                beside = beside if source.pattern[0] == "H" else "random"
                assert (source._replace(method=beside), classifier) in asked, (name, source)


def test_differences_are_clear_beyond_two_standard_errors(tmp_path):
    runs = report.Runs(tmp_path / "none.json")
    for seed, (learnt, random) in enumerate([(64.0, 62.0), (65.0, 63.0), (66.0, 64.0)]):
        for method, value in (("HPCA", learnt), ("random", random)):
            source = Source(method, "H")
            recipe = runner.settings_of("CIFAR10").recipe(source, "SGD")
            runs.known[runs.key("CIFAR10", source, "SGD", seed)] = {"test": value, "recipe": recipe}
    gain = next(gain for gain in report.differences(runs) if gain["row"] == "layer 1")
    assert gain["points"] == pytest.approx(2) and gain["standard_error"] == pytest.approx((2 / 3) ** 0.5)
    assert gain["clear"]  # 2 > 2 · 0.816
    row = next(row for row in report.rows(runs) if row["measure"] == "HPCA")
    assert row["mean"] == pytest.approx(65) and row["std"] == pytest.approx(1)
    assert row["half_interval"] == pytest.approx(4.303 / 3**0.5, rel=1e-3)  # Student's t, 2 degrees of freedom


def test_the_committed_figures_are_those_of_the_recipes():
    """A recipe's text is the key of its figures: after a change of a name or a default they would count as missing."""
    runs = report.Runs(ROOT / "results" / "hebbian_cnn.json")
    assert len(runs.content["rows"]) > 90
    assert json.loads(json.dumps(list(report.rows(runs)))) == runs.content["rows"]
    assert json.loads(json.dumps(list(report.differences(runs)))) == runs.content["differences"]


def test_keys_of_the_cache_stay_as_they_are(tmp_path):
    known = made(tmp_path)
    known.settings = runner.settings_of("CIFAR10", network.FAST[:1])
    known.data.digest = "digest"
    source = Source("HPCA", "H")
    assert known._key("stage", known.settings.plans(source), source) == (
        "'CIFAR10' 'digest' 0 (Shape(neurons=24, kernel=5, pool=2),) 256 'stage' "
        "(Hebbian(rule=Sanger(patches='raw', activation='relu'), lr=(0.02, 0.01, 0.004, 0.003, 0.002), epochs=1, "
        "batch=64, dtype=None),) Source(method='HPCA', pattern='H')"
    )


def test_figures_of_other_recipes_do_not_count(tmp_path):
    runs, cell = report.Runs(tmp_path / "none.json"), recipes.tables()["8"].cells[0]
    key = runs.key("CIFAR10", cell.source, cell.classifier, 0)
    wanted = runner.settings_of("CIFAR10").recipe(cell.source, cell.classifier)
    runs.known[key] = {"test": 1.0, "recipe": wanted.replace("epochs", "others")}
    assert not runs.get("CIFAR10", cell, 0) and not runs.of("CIFAR10", cell)
    runs.known[key] = {"test": 1.0, "recipe": wanted}
    assert runs.of("CIFAR10", cell) == [runs.known[key]]


def test_what_another_process_wrote_stays(tmp_path):
    path = tmp_path / "a.json"
    one, other = report.Runs(path), report.Runs(path)
    one.add("a", {"seconds": 1.0}, [])
    other.add("b", {"seconds": 2.0}, [])
    one.known["b"] = {"seconds": -1.0}  # an old copy
    one.add("c", {"seconds": 3.0}, [])
    assert {key: run["seconds"] for key, run in report.Runs(path).known.items()} == {"a": 1, "b": 2, "c": 3}


def test_one_file_is_one_data_set(command, capsys):
    given, _ = command
    for words, reason in ((["--table", "1", "5"], "is a single data set"), ([], "name what to compute")):
        with pytest.raises(SystemExit):
            command_line.main([*given, *words])
        assert reason in capsys.readouterr().err


@pytest.mark.slow(60)
def test_the_command_writes_rows_and_goes_on_where_it_stopped(command, kept, monkeypatch, capsys):
    given, path = command
    command_line.main([*given, "--table", "7", "--rows", "*HPCA*"])
    found = json.loads(path.read_text())
    assert {row["measure"] for row in found["rows"]} == {"accuracy", "epochs"}
    assert all(
        {"table", "row", "measure", "unit", "paper", "mean", "std", "seeds", "chosen_on"} <= set(row)
        for row in found["rows"]
    )
    assert "/" not in found["command"].removeprefix("python -m examples.papers.hebbian_cnn")
    assert "81.48" in capsys.readouterr().out and kept == [1]
    monkeypatch.setattr(Runner, "measure", lambda *_: pytest.fail("it was there"))
    command_line.main([*given, "--table", "7", "--rows", "*HPCA*"])
    assert json.loads(path.read_text())["rows"] == found["rows"]
    assert "HPCA + SHC" in tables.markdown(found, wide=True)


def test_smaller_images_are_framed_and_become_coloured(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 255, (TRAIN, 28, 28), dtype=np.uint8), np.arange(TRAIN) % 10
    np.savez(tmp_path / "m.npz", x_train=x, y_train=y, x_test=x[:TEST], y_test=y[:TEST])
    arguments = command_line.parse(["--table", "1", "--data", str(tmp_path / "m.npz")])
    data = command_line.load("MNIST", arguments.data, arguments)
    assert data.x.shape == (TRAIN, 3, 32, 32) and torch.equal(data.x[:, 0], data.x[:, 2])
    assert data.x[:, :, :2].sum() == data.x[:, :, :, 30:].sum() == 0 and data.x[:, :, 2, 2:30].min() > 0


def test_digits_are_not_mirrored():
    mirrored = {data: runner.settings_of(data).readout.mirror for data in recipes.DATA}
    assert mirrored == {"MNIST": False, "CIFAR10": True, "CIFAR100": True}
    assert not runner.settings_of("MNIST").backprop.mirror


@pytest.mark.slow(60)
def test_times_are_those_of_an_epoch(monkeypatch):
    """A clock that goes on by 0.1 s a look: so long is a batch of 64, and 40,000 images are 625 of them."""
    monkeypatch.setattr(timing, "TURN", 2)
    clock = iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock) / 10)
    times = timing.epochs(torch.randn(128, 3, 32, 32), network.FAST, steps=timing.TURN + 1)
    assert set(times) == {"HPCA", "HPCA, bfloat16", "HWTA", "pass"}
    for figures in times.values():
        assert figures["epoch_seconds"] == pytest.approx(62.5)
        assert figures["seconds"] == pytest.approx(2 * timing.TURN * 0.1), "two turns"


def test_a_cell_of_every_kind_can_be_named():
    kinds = {cell.classifier for table in recipes.tables().values() for cell in table.cells}
    assert kinds == {"SGD", "SHC", "head", "SoftHebb", "time"}
    assert isinstance(recipes.tables()["5"].cells[0], Cell)
