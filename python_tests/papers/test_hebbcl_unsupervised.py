"""examples.papers.hebbcl on small made-up images: rows, files and pictures; the test set is read once."""

# ruff: noqa: E402 (the modules import packages that may be missing)

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

for package in ("matplotlib", "sklearn"):
    pytest.importorskip(package, reason=f"{package} is not installed")

ROOT = Path(__file__).parents[2]

from examples.papers.hebbcl import __main__ as command_line
from examples.papers.hebbcl import experiment, pictures, recipes, unsupervised
from examples.papers.hebbcl import search as searching

CLASSES, TRAIN, TEST = 4, 160, 61  # the test set has a size of its own
SMALL = recipes.Recipe(batch=8, lr=0.5, threshold=2.0, k=3, neurons=1, max_neurons=16)
GENERATOR = torch.Generator().manual_seed(0)
SUPERVISED = [SimpleNamespace(row="HebbCL"), SimpleNamespace(row="random")]


def bars(path, seed, invert=False):
    """Noisy bars, 8x8, a class a height; with `invert` dark on white."""
    rng, count = np.random.default_rng(seed), TRAIN + TEST
    labels = np.arange(count) % CLASSES
    images = rng.random((count, 8, 8)) * 0.3
    images[np.arange(count), 2 * labels] += 0.7
    images = 1 - images if invert else images
    np.savez(path, x_train=images[:TRAIN], y_train=labels[:TRAIN], x_test=images[TRAIN:], y_test=labels[TRAIN:])
    return str(path)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Everything, with few neurons and clusters, and with stubs for what has labels."""
    monkeypatch.setattr(experiment, "RECIPES", {"mnist": SMALL, "omniglot": replace(SMALL, blur=3)})
    few = {"Table 1": (5, 8), "Table 3": (4,)}
    for module in (unsupervised, searching):
        monkeypatch.setattr(module, "CLUSTERS", dict.fromkeys(("mnist", "omniglot"), few))
    monkeypatch.setattr(unsupervised, "STARTS", 1)

    def rows(name, x, y, x_test, y_test, *, seeds, table):
        about = {"table": "Table 2", "measure": f"split {name} accuracy", "unit": "%", "chosen_on": "validation"}
        for row in table:
            yield about | {"row": row.row, "paper": None, "values": [float(len(x_test))] * seeds, "seconds": [0.0]}

    for module, name in ((experiment.supervised, "supervised_rows"), (experiment.baselines, "baseline_rows")):
        monkeypatch.setattr(module, name, rows)
        monkeypatch.setattr(module, "TABLE", {"mnist": SUPERVISED})
    sources = ["--mnist", bars(tmp_path / "a.npz", 0), "--omniglot", bars(tmp_path / "b.npz", 1, invert=True)]
    folder = tmp_path / "results"
    return [*sources, "--cifar10", "", "--seeds", "2", "--results", str(folder)], folder


@pytest.fixture
def neighbours(monkeypatch):
    """(training, test) samples of every 10-NN error."""
    sizes, knn = [], unsupervised.knn

    def count(train, y, test, *rest, **more):
        sizes.append((len(train), len(test)))
        return knn(train, y, test, *rest, **more)

    for module in (unsupervised, searching):
        monkeypatch.setattr(module, "knn", count)
    return sizes


@pytest.mark.slow(60)
def test_every_row_beside_the_papers_figures(command, neighbours, capsys):
    arguments, folder = command
    command_line.main(arguments)
    report, printed = json.loads((folder / "hebbcl.json").read_text()), capsys.readouterr().out
    assert {"command", "version", "machine", "seconds", "rows"} <= set(report)
    assert str(folder) not in report["command"] and "/" not in report["command"].split("examples.papers.hebbcl")[1]
    wanted = {"table", "row", "measure", "unit", "paper", "mean", "std", "seeds", "chosen_on"}
    assert all(set(row) == wanted and row["seeds"] == 2 for row in report["rows"])
    tables = Counter(row["table"] for row in report["rows"])
    assert tables == {"Table 1": (6 + 7) * 5, "Table 2": 2 * 2, "Table 3": (10 + 11) * 2}
    for row, run in zip(report["rows"], report["runs"], strict=True):
        assert row["mean"] == pytest.approx(np.mean(run["values"]))
        assert row["std"] == pytest.approx(np.std(run["values"], ddof=1))
        assert row["row"] in printed
    for table in ("Table 1", "Table 3"):
        rows = {row["row"] for row in report["rows"] if row["table"] == table}
        assert {"HebbCL", "untaught, uniform", "untaught, normal", "untaught, on samples", "pixels"} <= rows
    assert Counter(neighbours) == {(TRAIN, TEST): 2 * (2 * len(unsupervised.ROWS) - 1)}  # MNIST is not blurred
    drawn = {path.name: path.stat().st_size for path in folder.glob("*.png")}
    assert set(drawn) == {"hebbcl_mnist.png", "hebbcl_omniglot.png", "hebbcl_forgetting.png"}
    assert max(drawn.values()) < 300_000


@pytest.mark.slow(60)
def test_rows_are_written_one_by_one_and_taken_up_again(command, monkeypatch):
    arguments, folder = command
    arguments += ["--parts", "unsupervised mnist"]
    learn, done = unsupervised.trained, []

    def interrupted(recipe, x, y, seed):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append((recipe, seed))
        return learn(recipe, x, y, seed)

    monkeypatch.setattr(unsupervised, "trained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command_line.main(arguments)
    first = json.loads((folder / "hebbcl.json").read_text())
    assert {run["row"] for run in first["runs"]} == {"HebbCL", "HebbCL, as it is"}
    monkeypatch.setattr(unsupervised, "trained", lambda *given: done.append(given[0]) or learn(*given))
    del done[:]
    command_line.main(arguments)
    second = json.loads((folder / "hebbcl.json").read_text())
    assert len(done) == 2 * (len(unsupervised.ROWS) - 4) and SMALL not in done  # neither those two rows nor pixels
    kept = {(run["table"], run["row"], run["measure"]): run for run in second["runs"]}
    assert len(kept) == len(second["runs"]) == 6 * 5 + 10 * 2
    assert all(kept[run["table"], run["row"], run["measure"]] == run for run in first["runs"])
    del done[:]
    command_line.main(arguments)
    assert not done
    command_line.main([*arguments, "--again"])
    assert done.count(SMALL) == 2 * 2
    command_line.main([*arguments[:-1], "supervised *", "--again"])  # the other rows stay
    third = json.loads((folder / "hebbcl.json").read_text())
    assert len(third["runs"]) == len(second["runs"]) + len(SUPERVISED)
    assert third["command"].count("examples.papers.hebbcl") == 2


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")  # so few neurons
def test_the_search_never_sees_the_test_set(command, neighbours, monkeypatch):
    arguments, folder = command

    def refuse(self, *row_and_seed):
        raise AssertionError("the test set was opened")

    monkeypatch.setattr(unsupervised.Data, "test", refuse)
    monkeypatch.setattr(searching, "KS", (2, 3))
    monkeypatch.setattr(searching, "SPARSE", 1)
    monkeypatch.setattr(searching, "SPACE", searching.SPACE | {"batch": (8, 16), "neurons": (1, 2, 3, 4)})
    command_line.main([*arguments, "--search", "--trials", "12", "--parts", "unsupervised mnist"])
    found = json.loads((folder / "hebbcl_search.json").read_text())["searches"]["mnist"]
    held = sum(n // 6 for n in Counter(np.arange(TRAIN) % CLASSES).values())  # of each class one in six
    assert set(neighbours) == {(TRAIN - held, held)}
    trials = found["trials"]
    assert len({json.dumps(trial["recipe"]) for trial in trials if trial["seed"] == 0}) == 12
    chosen = found["chosen"]
    same = [trial for trial in trials if trial["recipe"] == {name: chosen[name] for name in searching.SPACE}]
    assert {trial["seed"] for trial in same} == {0, 1}
    assert found["score"] == pytest.approx(np.mean([trial["scores"][str(chosen["k"])] for trial in same]), abs=0.01)
    for trial in trials:
        for k, (accuracy, error) in trial["found"].items():
            assert trial["scores"][k] == pytest.approx(accuracy - 2 * error, abs=0.03)
    monkeypatch.delattr(searching, "trained")  # all is known
    command_line.main([*arguments, "--search", "--trials", "12", "--parts", "unsupervised mnist"])
    again = json.loads((folder / "hebbcl_search.json").read_text())["searches"]["mnist"]
    assert again["chosen"] == chosen and again["trials"] == trials


def test_a_model_that_runs_out_of_room_does_not_count(monkeypatch):
    x, y = torch.rand(240, 9, generator=GENERATOR), torch.arange(240) % 2
    data = unsupervised.Data(x, y, x[:0], y[:0], (3, 3))
    monkeypatch.setattr(searching, "MOST", 12)
    monkeypatch.setattr(searching, "KS", (2,))
    monkeypatch.setattr(searching, "SPARSE", 2)
    monkeypatch.setattr(searching, "CLUSTERS", {"mnist": {"Table 1": (2,)}})
    search = searching.Search("mnist", data, lambda content: None)
    for batch, counts in ((50, True), (20, False)):  # a neuron a batch: 5 or 11 of the 12 in 200 of 240 images
        recipe = replace(SMALL, batch=batch, threshold=1e9, max_neurons=12)
        assert bool(search.trial(recipe, 0)) == counts
    monkeypatch.setattr(searching, "KS", (2, 3))  # winners of the 5 neurons
    again = searching.Search("mnist", data, lambda content: None)
    assert list(again.trial(replace(SMALL, batch=50, threshold=1e9), 0)) == [2]


def test_the_stream_shows_each_image_once_class_by_class_shuffled_by_the_seed():
    y = torch.tensor([2, 0, 1, 0, 2, 1, 0, 2, 0, 1] * 4)
    x = torch.arange(40.0)[:, None]
    passes = []
    for seed in (0, 0, 1):
        pairs = [task[:] for task in unsupervised.class_stream(x, y, seed)]
        assert [labels.unique().tolist() for _, labels in pairs] == [[0], [1], [2]]
        order = torch.cat([images for images, _ in pairs])[:, 0].long()
        assert torch.equal(y[order], torch.cat([labels for _, labels in pairs]))
        assert torch.equal(order.sort().values, torch.arange(40))
        passes.append(order.tolist())
    assert passes[0] == passes[1] != passes[2]


def test_labels_and_boundaries_do_not_reach_the_model(monkeypatch):
    x, y, given = torch.rand(50, 9, generator=GENERATOR), torch.arange(50) % 3, []
    learn = unsupervised.HebbCL.learn
    monkeypatch.setattr(
        unsupervised.HebbCL, "learn", lambda self, *all_given: given.append(all_given) or learn(self, *all_given)
    )
    unsupervised.trained(SMALL, x, y, 0)
    assert [len(images) for (images,) in given] == [8] * 6 + [2]  # classes of 17, 17 and 16


def test_representations_are_read_less_the_weakest_winner_at_length_1():
    features = torch.tensor([[0.0, 3.0, 0.0, 7.0, 6.0], [0.0, 0.0, 2.0, 0.0, 0.0], [0.0] * 5])
    scaled, plain = (unsupervised.read(features.clone(), scaled) for scaled in (True, False))
    assert torch.equal(scaled[0], torch.tensor([0.0, 0.0, 0.0, 0.8, 0.6]))
    assert not scaled[1:].any()
    torch.testing.assert_close(plain[0], features[0] / 94**0.5)


def test_blurring_averages_squares_twice_and_keeps_ink_on_paper(command):
    arguments, _ = command
    x = torch.rand(3, 8 * 9, generator=GENERATOR)
    once = torch.zeros(2, 3, 14, 15, dtype=torch.float64)  # images with room around them, before and after
    once[0, :, 3:11, 3:12] = x.view(3, 8, 9)
    for start, end in ((0, 1), (1, 0)):
        once[end] = 0
        for row in range(3, 11):
            for column in range(3, 12):
                once[end, :, row, column] = once[start, :, row - 1 : row + 2, column - 1 : column + 2].mean((1, 2))
    wanted = once[0, :, 3:11, 3:12].flatten(1)
    unsupervised.blurred_(x, (8, 9), 3)
    torch.testing.assert_close(x.double(), wanted / wanted.amax(1, keepdim=True), atol=1e-6, rtol=0)
    data = experiment.Experiment(command_line.parse(arguments)).flat("omniglot")
    source = np.load(arguments[3])
    sharp = 1 - source["x_train"].reshape(TRAIN, -1)  # dark on white in the file
    np.testing.assert_allclose(data.sharp[0], sharp, atol=1e-6)
    assert data.x.amax(1).eq(1).all() and not np.allclose(data.x, sharp, atol=0.1)


def test_many_pixels_are_averaged():
    x = torch.arange(2.0 * 45 * 42).view(2, -1)
    averaged = unsupervised.pixels(x, (45, 42)).view(2, 15, 14)
    assert averaged[1, 2, 3] == x.view(2, 45, 42)[1, 6:9, 9:12].mean()
    assert unsupervised.pixels(x, (28, 28)) is x


def test_the_reading_of_table_3_has_as_many_marks_as_the_table():
    read = [row for row in unsupervised.ROWS if ("Table 3", row.row, "mnist") in recipes.PAPER]
    left_out = [row.changes for row in read]
    kept = {step: sum(changes.get(step, True) for changes in left_out) for step in ("freeze", "grow", "sparse")}
    assert len(read) == 5 and kept["freeze"] + kept["grow"] == 5 and kept["sparse"] == 3
    assert recipes.PAPER["Table 3", "without expansion", "omniglot"] == {
        "10-NN error": 81.95,
        "accuracy of 50 clusters": 9.30,
    }
    assert recipes.PAPER["Table 1", "HebbCL", "mnist"]["accuracy of 50 clusters"] == 78.35


def test_rows_leave_out_what_they_say():
    x, y = torch.rand(64, 9, generator=GENERATOR), torch.arange(64) % 2
    models = {}
    for row in unsupervised.ROWS[:-2]:
        models[row.row] = unsupervised.trained(row.recipe(SMALL), x, y, 0)
    full, wide, free = (models[name] for name in ("HebbCL", "without expansion", "without freezing"))
    assert full.width == 9 and full.frozen.sum() == 8  # one after each of 8 batches
    assert wide.width == 16 and free.width == 9 and not free.frozen.any()
    assert all((model(x) != 0).sum(1).max() <= (16 if "k-winners" in name or "only" in name else 3)
               for name, model in models.items())  # fmt: skip
    for start in ("uniform", "normal"):
        drawn = unsupervised.untrained(replace(SMALL, neurons=9, start=start), 9, 0).weight
        assert torch.equal(models[f"untaught, {start}"].weight, drawn)
    samples = models["untaught, on samples"].weight
    assert len(samples) == 9 and all((x == sample).all(1).any() for sample in samples)


def test_untaught_neurons_are_as_many_as_those_that_learnt(monkeypatch):
    x, y, learnt = torch.rand(64, 9, generator=GENERATOR), torch.arange(64) % 2, []
    stream = unsupervised.streamed
    monkeypatch.setattr(unsupervised, "streamed", lambda recipe, *rest: learnt.append(recipe) or stream(recipe, *rest))
    for row in unsupervised.ROWS:
        if "untaught" in row.row:
            assert unsupervised.trained(row.recipe(SMALL), x, y, 0).width == 9
    assert learnt == [SMALL] * 3


def test_frozen_neurons_look_the_same_after_all_classes():
    x, y = torch.rand(200, 16, generator=GENERATOR), torch.arange(200) % 4
    data = unsupervised.Data(x, y, x, y, (4, 4))
    before, after = pictures.before_and_after(SMALL, data)
    assert len(before) == 8 and torch.equal(before[:7], after[:7])  # 50 images, a neuron each 8; the last still learns
    before, after = pictures.before_and_after(replace(SMALL, freeze=False), data)
    assert not torch.equal(before, after)


def test_the_settings_are_those_that_the_search_chose():
    found = json.loads((ROOT / "results" / "hebbcl_search.json").read_text())["searches"]
    for name, recipe in recipes.RECIPES.items():
        assert found[name]["chosen"] == asdict(recipe)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "omniglot"])
def test_committed_rows_have_the_keys_of_the_present_settings(name):
    """So that they are not computed again; of rows that were computed in parts, at least one has its key."""
    runs = json.loads((ROOT / "results" / "hebbcl.json").read_text())["runs"]
    there = {(run["part"], run["row"], run["settings"]) for run in runs}
    arguments = command_line.parse(["--omniglot", "omniglot.npz"])
    for part in experiment.Experiment(arguments).parts():
        if part.name.endswith(name):
            keys = {(part.name, row.row, experiment.settings_key(part.settings(row), arguments)) for row in part.rows}
            assert keys & there


def test_the_test_set_opens_once_for_a_row_and_seed():
    data = unsupervised.Data(*[torch.zeros(1)] * 4, shape=(1, 1))
    data.test("mnist", "row", 0)
    data.test("mnist", "row", 1)
    with pytest.raises(AssertionError, match="has seen the test set"):
        data.test("mnist", "row", 1)


def test_rows_of_other_runs_join(command, tmp_path):
    """Each with the machine it ran on; nothing is computed again, and the commands stand one after the other."""
    arguments, folder = command
    command_line.main([*arguments, "--parts", "supervised mnist"])
    here = json.loads((folder / "hebbcl.json").read_text())
    there = here | {
        "command": "elsewhere",
        "runs": [run | {"part": "baselines mnist", "machine": "other"} for run in here["runs"]],
    }
    (tmp_path / "other.json").write_text(json.dumps(there))
    command_line.main([*arguments, "--parts", "supervised mnist", "--also", str(tmp_path / "other.json")])
    joined = json.loads((folder / "hebbcl.json").read_text())
    assert len(joined["runs"]) == len(joined["rows"]) == 2 * len(here["runs"])
    assert joined["machine"] == f"{here['machine']}; other" and " && elsewhere && " in joined["command"]
