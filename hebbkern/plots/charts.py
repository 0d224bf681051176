"""Curves over a training (convergence, learning curves) and histograms of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor

from hebbkern.plots.files import COLOURS, figure, panels, refuse, styled, write

BINS = 60


def convergence(
    fractions: Mapping[str, Sequence[tuple[float, float]]],
    path: str | Path | BinaryIO,
    *,
    tolerance: float | None = None,
    title: str | None = None,
):
    """Writes the share of each layer's neurons that have reached length 1, over epochs.

    Args:
        fractions: {layer: (epoch, share in [0, 1]) by time}. path: see `hebbkern.plots`.
        tolerance: how near to 1 a length had to be, for the label.

    Returns path. Raises ValueError where nothing is given.
    """
    within = "" if tolerance is None else f" ± {tolerance:g}"
    with styled():
        drawn, axes = _curves(fractions)
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set(xlabel="epoch", ylabel=f"neurons of length 1{within}", title=title)
        return write(drawn, path)


def learning_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    path: str | Path | BinaryIO,
    *,
    ylabel: str = "accuracy",
    xlabel: str = "epoch",
    best: str | None = "max",
    title: str | None = None,
):
    """Writes one line a curve, its best point marked and told in the legend.

    Args:
        curves: {name: (epoch, value) by time}; values that are not finite leave a gap. path: see `hebbkern.plots`.
        best: "max", "min", or None to mark nothing.

    Returns path. Raises ValueError where nothing is given, or best is none of these.
    """
    if best not in ("max", "min", None):
        refuse("best", '"max", "min" or None', repr(best))
    with styled():
        drawn, axes = _curves(curves, best)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        return write(drawn, path)


def _curves(curves: Mapping[str, Sequence[tuple[float, float]]], best: str | None = None):
    """A figure of one panel with its lines and legend."""
    if not curves or not all(map(len, curves.values())):
        refuse("curves", "one or more of a point or more", dict(curves))
    drawn = figure(6.4, 3.6)
    axes = drawn.add_subplot()
    for index, (name, points) in enumerate(curves.items()):
        x, y = np.asarray(points, dtype=float).T
        style = {"color": COLOURS[index % len(COLOURS)], "linestyle": ("-", "--", ":")[index // len(COLOURS) % 3]}
        label = name or "model"
        if best and np.isfinite(y).any():
            at = np.nanargmax(np.where(np.isfinite(y), y if best == "max" else -y, np.nan))
            axes.plot(x[at], y[at], "o", color=style["color"], markersize=6, markerfacecolor="white", zorder=3)
            label += f" ({best} {y[at]:.4g})"
        axes.plot(x, y, label=label, marker="." if len(x) < 40 else "", **style)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if axes.dataLim.width == 0:
        axes.set_xlim(axes.dataLim.x0 - 1, axes.dataLim.x0 + 1)
    drawn.legend(loc="outside upper left", ncols=min(3, len(curves)))
    return drawn, axes


def weight_histograms(
    weights: Mapping[str, Tensor],
    path: str | Path | BinaryIO,
    *,
    before: Mapping[str, Tensor] | None = None,
    title: str | None = None,
):
    """Writes a panel a layer: how its weights are distributed, and with an outline how they were before.

    Args:
        weights: {layer: tensor of any shape}. path: see `hebbkern.plots`.
        before: for some of the same layers.

    Returns path. Raises ValueError where nothing is given.
    """
    if not weights:
        refuse("weights", "of one layer or more", "none")
    with styled():
        drawn, axes = panels(len(weights))
        for panel, (name, weight) in zip(axes, weights.items(), strict=True):
            sets = [_numbers(weight)] + ([_numbers(before[name])] if before and name in before else [])
            low, high = min(x.min() for x in sets), max(x.max() for x in sets)
            edges = np.linspace(low, high, BINS + 1) if high > low else np.linspace(low - 0.5, low + 0.5, BINS + 1)
            panel.stairs(_density(sets[0], edges), edges, fill=True, color=COLOURS[0], alpha=0.75, label="now")
            for x in sets[1:]:
                panel.stairs(_density(x, edges), edges, color=COLOURS[1], linewidth=1.3, label="before")
            panel.set_title(f"{name or 'model'}: {sets[0].mean():.3g} ± {sets[0].std():.2g}")
            panel.set_yticks([])
            panel.grid(False)
            panel.spines["left"].set_visible(False)
            panel.set_xlabel("weight")
        if before:
            axes[0].legend()
        drawn.suptitle(title or "", fontsize=10)
        return write(drawn, path)


def _density(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram(x, edges, density=True)[0]


def _numbers(weight: Tensor) -> np.ndarray:
    return weight.detach().double().cpu().numpy().ravel()
