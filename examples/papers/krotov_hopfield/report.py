"""What krotov_cnn.py prints, writes and draws of its rows."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from pathlib import Path

from torch import Tensor

from hebbkern import plots

PAPER = {"learnt": {"test": 91.44, "train": 98.64}, "backprop": {"test": 91.94, "train": 99.98}}
MEASURES = {
    "test": "test accuracy",
    "train": "train accuracy",
    "entropy": "effective rank of the filters, exp of the entropy of the singular values",
}


def command(example: str, argv: list[str] | None) -> str:
    """How an example was called, without paths of this machine."""
    words = [Path(word).stem if "/" in word else word for word in (sys.argv[1:] if argv is None else argv)]
    return shlex.join(["python", f"examples/{example}.py", *words])


def known(path: Path, settings: dict) -> dict:
    """What the file at `path` says of the same settings."""
    found = json.loads(path.read_text()) if path.exists() else {}
    return found if found.get("settings") == settings else {}


def write(path: Path, found: dict) -> None:
    path.write_text(json.dumps(found, indent=2) + "\n")


def merged(runs: dict[str, list[dict]], told: dict, path: Path, order: list[str]) -> dict:
    """What the file at `path` says, of other rows by the same settings, and these runs, rows in the order given."""
    there = known(path, told["settings"])
    if others := {row: figures for row, figures in there.get("runs", {}).items() if row not in runs and row in order}:
        commands = dict.fromkeys([*there["command"].split(" && "), told["command"]])
        told = told | {"command": " && ".join(commands)}
    every = {row: figures for row in order if (figures := (others | runs).get(row))}
    seconds = round(sum(run["seconds"] for figures in every.values() for run in figures), 1)
    return told | {"seconds": seconds} | summary(every) | {"runs": every}


def summary(runs: dict[str, list[dict]]) -> dict:
    """Lines in the format of results/*.json, and by how much the best learnt filters differ from the other rows."""
    best, *others = runs
    tests = {row: [run["test"] for run in figures] for row, figures in runs.items()}
    return {
        "rows": [line(row, name, figures) for row, figures in runs.items() for name in MEASURES],
        "differences": {f"best learnt less {row}": difference(tests[best], tests[row]) for row in others},
    }


def line(row: str, name: str, runs: list[dict]) -> dict:
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


def deviation(values: list[float]) -> float:
    """Of a sample; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def difference(ours: list[float], theirs: list[float]) -> dict[str, float | None]:
    """Points between the means, and the standard error of that (two independent samples); None with a single value."""
    error = (deviation(ours) ** 2 / len(ours) + deviation(theirs) ** 2 / len(theirs)) ** 0.5
    error = None if 1 in (len(ours), len(theirs)) else error
    return {"points": statistics.fmean(ours) - statistics.fmean(theirs), "standard_error": error}


def show(found: dict) -> None:
    print(f"\n{'ours':>68} {'paper':>7}")
    for row in found["rows"]:
        paper = "" if row["paper"] is None else f"{row['paper']:.2f}"
        measure = row["measure"].split(" of ")[0]
        print(f"{row['row']:<54}{measure:<20} {row['mean']:6.2f} ± {row['std']:.2f} {paper:>7}  seeds {row['seeds']}")
    for name, value in found["differences"].items():
        error = "" if value["standard_error"] is None else f", standard error {value['standard_error']:.2f}"
        print(f"{name}: {value['points']:+.2f} points{error}")


def draw(row: str, filters: Tensor, folder: Path) -> Path:
    """Each filter by its largest weight: batch norm leaves no scale."""
    stem = row.split(":")[0].replace("Krotov-Hopfield, ", "").replace("end-to-end ", "").replace(" ", "_")
    tiles = filters.float() / filters.float().abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    return plots.weight_grid(tiles, folder / f"krotov_cnn_filters_{stem}.png", title=f"{row}: {len(filters)} filters")
