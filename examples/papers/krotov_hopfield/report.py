"""The result file, the printed table and the pictures of filters."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from examples.papers.common.results import deviation, difference
from hebbkern import plots

PAPER = {"learnt": {"test": 91.44, "train": 98.64}, "backprop": {"test": 91.94, "train": 99.98}}
MEASURES = {
    "test": "test accuracy",
    "train": "train accuracy",
    "entropy": "effective rank of the filters, exp of the entropy of the singular values",
}


def known(path: Path, settings: dict) -> dict:
    """Returns the content of the file at `path`; nothing where it has other settings or does not exist."""
    content = json.loads(path.read_text()) if path.exists() else {}
    return content if content.get("settings") == settings else {}


def merged(runs: Mapping[str, list[dict]], about: dict, path: Path, order: Sequence[str]) -> dict:
    """Returns the content of the result file: these runs and other rows that it has with the same settings.

    Args:
        runs: {row: figures, one dict per seed}.
        about: the head of the file.
        path: the file as it is now.
        order: the names of all rows.
    """
    before = known(path, about["settings"])
    if others := {row: figures for row, figures in before.get("runs", {}).items() if row not in runs and row in order}:
        commands = dict.fromkeys([*before["command"].split(" && "), about["command"]])
        about = about | {"command": " && ".join(commands)}
    every = {row: figures for row in order if (figures := (others | runs).get(row))}
    seconds = round(sum(run["seconds"] for figures in every.values() for run in figures), 1)
    return about | {"seconds": seconds} | summary(every) | {"runs": every}


def summary(runs: Mapping[str, list[dict]]) -> dict:
    """Returns the lines of the result file, and the difference of the first row and each of the others."""
    best, *others = runs
    tests = {row: [run["test"] for run in figures] for row, figures in runs.items()}
    return {
        "rows": [line(row, name, figures) for row, figures in runs.items() for name in MEASURES],
        "differences": {f"best learnt less {row}": difference(tests[best], tests[row]) for row in others},
    }


def line(row: str, name: str, runs: Sequence[dict]) -> dict:
    """Returns a measure of a row, over seeds, as a line of the result file."""
    kind = "backprop" if "backprop" in row else "random" if "random" in row else "learnt"
    values = [run[name] for run in runs]
    return {
        "table": "PyTorch-Hebbian, Table 1",
        "row": row,
        "measure": MEASURES[name],
        "unit": "" if name == "entropy" else "%",
        "paper": PAPER.get(kind, {}).get(name),
        "mean": statistics.fmean(values),
        "std": deviation(values),
        "seeds": len(values),
        "chosen_on": "validation",
    }


def show(content: dict) -> None:
    """Prints the lines of a result file beside the paper's figures."""
    print(f"\n{'ours':>68} {'paper':>7}")
    for row in content["rows"]:
        paper = "" if row["paper"] is None else f"{row['paper']:.2f}"
        measure = row["measure"].split(" of ")[0]
        print(f"{row['row']:<54}{measure:<20} {row['mean']:6.2f} ± {row['std']:.2f} {paper:>7}  seeds {row['seeds']}")
    for name, value in content["differences"].items():
        error = "" if value["standard_error"] is None else f", standard error {value['standard_error']:.2f}"
        print(f"{name}: {value['points']:+.2f} points{error}")


def draw(row: str, filters: Tensor, folder: Path) -> Path:
    """Draws the filters, each divided by its largest weight: batch norm removes their scale."""
    stem = row.split(":")[0].replace("Krotov-Hopfield, ", "").replace("end-to-end ", "").replace(" ", "_")
    tiles = filters.float() / filters.float().abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    return plots.weight_grid(tiles, folder / f"krotov_cnn_filters_{stem}.png", title=f"{row}: {len(filters)} filters")
