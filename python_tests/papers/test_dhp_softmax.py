"""examples.papers.dhp_softmax on small made-up images: rows, files, pictures and the samples that stay unread."""

# ruff: noqa: E402 (the modules import packages that may be missing)

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

for package in ("matplotlib", "PIL"):
    pytest.importorskip(package, reason=f"{package} is not installed")

from examples.papers.common import tables
from examples.papers.dhp_softmax import __main__ as command_line
from examples.papers.dhp_softmax import experiment as experiments
from examples.papers.dhp_softmax import pictures, recipes
from examples.papers.dhp_softmax.training import learn
from hebbkern.continual import metrics

CLASSES, TRAIN, TEST = 10, 240, 100


def digits(path):
    """28x28, each class a bright block at a place of its own."""
    rng, count = np.random.default_rng(0), TRAIN + TEST
    labels = rng.permutation(np.arange(count) % CLASSES)
    images = rng.integers(0, 60, (count, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 14 * (label // 5), 5 * (label % 5)
        image[row : row + 12, column : column + 6] += 150
    np.savez(path, x_train=images[:TRAIN], y_train=labels[:TRAIN], x_test=images[TRAIN:], y_test=labels[TRAIN:])
    return str(path)


@pytest.fixture
def command(tmp_path):
    others = [word for name in command_line.SOURCES if name != "mnist" for word in (f"--{name}", "")]
    folder = tmp_path / "results"
    return ["--mnist", digits(tmp_path / "a.npz"), *others, "--fast", "--results", str(folder)], folder


@pytest.fixture
def learnt(monkeypatch):
    """(benchmark, settings, seed, on) of every run that is computed."""
    runs = []

    def spy(benchmark, settings, seed, device, *, on):
        runs.append((benchmark.name, settings, seed, on))
        return learn(benchmark, settings, seed, device, on=on)

    monkeypatch.setattr(experiments, "learn", spy)
    return runs


def report(folder):
    return json.loads((folder / "dhp_softmax.json").read_text())


@pytest.mark.slow(60)
def test_every_row_beside_the_papers_figures(command, learnt, capsys):
    arguments, folder = command
    command_line.main([*arguments, "--parts", "table1 split,eta split"])
    found, printed = report(folder), capsys.readouterr().out
    assert {"command", "version", "machine", "torch", "seconds", "rows", "runs"} <= set(found)
    assert str(folder) not in found["command"] and "/" not in found["command"].split("examples.papers.dhp_softmax")[1]
    assert len(learnt) == len(found["runs"]) == 8 + 5 - 1  # η = 0.001 is in both tables
    assert {run["on"] for run in found["runs"]} == {"test"} and {run["seed"] for run in found["runs"]} == {0}
    rows = {(row["table"], row["row"], row["measure"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"])
    assert sum(table.startswith(("Table 1", "Table 4")) for table, *_ in rows) == 2 * (8 + 5)
    for (table, name, measure), paper in {
        ("Table 1, Split MNIST", "Finetune", "average accuracy"): 90.43,
        ("Table 1, Split MNIST", "DHP Softmax", "average accuracy"): 98.23,
        ("Table 1, Split MNIST", "DHP Softmax + SI", "average accuracy"): 99.15,
        ("Table 1, Split MNIST", "Online EWC", "backward transfer"): -0.03,
        ("Table 4, Split MNIST", "eta = 0.01", "average accuracy"): 98.47,
        ("Table 4, Split MNIST", "eta = 0.01", "backward transfer"): None,
    }.items():
        assert rows[table, name, measure]["paper"] == paper
        assert name in printed
    experiment = experiments.Experiment(command_line.parse(arguments), found["runs"])
    for row in recipes.table1("split") + recipes.table4("split"):
        (run,) = experiment.of(row, range(1))
        R = run["R"]
        assert len(R) == 5 and all(row[i + 1 :] == [None] * (4 - i) for i, row in enumerate(R))
        mine = {measure: rows[row.table, row.row, measure] for measure in experiments.MEASURES}
        assert mine["average accuracy"]["mean"] == pytest.approx(sum(R[4]) / 5)
        assert mine["backward transfer"]["mean"] == pytest.approx(sum(R[4][i] - R[i][i] for i in range(4)) / 400)
        assert ("plastic" in run) == (row.settings.row == "DHP Softmax")
    assert rows["Table 1, Split MNIST", "Finetune", "average accuracy"]["mean"] > 80  # a head a task, easy images
    command_line.main([*arguments, "--parts", "table1 split,eta split"])
    assert len(learnt) == 12 and report(folder)["rows"] == found["rows"]


@pytest.mark.slow(60)
def test_runs_of_other_results_join(command, learnt, tmp_path):
    arguments, folder = command
    elsewhere = [*arguments[:-1], str(tmp_path / "elsewhere")]
    command_line.main([*elsewhere, "--parts", "table1 split", "--rows", "*Finetune"])
    command_line.main([*arguments, "--parts", "table1 split", "--rows", "DHP Softmax"])
    assert [settings.row for _, settings, _, _ in learnt] == ["Finetune", "DHP Softmax"]
    there = str(tmp_path / "elsewhere" / "dhp_softmax.json")
    command_line.main([*arguments, "--parts", "table1 split", "--rows", "*t*", "--also", there])
    assert [settings.row for _, settings, _, _ in learnt[2:]] == [
        f"DHP Softmax + {method}" for method in ("SI", "Online EWC", "MAS")
    ]
    assert {row["row"] for row in report(folder)["rows"]} >= {"Finetune", "DHP Softmax"}
    assert len(report(folder)["runs"]) == 5
    command_line.main([*arguments, "--parts", "table1 split", "--rows", "Finetune", "--seeds", "3"])
    assert [seed for _, _, seed, _ in learnt[5:]] == [1, 2]
    (row,) = [row for row in report(folder)["rows"] if (row["row"], row["unit"]) == ("Finetune", "%")]
    values = [np.mean(run["R"][-1]) for run in report(folder)["runs"] if not run["settings"].get("dhp")]
    assert row["seeds"] == 3 and row["mean"] == pytest.approx(np.mean(values))
    assert row["std"] == pytest.approx(np.std(values, ddof=1))
    assert row["error"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))


@pytest.mark.slow(60)
def test_settings_are_chosen_by_validation_and_then_tested(command, learnt, monkeypatch):
    arguments, folder = command
    monkeypatch.setattr(recipes, "METHODS", ("Finetune", "MAS"))
    tried = [(1e-9, 1), (0.01, 1), (0.01, 3)]
    monkeypatch.setattr(recipes, "TRIED", {"Finetune": tried[:2], "MAS": tried})
    command_line.main([*arguments, "--parts", "search split,chosen split"])
    tried, tested = learnt[:5], learnt[5:]
    assert {on for *_, on in tried} == {"validation"} and {on for *_, on in tested} == {"test"}
    rows = {settings.row for _, settings, _, _ in tried}
    assert rows == {"Finetune", "MAS"}
    both = rows | {"DHP Softmax", "DHP Softmax + MAS"}
    assert len(tested) == 4 and {settings.row for _, settings, _, _ in tested} == both
    assert {settings.lr for _, settings, _, _ in tested} == {0.01}  # the other rate learns nothing
    chosen = [row for row in report(folder)["rows"] if row["table"].startswith("Chosen")]
    assert len(chosen) == 2 * 4 and {row["chosen_on"] for row in chosen} == {"validation"}
    assert {row["paper"] for row in chosen if row["unit"]} == {90.43, 98.23, 98.24, 98.43}
    page = folder / "page.md"
    page.write_text("<!-- hebbkern bench: dhp_softmax -->\n<!-- end of hebbkern bench: dhp_softmax -->\n")
    monkeypatch.setattr(tables, "ROOT", folder.parent)
    tables.main(["dhp_softmax", str(page), "Chosen*"])  # not the search
    assert sum("| average accuracy |" in line for line in page.read_text().splitlines()) == 4
    lost = {
        "table": "T",
        "row": "DHP",
        "measure": "accuracy",
        "unit": "%",
        "paper": 88.5,
        "mean": None,
        "seeds": 0,
        "diverged": 3,
    }
    rows = [lost, lost | {"row": "MAS", "mean": 87.0, "std": 0.5, "seeds": 2, "diverged": 1}]
    rows.append(rows[1] | {"measure": "transfer", "unit": "", "paper": None, "mean": -0.05, "std": 0.01})
    assert tables._wide(rows)[2:] == [
        "| DHP | diverged (88.50) |  | 3 |",
        "| MAS | 87.00 ± 0.50 %, 1 diverged (88.50) | -0.05 ± 0.01, 1 diverged | 3 |",
    ]


def test_the_letter_is_told_where_the_table_departs_from_it():
    for benchmark, count in (("permuted", 2), ("imbalanced", 4), ("split", 2)):
        rows = recipes.literal(benchmark)
        assert len(rows) == count and all(row.settings.per_sample and not row.settings.bounded for row in rows)
        assert not {row.settings for row in rows} & {row.settings for row in recipes.table1(benchmark)}


@pytest.mark.slow(60)
def test_pictures_of_the_runs_that_are_there(command, learnt, capsys):
    arguments, folder = command
    command_line.main([*arguments, "--parts", "pictures"])
    assert not list(folder.glob("*.png")) and not learnt
    command_line.main([*arguments, "--parts", "table1 permuted", "--rows", "DHP Softmax"])
    command_line.main([*arguments, "--parts", "table1 split", "--rows", "*SI"])
    capsys.readouterr()
    command_line.main([*arguments, "--parts", "pictures"])
    drawn = {path.stem.removeprefix("dhp_softmax_"): path.stat().st_size for path in folder.glob("*.png")}
    assert set(drawn) == {"permuted", "plastic", "eta", "split"}  # η = 0.001 of Table 4 is the row of Table 1
    assert max(drawn.values()) < 300_000
    (missing,) = [line for line in capsys.readouterr().out.splitlines() if "because of missing runs" in line]
    assert all(f"Figure {number}" in missing for number in (5, 6, 8))
    assert not any(f"Figure {number}" in missing for number in ("2a", "2b", 3, 4))


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """{name: figure} of an experiment with made-up accuracies of Permuted MNIST and CIFAR, two seeds."""
    figures = {}
    monkeypatch.setattr(pictures.files, "write", lambda figure, path: figures.update({path.stem: figure}) or path)

    def of(row, seeds):
        if row.benchmark not in ("permuted", "cifar"):
            return []
        looks = {"epochs": [1, 2, 1], "plastic": [[i, 2 * i, 3 * i] for i in range(4 * 5)]} if row.settings.dhp else {}
        alone = row.settings.method == "Scratch"
        return [
            {
                "seed": seed,
                "R": [
                    [None if j > i or (alone and j < i) else 60.0 + 10 * i + j + 4 * seed for j in range(3)]
                    for i in range(3)
                ],
            }
            | looks
            for seed in (1, 0)
        ]

    pictures.draw(SimpleNamespace(arguments=SimpleNamespace(seeds=2), of=of), tmp_path)
    return figures


def test_lines_and_bars_are_means_with_standard_errors(drawn):
    axes = drawn["dhp_softmax_permuted"].axes[0]
    lines = {text.get_text(): line for text, line in zip(legend(drawn, "permuted"), axes.lines, strict=True)}
    assert len(lines) == 8
    for label, line in lines.items():
        assert label.endswith(": 83.00")  # mean of 80, 81, 82 and two seeds of which one is 4 higher
        np.testing.assert_allclose(line.get_ydata(), [62, 72.5, 83])
        assert (line.get_linestyle() == "-") == label.startswith("DHP")
    shade = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([shade[:, 1].min(), shade[:, 1].max()], [60, 85])  # 4 / √2 / √2
    colours = {label.split(":")[0]: line.get_color() for label, line in lines.items()}
    assert colours["SI"] == colours["DHP Softmax + SI"] != colours["Finetune"] == colours["DHP Softmax"]
    axes = drawn["dhp_softmax_cifar"].axes[0]
    bars = {text.get_text(): bar for text, bar in zip(legend(drawn, "cifar"), axes.containers[::2], strict=True)}
    heights = {label: [bar.get_height() for bar in group] for label, group in bars.items()}
    for name in ("Finetune", "DHP Softmax", "SI", "DHP Softmax + SI"):
        np.testing.assert_allclose(heights[f"{name}: 83.00"], [82, 83, 84])
    np.testing.assert_allclose(heights["Scratch: 73.00"], [62, 73, 84])
    sides = [(bar.get_x(), bar.get_x() + bar.get_width()) for group in bars.values() for bar in group]
    assert all(end <= start for (_, end), (start, _) in zip(sorted(sides), sorted(sides)[1:], strict=False))
    from matplotlib.colors import same_color

    assert same_color(bars["SI: 83.00"][0].get_edgecolor(), colours["SI"])


def legend(drawn, name):
    return drawn[f"dhp_softmax_{name}"].legends[0].get_texts()


def test_the_plastic_part_is_drawn_task_by_task(drawn):
    for index, axes in enumerate(drawn["dhp_softmax_plastic"].axes):
        parts = axes.lines[:3]  # tasks of 1, 2 and 1 epochs, five looks each; lines at their ends follow
        for part, (first, last) in zip(parts, ((0, 5), (5, 15), (15, 19)), strict=True):  # up to the next task's first
            np.testing.assert_allclose(part.get_xdata(), np.arange(first, last + 1) / 5)
            np.testing.assert_allclose(part.get_ydata(), (index + 1) * np.arange(first, last + 1))
        assert [line.get_xdata()[0] for line in axes.lines[3:]] == [1, 3]
        assert len({part.get_color() for part in parts}) == 3


def test_a_twelfth_is_held_out_the_same_of_all_permutations(command):
    arguments, _ = command
    experiment = experiments.Experiment(command_line.parse(arguments), [])
    benchmark = experiment.benchmark("permuted", "none", 0)
    assert len(benchmark.train) == len(benchmark.validation) == len(benchmark.test) == 10
    kept, out = benchmark.train[0].indices, benchmark.validation[0].indices
    assert len(out) == TRAIN // 12
    assert torch.equal(torch.cat((kept, out)).sort().values, torch.arange(TRAIN))
    y = torch.from_numpy(np.load(arguments[1])["y_train"])
    for t in range(10):
        assert torch.equal(benchmark.train[t].indices, kept) and torch.equal(benchmark.validation[t].indices, out)
        assert torch.equal(benchmark.train[t].labels, y[kept]) and torch.equal(benchmark.validation[t].labels, y[out])
    again, other = experiment.benchmark("permuted", "none", 0), experiment.benchmark("permuted", "none", 1)
    first = [made.train[0][:][0] for made in (benchmark, again, other)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    for kind in ("train", "validation", "test"):  # one order of pixels for all three parts of a task
        (x, labels), dots = getattr(benchmark, kind)[3][:], torch.zeros(28, 28)
        dots[:12, :6] = 1  # the block of class 0
        where = benchmark.train[3].transform(dots[None])[0].bool()
        assert x.view(-1, 28, 28)[labels == 0][:, where].min() > 140 / 255
    halves = experiment.benchmark("split", "none", 0)
    assert [part.labels.unique().tolist() for part in halves.train + halves.test] == [[0, 1]] * 10
    there = [y[part.indices].unique().tolist() for part in halves.train]
    assert there == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_each_seed_has_permutations_of_its_own(command, monkeypatch):
    arguments, _ = command
    monkeypatch.setattr(experiments, "learn", lambda benchmark, *rest, on: benchmark)
    experiment = experiments.Experiment(command_line.parse(arguments), [])
    made = list(experiment.missing([(row, range(2)) for row in recipes.table1("permuted")[:2]]))
    orders = [benchmark.train[0].transform.order for benchmark in made]
    assert torch.equal(orders[0], orders[2]) and torch.equal(orders[1], orders[3])  # of both rows
    assert not torch.equal(orders[0], orders[1])


def test_committed_runs_are_those_of_the_recipes():
    """Their keys are settings by name: after a change of a name or a default they would be computed again."""
    path = Path(__file__).parents[2] / "results" / "dhp_softmax.json"
    known = experiments.Experiment(command_line.parse(["--notmnist", "notmnist"]), experiments.read([path]))
    lines = [line for rows, seeds in known.parts().values() for row in rows for line in known.lines(row, seeds)]
    committed = json.loads(path.read_text())["rows"]
    assert len(committed) > 300 and not [row for row in committed if row not in lines]


def test_what_was_learnt_from_scratch_counts_as_known_at_the_end():
    alone = [[90.0, None, None], [None, 70.0, None], [None, None, 50.0]]
    assert experiments.filled(alone)[-1] == pictures.at_last(alone) == [90.0, 70.0, 50.0]
    assert (
        metrics.average_accuracy(experiments.filled(alone)) == 70
        and metrics.backward_transfer(experiments.filled(alone)) == 0
    )
    kept = [[90.0, None], [60.0, 70.0]]
    assert experiments.filled(kept)[-1] == pictures.at_last(kept) == [60.0, 70.0]
