"""What hebbian_cnn.py writes, results/hebbian_cnn.json, and prints: the paper's tables, and learnt less random."""

from __future__ import annotations

import itertools
import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path

import scipy.stats  # noqa: F401 (of evaluation.interval: better missed now than after an hour)
import torch

import hebbkern as hk
from examples.papers.hebbian_cnn import recipes
from examples.papers.hebbian_cnn.recipes import Cell, Source, Table
from examples.papers.hebbian_cnn.runner import settings_of
from examples.papers.krotov_hopfield.report import command, deviation, difference
from hebbkern import evaluation
from hebbkern.cli import doctor

# Beside which random filters a method's stand.
LEARNT = {"HPCA": "random", "HPCA, bfloat16": "random", "HWTA": "random, whitened"}


class Runs:
    """Figures by what they are of: "CIFAR10 | HPCA HH | SGD | 0" → {"test": ..., "validation": ..., ...}."""

    def __init__(self, path: Path):
        self.path = path
        self.found = json.loads(path.read_text()) if path.exists() else {}
        self.known: dict[str, dict] = self.found.get("runs", {})

    @staticmethod
    def key(data: str, source: Source, classifier: str, seed: int) -> str:
        return f"{data} | {' '.join(source)} | {classifier} | {seed}"

    def get(self, data: str, cell: Cell, seed: int) -> dict | None:
        """The cell's figures, if they are by the recipes as they stand."""
        figures = self.known.get(self.key(data, cell.source, cell.classifier, seed))
        if figures is None or cell.classifier in ("time", "SoftHebb"):
            return figures
        wanted = settings_of(data).recipe(cell.source, cell.classifier)
        return figures if figures.get("recipe") == wanted else None

    def of(self, data: str, cell: Cell) -> list[dict]:
        """One a seed, as many as there are in turn."""
        return list(itertools.takewhile(bool, (self.get(data, cell, seed) for seed in itertools.count())))

    def add(self, key: str, figures: dict, argv: list[str] | None) -> None:
        """Writes all there is; what another process has written meanwhile stays."""
        now = Runs(self.path)
        self.known = self.known | now.known | {key: figures}
        commands = dict.fromkeys(
            [*filter(None, now.found.get("command", "").split(" && ")), command("hebbian_cnn", argv)]
        )
        self.found = now.found | {
            "command": " && ".join(commands),
            "version": hk.__version__,
            "machine": doctor.processor(),
            "torch": torch.__version__,
            "seconds": round(sum(run["seconds"] for run in self.known.values()), 1),
        }
        self.found |= {"rows": list(rows(self)), "differences": list(differences(self)), "runs": self.known}
        partial = self.path.with_suffix(f".{os.getpid()}.json")
        partial.write_text(json.dumps(self.found, indent=1) + "\n")
        partial.replace(self.path)


def cells(runs: Runs) -> Iterator[tuple[Table, Cell, list[dict]]]:
    """Every cell of every table that something is known of."""
    for table in recipes.tables().values():
        for cell in table.cells:
            if figures := runs.of(table.data, cell):
                yield table, cell, figures


def rows(runs: Runs) -> Iterator[dict]:
    """In the format of results/*.json, with half of the 95 % interval where there are two seeds."""
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
            found = evaluation.interval(values)
            row["half_interval"] = (found.high - found.low) / 2
        yield row


def differences(runs: Runs) -> Iterator[dict]:
    """Learnt less random, of the same network and classifier; clear where it is more than two standard errors."""
    for table, cell, figures in cells(runs):
        beside = LEARNT.get(cell.source.method)
        if beside is None or cell.figure != "test":
            continue
        beside = beside if cell.source.pattern[0] == "H" else "random"
        other = Cell(cell.row, beside, cell.source._replace(method=beside), cell.classifier)
        if random := runs.of(table.data, other):
            found = difference([run["test"] for run in figures], [run["test"] for run in random])
            error = found["standard_error"]
            clear = None if error is None else found["points"] > 2 * error
            yield {"table": table.title, "row": cell.row, "measure": cell.measure} | found | {"clear": clear}


def show(found: dict, tables: list[str]) -> None:
    """The rows of these tables, and what learning gained."""
    for title in (recipes.tables()[name].title for name in tables):
        print(f"\n{title}\n{'':<47}{'ours':>18} {'paper':>7} {'gap':>7}")
        for row in (row for row in found.get("rows", []) if row["table"].startswith(title)):
            paper = "" if row["paper"] is None else f"{row['paper']:.2f}"
            gap = "" if row["paper"] is None else f"{row['mean'] - row['paper']:+.2f}"
            mean = f"{row['mean']:.2f}" + (f" ± {row['half_interval']:.2f}" if "half_interval" in row else "")
            print(f"{row['row']:<28} {row['measure']:<17} {mean:>18} {paper:>7} {gap:>7}  seeds {row['seeds']}")
        for gain in (gain for gain in found.get("differences", []) if gain["table"] == title):
            error = gain["standard_error"]
            words = (
                "one seed"
                if error is None
                else f"standard error {error:.2f}, {'clear' if gain['clear'] else 'not clear'}"
            )
            print(f"{gain['row']}, {gain['measure']} less random: {gain['points']:+.2f} points ({words})")
