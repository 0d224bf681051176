"""The benchmark's table, as text, Markdown and JSON."""

import re

MARKS = "<!-- hebbkern bench -->", "<!-- end of hebbkern bench -->"
HEAD = ("work", "hebbkern", "vs NumPy", "vs eager torch", "vs floor", "limits")


def text(report):
    lines = [machine(report), ""]
    table = [HEAD, *map(cells, report["rows"])]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEAD))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    lines += ["", *map(sentence, report["properties"]), "", legend()]
    return "\n".join(lines)


def markdown(report):
    lines = [machine(report), "", f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    lines += [f"| {' | '.join(cells(row))} |" for row in report["rows"]]
    lines += ["", *(f"- {sentence(row)}" for row in report["properties"]), "", legend()]
    return "\n".join(lines)


def machine(report):
    return f"{report['machine']}, {report['threads']} threads, torch {report['torch']}, hebbkern {report['version']}"


def legend():
    return (
        "vs NumPy, vs eager torch: how many times as fast hebbkern is (below 1: slower). vs floor: how many times as "
        "long it takes as the bare forward pass (matmul or channels-last convolution; for dense rules with its weight "
        "gradient; for apply the addition, for kwinners the ReLU). Medians of one run, in alternating order."
    )


def cells(row):
    ratios, limits = row["ratios"], []
    for against, limit in row["limits"].items():
        sign = "≥" if against == "numpy" else "≤"
        limits.append(f"{against} {sign} {limit:g} {'holds' if row['holds'][against] else 'FAILS'}")
    times = duration(row["seconds"]["hebbkern"]), f"{ratios['numpy']:.1f}x", f"{ratios['eager']:.1f}x"
    return row["case"], *times, f"{ratios['floor']:.2f}", ", ".join(limits)


def sentence(row):
    held = "holds" if row["holds"] else "FAILS"
    if row["property"] == "extra memory":
        return f"Extra memory of a {row['case']}: {row['MiB']:.1f} MiB (limit {row['limit']} MiB, {held})."
    return f"Same seed, {row['case']}: {row['results']} different weights (limit 1, {held})."


def duration(seconds):
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def put_between_marks(page, table):
    """The page with what stands between its two marks replaced; ValueError where it has none."""
    start, end = map(re.escape, MARKS)
    new, found = re.subn(f"{start}.*?{end}", lambda _: f"{MARKS[0]}\n{table}\n{MARKS[1]}", page, flags=re.DOTALL)
    if not found:
        raise ValueError(f"the page has no place for the table: {MARKS[0]} ... {MARKS[1]}")
    return new
