"""Writes a result file, results/<name>.json, as a table between its marks in a page.

python -m examples.papers.common.tables krotov_cnn docs/results.md
python -m examples.papers.common.tables dhp_softmax docs/results.md --wide "Table*" "Chosen*"
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from hebbkern.benchmark import report

ROOT = Path(__file__).parents[3]
HEAD = ("row", "measure", "ours", "seeds", "paper", "gap to the paper")


def markdown(results: dict, *, wide: bool = False) -> str:
    """Returns the rows of a result file as Markdown: mean ± standard deviation over seeds, beside the paper's figure.

    Args:
        results: the content of results/*.json.
        wide: all measures of a row stand in one line, with the paper's figures in brackets.
    """
    names = list(dict.fromkeys(row["table"] for row in results["rows"]))
    parts = []
    for name in names:
        rows = [row for row in results["rows"] if row["table"] == name]
        parts += [f"**{name}**", ""] if len(names) > 1 else []
        parts += [*(_wide if wide else _narrow)(rows), ""]
    machine = f"{results['machine']}, hebbkern {results['version']}, {results['seconds']:.0f} s."
    return "\n".join([*parts, f"{machine} `{results['command']}`"])


def _narrow(rows: list[dict]) -> list[str]:
    return [_line(HEAD), "| --- " * len(HEAD) + "|", *(_line(_cells(row)) for row in rows)]


def _wide(rows: list[dict]) -> list[str]:
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    lines = [_line(("row", *measures, "seeds")), "| --- " * (len(measures) + 2) + "|"]
    for name in dict.fromkeys(row["row"] for row in rows):
        own = {row["measure"]: row for row in rows if row["row"] == name}
        lines.append(
            _line((name, *(_both(own[measure]) if measure in own else "" for measure in measures), _seeds(own)))
        )
    return lines


def _both(row: dict) -> str:
    paper = row.get("paper")
    return _ours(row) if paper is None else f"{_ours(row)} ({paper:.2f})"


def _seeds(own: dict[str, dict]) -> int:
    return max(row["seeds"] + row.get("diverged", 0) for row in own.values())


def _ours(row: dict) -> str:
    """Returns mean ± deviation and the number of runs that diverged; of these alone "diverged"."""
    unit, diverged, mean = f" {row['unit']}".rstrip(), row.get("diverged", 0), row["mean"]
    if mean is None:
        return "diverged"
    value = f"{mean:.2f}{unit}" if row["seeds"] == 1 else f"{mean:.2f} ± {row['std']:.2f}{unit}"
    return f"{value}, {diverged} diverged" if diverged else value


def _cells(row: dict) -> tuple:
    paper = row.get("paper")
    gap = "" if None in (paper, row["mean"]) else f"{row['mean'] - paper:+.2f}"
    return row["row"], row["measure"], _ours(row), row["seeds"], "" if paper is None else f"{paper:.2f}", gap


def _line(cells: Iterable) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in results/, without .json")
    parser.add_argument("page", type=Path, help="a Markdown file with the marks of the table")
    parser.add_argument("tables", nargs="*", help="patterns of table names (default: all)")
    parser.add_argument("--wide", action="store_true", help="one line per row")
    options = parser.parse_intermixed_args(argv)
    results = json.loads((ROOT / "results" / f"{options.name}.json").read_text())
    patterns = options.tables or ["*"]
    rows = [row for row in results["rows"] if any(fnmatch(row["table"], pattern) for pattern in patterns)]
    table = markdown(results | {"rows": rows}, wide=options.wide)
    options.page.write_text(report.put_between_marks(options.page.read_text(), table, f": {options.name}"))


if __name__ == "__main__":
    main()
