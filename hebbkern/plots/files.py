"""The style of all pictures, matplotlib figures without pyplot, and the writing of files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

from hebbkern import files

TargetT = TypeVar("TargetT", str, Path, BinaryIO)
MOST_BYTES = 300_000  # of a PNG
INK = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "0.92"}
SMALL = {"font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "legend.frameon": False}
STYLE = INK | SMALL | {"axes.axisbelow": True, "svg.hashsalt": "hebbkern"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
DEAD = "#d55e00"


def figure(width: float, height: float, dpi: int = 130) -> Any:
    """Makes an empty Figure, sizes in inches. Raises ImportError if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("hebbkern.plots: matplotlib is missing: pip install 'hebbkern[demo]'") from error
    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def styled() -> Any:
    """Context in which axes are made and drawn in the style of this package, not in that of the user's settings."""
    try:
        from matplotlib import rc_context, rcParamsDefault
    except ImportError as error:
        raise ImportError("hebbkern.plots: matplotlib is missing: pip install 'hebbkern[demo]'") from error
    default: Any = {name: value for name, value in rcParamsDefault.items() if name.partition(".")[0] != "backend"}
    return rc_context(default | STYLE)


def write(drawn: Any, path: str | Path | BinaryIO) -> Any:
    """Writes the figure, makes the folder of a path, and returns path. The same figure gives the same bytes (PNG)."""
    if not isinstance(path, (str, Path)):
        path.write(png(drawn))
        return path
    path = Path(path)
    if path.suffix == ".png":
        files.write(path, png(drawn))
    else:
        buffer = io.BytesIO()
        drawn.savefig(buffer, format=path.suffix.removeprefix(".") or None, bbox_inches="tight")
        files.write(path, buffer.getvalue())
    return path


def png(drawn: Any) -> bytes:
    """The figure as a PNG of at most MOST_BYTES: with 256 colours if necessary, then with fewer dots an inch."""
    from PIL import Image

    dots = drawn.dpi
    while True:
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="png", dpi=dots, bbox_inches="tight", metadata={"Software": None})
        if buffer.tell() > MOST_BYTES:
            picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
            buffer = io.BytesIO()
            picture.save(buffer, format="png", optimize=True)
        if buffer.tell() <= MOST_BYTES:
            return buffer.getvalue()
        dots *= 0.85


def panels(count: int, width: float = 3.6, height: float = 2.4, columns: int = 3) -> tuple[Any, list[Any]]:
    """A figure with `count` panels, and the list of their axes."""
    columns = min(columns, count)
    rows = -(-count // columns)
    drawn = figure(max(width * columns, 4.4), height * rows)
    axes = drawn.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in axes[count:]:
        unused.set_axis_off()
    return drawn, axes[:count]


def refuse(name: str, wanted: str, got: object) -> NoReturn:
    raise ValueError(f"hebbkern.plots: {name} must be {wanted}, got {got}")
