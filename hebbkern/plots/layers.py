"""What layers do on a batch: winners per neuron, with dead units marked, and the statistics of activations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor

from hebbkern.plots.files import COLOURS, DEAD, figure, panels, refuse, styled, write

SPARSITY = {"inactive": "activations at most 0", "sparseness": "sparseness", "silent": "neurons never above 0"}


def winners(counts: Mapping[str, Tensor], path: str | Path | BinaryIO, *, title: str | None = None):
    """Writes a panel a layer: the wins of its neurons, most first, in multiples of an equal share; dead ones are red.

    Args:
        counts: {layer: whole numbers [K], how many patches each neuron won}. path: see `hebbkern.plots`.

    Returns path. Raises ValueError where nothing is given.
    """
    if not counts:
        refuse("counts", "of one layer or more", "none")
    with styled():
        drawn, axes = panels(len(counts), height=2.7)
        for panel, (name, wins) in zip(axes, counts.items(), strict=True):
            _rank(panel, name, np.sort(wins.detach().cpu().numpy().astype(float))[::-1])
        axes[0].set_ylabel("wins / equal share")
        drawn.suptitle(title or "", fontsize=10)
        return write(drawn, path)


def _rank(panel, name: str, wins: np.ndarray) -> None:
    """The neurons of one layer by their wins, on a logarithmic axis."""
    neurons, alive = len(wins), int((wins > 0).sum())
    shares = wins / max(wins.mean(), 1e-12)
    edges = np.arange(neurons + 1)
    low, high = (0.5 * min(shares[alive - 1], 1), 2 * max(shares[0], 1)) if alive else (0.1, 10)
    panel.set_yscale("log", subs=[])
    panel.yaxis.get_major_locator().set_params(subs=(1.0, 2.0, 5.0) if high / low < 100 else (1.0,))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.set_ylim(low, high)
    panel.set_xlim(0, neurons)
    panel.stairs(shares[:alive], edges[: alive + 1], baseline=low, fill=True, color=COLOURS[0], alpha=0.75)
    panel.axhline(1, color="0.3", linewidth=0.8, linestyle="--")
    dead = neurons - alive
    if dead:
        panel.axvspan(alive, neurons, color=DEAD, alpha=0.35, linewidth=0)
    panel.set_title(f"{name or 'model'}: {dead} of {neurons} dead", color=DEAD if dead else "black")
    panel.set_xlabel("neurons by wins")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(False, axis="x")


def activations(
    statistics: Mapping[str, Mapping[str, float]], path: str | Path | BinaryIO, *, title: str | None = None
):
    """Writes how the activations of each layer are spread, and how sparse they are.

    Args:
        statistics: {layer: numbers "mean", "q05", "q25", "q50", "q75", "q95" (quantiles), "inactive" (share of
            activations at most 0), "silent" (share of neurons never above 0), "sparseness" (0 to 1)}, as
            `hebbkern.training.handlers.activity` gives them. path: see `hebbkern.plots`.

    Returns path. Raises ValueError where nothing is given.
    """
    if not statistics:
        refuse("statistics", "of one layer or more", "none")
    names, rows = list(statistics), list(statistics.values())
    places = np.arange(len(rows))
    with styled():
        drawn = figure(8.2, 1.7 + 0.55 * len(rows))
        spread, sparse = drawn.subplots(1, 2, sharey=True)
        boxes = [
            {"whislo": row["q05"], "q1": row["q25"], "med": row["q50"], "q3": row["q75"], "whishi": row["q95"]}
            | {"mean": row["mean"], "fliers": []}
            for row in rows
        ]
        looks = {"boxprops": {"facecolor": "#bcd7ea"}, "medianprops": {"color": COLOURS[0], "linewidth": 2}}
        mark = {"marker": "D", "markerfacecolor": COLOURS[1], "markeredgecolor": "none", "markersize": 5}
        spread.bxp(
            boxes,
            places,
            orientation="horizontal",
            patch_artist=True,
            showmeans=True,
            meanprops=mark,
            widths=0.5,
            **looks,
        )
        spread.axvline(0, color="0.3", linewidth=0.8)
        spread.set_yticks(places, [name or "model" for name in names])
        spread.set(xlabel="activation: 5, 25, 50, 75, 95 %, mean ◆")
        for index, (key, label) in enumerate(SPARSITY.items()):
            width = 0.8 / len(SPARSITY)
            offset = (index - (len(SPARSITY) - 1) / 2) * width
            sparse.barh(places + offset, [row[key] for row in rows], width, color=COLOURS[index], label=label)
        sparse.set(xlim=(0, 1), xlabel="share")
        spread.invert_yaxis()
        drawn.legend(loc="outside lower right", ncols=3)
        drawn.suptitle(title or "", fontsize=10)
        return write(drawn, path)
