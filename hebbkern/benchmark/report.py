"""The benchmark's tables, as text and Markdown: of every operator and rule, and of hebbkern beside its peers."""

import re

HEAD = ("work", "hebbkern", "vs NumPy", "vs eager torch", "vs floor", "limits")
PEERS = {
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
    "Medians of one run, in alternating order; what takes seconds a call is timed less often, at least once. The floor "
    "is the bare forward pass (matmul or channels-last convolution; for dense rules with its weight gradient; for "
    "apply the addition, for kwinners topk + scatter)."
)
LEGEND = (
    "vs NumPy, vs eager torch: how many times as fast hebbkern is (below 1: slower). vs floor: how many times as long "
    f"it takes as the floor. {MEDIANS}"
)
PEERS_LEGEND = (
    "Each figure is a time in multiples of the floor, in parentheses under torch.compile (compiled before it is "
    "timed). Peers that do not apply to a work are left out. The tensor of the broadcast, patches x neurons x inputs, "
    f"would be up to tens of GB and is made in chunks. {MEDIANS}"
)


def text(report):
    head, table, legend = _table(report)
    return "\n".join([machine(report), "", *aligned([head, *table]), "", *_sentences(report), "", legend])


def aligned(rows):
    """Lines of rows of cells, each column as wide as its widest."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def markdown(report):
    head, table, legend = _table(report)
    lines = [machine(report), "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([*lines, "", *(f"- {line}" for line in _sentences(report)), "", legend])


def _table(report):
    """Head, rows and what stands below them."""
    if not report["peers"]:
        return HEAD, [cells(row) for row in report["rows"]], LEGEND
    present = [name for name in PEERS if any(name in row["to_floor"] for row in report["rows"])]
    head = ("work", "floor", *(PEERS[name] for name in present), "limits")
    return head, [peer_cells(row, present) for row in report["rows"]], PEERS_LEGEND


def _sentences(report):
    return [*losses(report["rows"]), *map(sentence, report["properties"])]


def machine(report):
    return f"{report['machine']}, {report['threads']} threads, torch {report['torch']}, hebbkern {report['version']}"


def cells(row):
    ratios = row["ratios"]
    times = duration(row["seconds"]["hebbkern"]), f"{ratios['numpy']:.1f}x", f"{ratios['eager']:.1f}x"
    return row["case"], *times, f"{ratios['floor']:.2f}", limits(row)


def peer_cells(row, present):
    found = []
    for name in present:
        plain, compiled = (row["to_floor"].get(prefix + name) for prefix in ("", "compiled "))
        found.append((_multiple(plain) if plain else "") + (f" ({_multiple(compiled)})" if compiled else ""))
    return row["case"].partition(": ")[2], duration(row["seconds"]["floor"]), *found, limits(row)


def _multiple(ratio):
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def limits(row):
    found = []
    for against, limit in row["limits"].items():
        sign, held = "≥" if against == "numpy" else "≤", "holds" if row["holds"][against] else "FAILS"
        found.append(f"{PEERS.get(against, against)} {sign} {limit:g} {held}")
    return ", ".join(found)


def losses(rows):
    """One sentence on the works in which something else is faster than hebbkern, or none."""
    lost = []
    for row in rows:
        others = {k: v for k, v in row["to_floor"].items() if k not in ("hebbkern", "unscreened")}
        fastest = min(others, key=others.get)
        if others[fastest] < row["to_floor"]["hebbkern"]:
            slower = row["to_floor"]["hebbkern"] / others[fastest]
            lost.append(f"{row['case'].partition(': ')[2]} ({slower:.2f} x the time of {fastest})")
    return [f"Something else is faster than hebbkern in: {'; '.join(lost)}."] if lost else []


def sentence(row):
    held, kind = "holds" if row["holds"] else "FAILS", row["property"]
    if kind == "extra memory":
        return f"Extra memory of a {row['case']}: {row['MiB']:.1f} MiB (limit {row['limit']} MiB, {held})."
    if kind == "scaling":
        return f"2 threads against 1, {row['case']}: {row['times']:.2f} x as fast (limit {row['limit']} x, {held})."
    if kind == "overhead":
        return f"Overhead of a {row['case']}: {row['us']:.0f} µs (limit {row['limit']} µs, {held})."
    return f"Same seed, {row['case']}: {row['results']} different weights (limit 1, {held})."


def duration(seconds):
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def marks(kind=""):
    """Between which lines of a page the table of `hebbkern bench` stands, or that of `hebbkern bench --peers`."""
    return f"<!-- hebbkern bench{kind} -->", f"<!-- end of hebbkern bench{kind} -->"


def put_between_marks(page, table, kind=""):
    """The page with what stands between its two marks replaced; ValueError where it has none."""
    start, end = marks(kind)
    new, found = re.subn(
        f"{re.escape(start)}.*?{re.escape(end)}", lambda _: f"{start}\n{table}\n{end}", page, flags=re.DOTALL
    )
    if not found:
        raise ValueError(f"the page has no place for the table: {start} ... {end}")
    return new
