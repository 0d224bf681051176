"""The result file, results/hebbian_cnn.json, and the printed tables with the gain over random filters."""

from __future__ import annotations

import itertools
import json
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import scipy.stats  # noqa: F401 (evaluation.interval needs it: fail here, not after an hour)

from examples.papers.common.results import deviation, difference, provenance
from examples.papers.hebbian_cnn import recipes
from examples.papers.hebbian_cnn.recipes import Cell, Source, Table
from examples.papers.hebbian_cnn.runner import settings_of
from hebbkern import evaluation

# The random filters that each method is compared with.
LEARNT = {"HPCA": "random", "HPCA, bfloat16": "random", "HWTA": "random, whitened"}


class Runs:
    """Figures by source, classifier and seed: "CIFAR10 | HPCA HH | SGD | 0" → {"test": ..., "validation": ..., ...}."""

    def __init__(self, path: Path):
        self.path = path
        self.content = json.loads(path.read_text()) if path.exists() else {}
        self.known: dict[str, dict] = self.content.get("runs", {})

    @staticmethod
    def key(data: str, source: Source, classifier: str, seed: int) -> str:
        return f"{data} | {' '.join(source)} | {classifier} | {seed}"

    def get(self, data: str, cell: Cell, seed: int) -> dict | None:
        """Returns the figures of a cell if they were computed by the present recipes."""
        figures = self.known.get(self.key(data, cell.source, cell.classifier, seed))
        if figures is None or cell.classifier in ("time", "SoftHebb"):
            return figures
        recipe = settings_of(data).recipe(cell.source, cell.classifier)
        return figures if figures.get("recipe") == recipe else None

    def of(self, data: str, cell: Cell) -> list[dict]:
        """Returns the figures of a cell for seed 0, 1, ... up to the first one that is missing."""
        return list(itertools.takewhile(bool, (self.get(data, cell, seed) for seed in itertools.count())))

    def add(self, key: str, figures: dict, argv: Sequence[str] | None) -> None:
        """Adds figures and writes the file; figures that another process has written meanwhile stay."""
        file = Runs(self.path)
        self.known = self.known | file.known | {key: figures}
        seconds = sum(run["seconds"] for run in self.known.values())
        about = provenance("hebbian_cnn", argv, seconds=seconds)
        commands = dict.fromkeys([*filter(None, file.content.get("command", "").split(" && ")), about["command"]])
        self.content = file.content | about | {"command": " && ".join(commands)}
        self.content |= {"rows": list(rows(self)), "differences": list(differences(self)), "runs": self.known}
        partial = self.path.with_suffix(f".{os.getpid()}.json")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        partial.replace(self.path)


def cells(runs: Runs) -> Iterator[tuple[Table, Cell, list[dict]]]:
    """Yields every cell with figures, and these."""
    for table in recipes.tables().values():
        for cell in table.cells:
            if figures := runs.of(table.data, cell):
                yield table, cell, figures


def rows(runs: Runs) -> Iterator[dict]:
    """Yields the lines of the result file, with half of the 95 % interval where there are several seeds."""
    for table, cell, figures in cells(runs):
        values = [float(run[cell.figure]) for run in figures]
        row = {
            "table": table.title + next((f" ({run['note']})" for run in figures if "note" in run), ""),
            "row": cell.row,
            "measure": cell.measure,
            "unit": cell.unit,
            "paper": cell.paper,
            "mean": statistics.fmean(values),
            "std": deviation(values),
            "seeds": len(values),
            "chosen_on": "validation",
        }
        if len(values) > 1:
            interval = evaluation.interval(values)
            row["half_interval"] = (interval.high - interval.low) / 2
        yield row


def differences(runs: Runs) -> Iterator[dict]:
    """Yields learnt less random filters of the same network and classifier; clear: above two standard errors."""
    for table, cell, figures in cells(runs):
        beside = LEARNT.get(cell.source.method)
        if beside is None or cell.figure != "test":
            continue
        beside = beside if cell.source.pattern[0] == "H" else "random"
        other = Cell(cell.row, beside, cell.source._replace(method=beside), cell.classifier)
        if random := runs.of(table.data, other):
            gain = difference([run["test"] for run in figures], [run["test"] for run in random])
            error = gain["standard_error"]
            clear = None if error is None else gain["points"] > 2 * error
            yield {"table": table.title, "row": cell.row, "measure": cell.measure} | gain | {"clear": clear}


def show(content: dict, tables: Sequence[str]) -> None:
    """Prints the rows of these tables, and the gains over random filters."""
    for title in (recipes.tables()[name].title for name in tables):
        print(f"\n{title}\n{'':<47}{'ours':>18} {'paper':>7} {'gap':>7}")
        for row in (row for row in content.get("rows", []) if row["table"].startswith(title)):
            paper = "" if row["paper"] is None else f"{row['paper']:.2f}"
            gap = "" if row["paper"] is None else f"{row['mean'] - row['paper']:+.2f}"
            mean = f"{row['mean']:.2f}" + (f" ± {row['half_interval']:.2f}" if "half_interval" in row else "")
            print(f"{row['row']:<28} {row['measure']:<17} {mean:>18} {paper:>7} {gap:>7}  seeds {row['seeds']}")
        for gain in (gain for gain in content.get("differences", []) if gain["table"] == title):
            error = gain["standard_error"]
            clear = "clear" if gain["clear"] else "not clear"
            note = "one seed" if error is None else f"standard error {error:.2f}, {clear}"
            print(f"{gain['row']}, {gain['measure']} less random: {gain['points']:+.2f} points ({note})")
