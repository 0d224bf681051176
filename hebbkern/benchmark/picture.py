"""The benchmark's pictures: the time of every implementation in bare forward passes, and the curves of cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hebbkern.benchmark.report import LABELS, machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours of Okabe and Ito, which colour-blind readers can tell apart; hollow marks are torch.compile's.
MARKS = {
    "hebbkern": ("D", "#d55e00"),
    "unscreened": ("d", "#e69f00"),
    "numpy": ("s", "#000000"),
    "eager": ("o", "#0072b2"),
    "reorder": ("^", "#56b4e9"),
    "broadcast": ("v", "#999999"),
    "swap": ("<", "#009e73"),
    "gradient": (">", "#cc79a7"),
}
CURVES = {"KrotovHopfield": ("D", "#d55e00"), "WTA": ("o", "#0072b2"), "Sanger": ("s", "#009e73")}
PEERS_CAPTION = "Time of every formulation in multiples of the bare forward pass"
CURVES_CAPTION = "Time against patches, neurons, inputs and batch, memory against batch"


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("hebbkern bench: matplotlib is missing: pip install 'hebbkern[demo]'") from error
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def draw_peers(report: dict[str, Any], path: str) -> None:
    """Draws one line a work, one mark an implementation, the bare forward pass at 1."""
    rows = report["rows"][::-1]
    drawn = figure(9, 1.6 + 0.33 * len(rows))
    axes = drawn.add_subplot(xscale="log")
    for height in range(0, len(rows), 2):
        axes.axhspan(height - 0.5, height + 0.5, color="0.95", zorder=0)
    axes.axvline(1, color="black", linewidth=1, zorder=1)
    for name, (marker, colour) in MARKS.items():
        for prefix, fill, label in (("", colour, LABELS[name]), ("compiled ", "none", None)):
            points = [(row["to_forward"].get(prefix + name), height) for height, row in enumerate(rows)]
            points = [point for point in points if point[0]]
            if points:
                size = 60 if name == "hebbkern" else 34
                style = {"facecolors": fill, "edgecolors": colour, "label": label, "s": size, "linewidths": 1.1}
                axes.scatter(*zip(*points, strict=True), marker=marker, zorder=3 + (name == "hebbkern"), **style)
    axes.set_yticks(range(len(rows)), [_short(row["case"]) for row in rows], fontsize=8)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("time in multiples of the bare forward pass (hollow: torch.compile)")
    axes.grid(axis="x", which="major", color="0.85", zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    drawn.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    axes.set_title(machine(report), fontsize=9)
    _save(drawn, path)


def draw_curves(report: dict[str, Any], path: str) -> None:
    """Draws a panel for each axis, a line a rule, with the slope of its log-log fit."""
    names = list(dict.fromkeys(row["axis"] for row in report["rows"]))
    drawn = figure(9, 5.6)
    panels = list(drawn.subplots(2, 3).flat)
    for axes, axis in zip(panels, names, strict=False):
        for row in (row for row in report["rows"] if row["axis"] == axis):
            marker, colour = CURVES[row["rule"]]
            label = f"{row['rule']}: slope {row['slope']:.2f}"
            axes.loglog(row["sizes"], row["values"], marker=marker, color=colour, markersize=4, label=label)
        axes.set_xscale("log", base=2)
        axes.yaxis.set_minor_formatter("")
        axes.set_xlabel(axis)
        axes.set_ylabel(row["unit"])
        axes.legend(fontsize=7, frameon=False)
        axes.grid(which="major", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    drawn.suptitle(machine(report), fontsize=9)
    _save(drawn, path)


def _short(case: str) -> str:
    return case.partition(": ")[2].partition(";")[0].replace("KrotovHopfield", "Krotov-Hopfield")


def _save(drawn: Figure, path: str) -> None:
    drawn.savefig(path, metadata={"Software": None} if path.endswith(".png") else None)
