"""Puts what an example found, results/<example>.json, as a table between its marks in a page.

python examples/tables.py krotov_cnn docs/results.md
python examples/tables.py dhp_softmax docs/results.md --wide "Table*" "Chosen*"     # of these names only, a line a row
"""

import json
import sys
from fnmatch import fnmatch
from pathlib import Path

from hebbkern.benchmark import report

ROOT = Path(__file__).parent.parent
HEAD = ("row", "measure", "ours", "seeds", "paper", "gap to the paper")


def markdown(found: dict, *, wide: bool = False) -> str:
    """The rows of results/*.json (DESIGN.md, Results): mean ± standard deviation over seeds, beside the paper's.

    One table for each of the paper's, headed by its name where there are several; `wide`: all measures of a row in one
    line, the paper's in brackets.
    """
    names = list(dict.fromkeys(row["table"] for row in found["rows"]))
    parts = []
    for name in names:
        rows = [row for row in found["rows"] if row["table"] == name]
        parts += [f"**{name}**", ""] if len(names) > 1 else []
        parts += [*(_wide if wide else _narrow)(rows), ""]
    where = f"{found['machine']}, hebbkern {found['version']}, {found['seconds']:.0f} s."
    return "\n".join([*parts, f"{where} `{found['command']}`"])


def _narrow(rows: list[dict]) -> list[str]:
    return [_line(HEAD), "| --- " * len(HEAD) + "|", *(_line(_cells(row)) for row in rows)]


def _wide(rows: list[dict]) -> list[str]:
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    lines = [_line(("row", *measures, "seeds")), "| --- " * (len(measures) + 2) + "|"]
    for name in dict.fromkeys(row["row"] for row in rows):
        own = {row["measure"]: row for row in rows if row["row"] == name}
        lines.append(_line((name, *(_both(own[of]) if of in own else "" for of in measures), _seeds(own))))
    return lines


def _both(row: dict) -> str:
    paper = row.get("paper")
    return _ours(row) if paper is None else f"{_ours(row)} ({paper:.2f})"


def _seeds(own: dict[str, dict]) -> int:
    return max(row["seeds"] + row.get("diverged", 0) for row in own.values())


def _ours(row: dict) -> str:
    """Of runs that diverged only their number."""
    unit, lost, mean = f" {row['unit']}".rstrip(), row.get("diverged", 0), row["mean"]
    if mean is None:
        return "diverged"
    value = f"{mean:.2f}{unit}" if row["seeds"] == 1 else f"{mean:.2f} ± {row['std']:.2f}{unit}"
    return f"{value}, {lost} diverged" if lost else value


def _cells(row: dict) -> tuple:
    paper = row.get("paper")
    gap = "" if None in (paper, row["mean"]) else f"{row['mean'] - paper:+.2f}"
    return row["row"], row["measure"], _ours(row), row["seeds"], "" if paper is None else f"{paper:.2f}", gap


def _line(cells) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main(argv=None) -> None:
    given = sys.argv[1:] if argv is None else argv
    example, page, *patterns = [word for word in given if word != "--wide"]
    found = json.loads((ROOT / "results" / f"{example}.json").read_text())
    rows = [row for row in found["rows"] if any(fnmatch(row["table"], pattern) for pattern in patterns or ["*"])]
    table = markdown(found | {"rows": rows}, wide="--wide" in given)
    text = report.put_between_marks(Path(page).read_text(), table, f": {example}")
    Path(page).write_text(text)


if __name__ == "__main__":
    main()
