"""The benchmark's tables, as text and Markdown: of every operator and rule, and of hebbkern beside its peers."""

import re
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

HEAD = ("work", "hebbkern", "vs NumPy", "vs eager torch", "vs forward pass", "limits")
LABELS = {
    "hebbkern": "hebbkern",
    "unscreened": "screening off",
    "numpy": "NumPy",
    "eager": "eager, one-hot",
    "reorder": "reordered matmul",
    "broadcast": "broadcast",
    "swap": "swapped conv",
    "gradient": "weight gradient",
}
MEDIANS = (
    "Medians of one run, in alternating order; calls that take seconds are timed less often, at least once. The bare "
    "forward pass is a matmul or a channels-last convolution on the same inputs (for dense rules with its weight "
    "gradient; for apply the addition, for kwinners topk + scatter)."
)
LEGEND = (
    "vs NumPy, vs eager torch: how many times as fast hebbkern is (below 1: slower). vs forward pass: how many times "
    f"as long it takes as the bare forward pass. {MEDIANS}"
)
PEERS_LEGEND = (
    "Each figure is a time in multiples of the bare forward pass, in parentheses under torch.compile (compiled before "
    "it is timed). Formulations that do not apply are left out. The tensor of the broadcast, patches x neurons x "
    f"inputs, would take up to tens of GB and is computed in chunks. {MEDIANS}"
)


def text(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    head, table, legend = _table(report)
    return "\n".join([machine(report), "", *aligned([head, *table]), "", *_sentences(report), "", legend])


def markdown(report: dict[str, Any]) -> str:
    """The report for a page."""
    head, table, legend = _table(report)
    lines = [machine(report), "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([*lines, "", *(f"- {line}" for line in _sentences(report)), "", legend])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _table(report: dict[str, Any]) -> tuple[Sequence[str], list[Sequence[str]], str]:
    """Head, rows and legend."""
    if not report["peers"]:
        return HEAD, [_cells(row) for row in report["rows"]], LEGEND
    present = [name for name in LABELS if any(name in row["to_forward"] for row in report["rows"])]
    head = ("work", "forward pass", *(LABELS[name] for name in present), "limits")
    return head, [_peer_cells(row, present) for row in report["rows"]], PEERS_LEGEND


def _sentences(report: dict[str, Any]) -> list[str]:
    return [*losses(report["rows"]), *map(sentence, report["properties"])]


def machine(report: dict[str, Any]) -> str:
    """Where the figures were measured."""
    return f"{report['machine']}, {report['threads']} threads, torch {report['torch']}, hebbkern {report['version']}"


def _cells(row: Row) -> Sequence[str]:
    ratios = row["ratios"]
    times = (f"{ratios[name]:.1f}x" if name in ratios else "" for name in ("numpy", "eager"))
    return row["case"], duration(row["seconds"]["hebbkern"]), *times, f"{ratios['forward']:.2f}", _limits(row)


def _peer_cells(row: Row, present: list[str]) -> Sequence[str]:
    cells = []
    for name in present:
        plain, compiled = (row["to_forward"].get(prefix + name) for prefix in ("", "compiled "))
        cells.append((_multiple(plain) if plain else "") + (f" ({_multiple(compiled)})" if compiled else ""))
    return row["case"].partition(": ")[2], duration(row["seconds"]["forward"]), *cells, _limits(row)


def _multiple(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def _limits(row: Row) -> str:
    cells = []
    for name, limit in row["limits"].items():
        sign, held = "≥" if name == "numpy" else "≤", "holds" if row["holds"][name] else "FAILS"
        cells.append(f"{LABELS.get(name, 'forward pass')} {sign} {limit:g} {held}")
    return ", ".join(cells)


def losses(rows: list[Row]) -> list[str]:
    """One sentence on the works in which another implementation is faster than hebbkern, or none."""
    lost = []
    for row in rows:
        others = {k: v for k, v in row["to_forward"].items() if k not in ("hebbkern", "unscreened")}
        fastest = min(others, key=lambda name: others[name])
        if others[fastest] < row["to_forward"]["hebbkern"]:
            slower = row["to_forward"]["hebbkern"] / others[fastest]
            lost.append(f"{row['case'].partition(': ')[2]} ({slower:.2f} x the time of {fastest})")
    return [f"Another implementation is faster than hebbkern in: {'; '.join(lost)}."] if lost else []


def sentence(row: Row) -> str:
    """One property in words."""
    held, kind = "holds" if row["holds"] else "FAILS", row["property"]
    if kind == "extra memory":
        return f"Extra memory of a {row['case']}: {row['MiB']:.1f} MiB (limit {row['limit']} MiB, {held})."
    if kind == "scaling":
        return f"2 threads against 1, {row['case']}: {row['times']:.2f} x as fast (limit {row['limit']} x, {held})."
    if kind == "overhead":
        return f"Overhead of a {row['case']}: {row['us']:.0f} µs (limit {row['limit']} µs, {held})."
    return f"Same seed, {row['case']}: {row['results']} different weights (limit 1, {held})."


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def marks(kind: str = "") -> tuple[str, str]:
    """The lines of a page between which the table of `hebbkern bench` stands; kind: " --peers" or " --curves"."""
    return f"<!-- hebbkern bench{kind} -->", f"<!-- end of hebbkern bench{kind} -->"


def put_between_marks(page: str, table: str, kind: str = "") -> str:
    """The page with a new table between its two marks.

    Raises:
        ValueError: the page does not have the two marks.
    """
    start, end = marks(kind)
    new, count = re.subn(
        f"{re.escape(start)}.*?{re.escape(end)}", lambda _: f"{start}\n{table}\n{end}", page, flags=re.DOTALL
    )
    if not count:
        raise ValueError(f"the page has no place for the table: {start} ... {end}")
    return new
