"""Puts what an example found, results/<example>.json, as a table between its marks in a page.

python examples/tables.py krotov_cnn docs/results.md
python examples/tables.py dhp_softmax docs/results.md "Table*" "Chosen*"       # of these names only
"""

import json
import sys
from fnmatch import fnmatch
from pathlib import Path

from hebbkern.benchmark import report

ROOT = Path(__file__).parent.parent
HEAD = ("row", "measure", "ours", "seeds", "paper", "gap to the paper")


def markdown(found: dict) -> str:
    """The rows of results/*.json (DESIGN.md, Results): mean ± standard deviation over seeds, beside the paper's.

    One table for each of the paper's, headed by its name where there are several.
    """
    names = list(dict.fromkeys(row["table"] for row in found["rows"]))
    parts = []
    for name in names:
        parts += [f"**{name}**", ""] if len(names) > 1 else []
        parts += [_line(HEAD), "| --- " * len(HEAD) + "|"]
        parts += [_line(_cells(row)) for row in found["rows"] if row["table"] == name] + [""]
    where = f"{found['machine']}, hebbkern {found['version']}, {found['seconds']:.0f} s."
    return "\n".join([*parts, f"{where} `{found['command']}`"])


def _cells(row: dict) -> tuple:
    unit = f" {row['unit']}".rstrip()
    paper, mean = row.get("paper"), row["mean"]
    if mean is None:
        ours = "diverged"
    else:
        ours = f"{mean:.2f}{unit}" if row["seeds"] == 1 else f"{mean:.2f} ± {row['std']:.2f}{unit}"
    if mean is not None and "diverged" in row:
        ours += f", {row['diverged']} more diverged"
    gap = "" if None in (paper, mean) else f"{mean - paper:+.2f}"
    beside = "" if paper is None else f"{paper:.2f}", gap
    return row["row"], row["measure"], ours, row["seeds"], *beside


def _line(cells) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main(argv=None) -> None:
    example, page, *patterns = sys.argv[1:] if argv is None else argv
    found = json.loads((ROOT / "results" / f"{example}.json").read_text())
    rows = [row for row in found["rows"] if any(fnmatch(row["table"], pattern) for pattern in patterns or ["*"])]
    table = markdown(found | {"rows": rows})
    text = report.put_between_marks(Path(page).read_text(), table, f": {example}")
    Path(page).write_text(text)


if __name__ == "__main__":
    main()
