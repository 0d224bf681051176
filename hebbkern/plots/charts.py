"""Charts of a training: convergence, learning curves, histograms of weights, winners and activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hebbkern.plots.files import COLOURS, DEAD, TargetT, figure, panels, refuse, styled, write

BINS = 60
SPARSITY = {"inactive": "activations at most 0", "sparseness": "sparseness", "silent": "neurons never above 0"}


def convergence(
    fractions: Mapping[str, Sequence[tuple[float, float]]],
    path: TargetT,
    *,
    tolerance: float | None = None,
    title: str | None = None,
) -> TargetT:
    """Draws the share of each layer's neurons that have reached length 1, over epochs.

    Args:
        fractions: {layer: (epoch, share in [0, 1]) by time}.
        path: see `hebbkern.plots`.
        tolerance: the distance from 1 up to which a length counts, for the label.
        title: above the chart.

    Returns:
        path.

    Raises:
        ValueError: fractions is empty.
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
    path: TargetT,
    *,
    ylabel: str = "accuracy",
    xlabel: str = "epoch",
    best: str | None = "max",
    title: str | None = None,
) -> TargetT:
    """Draws one line a curve, with its best point marked and given in the legend.

    Args:
        curves: {name: (epoch, value) by time}; values that are not finite leave a gap.
        path: see `hebbkern.plots`.
        ylabel, xlabel: of the axes.
        best: "max", "min", or None to mark nothing.
        title: above the chart.

    Returns:
        path.

    Raises:
        ValueError: curves is empty, or best is unknown.
    """
    if best not in ("max", "min", None):
        refuse("best", '"max", "min" or None', repr(best))
    with styled():
        drawn, axes = _curves(curves, best)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        return write(drawn, path)


def _curves(curves: Mapping[str, Sequence[tuple[float, float]]], best: str | None = None) -> tuple[Any, Any]:
    """A figure of one panel with lines and legend, and its axes."""
    if not curves or not all(map(len, curves.values())):
        refuse("curves", "one or more of a point or more", dict(curves))
    drawn = figure(6.4, 3.6)
    axes = drawn.add_subplot()
    for index, (name, points) in enumerate(curves.items()):
        x, y = np.asarray(points, dtype=float).T
        style: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": ("-", "--", ":")[index // len(COLOURS) % 3],
        }
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
    path: TargetT,
    *,
    before: Mapping[str, Tensor] | None = None,
    title: str | None = None,
) -> TargetT:
    """Draws the distribution of each layer's weights, one panel a layer, and that of earlier weights as an outline.

    Args:
        weights: {layer: tensor of any shape}.
        path: see `hebbkern.plots`.
        before: earlier weights of some of these layers.
        title: above the panels.

    Returns:
        path.

    Raises:
        ValueError: weights is empty.
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
        keys = max((panel.get_legend_handles_labels() for panel in axes), key=lambda key: len(key[1]))
        if len(keys[1]) > 1:
            drawn.legend(*keys, loc="outside lower right", ncols=2)
        drawn.suptitle(title or "", fontsize=10)
        return write(drawn, path)


def _density(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram(x, edges, density=True)[0]


def _numbers(weight: Tensor) -> np.ndarray:
    return weight.detach().double().cpu().numpy().ravel()


def winners(counts: Mapping[str, Tensor], path: TargetT, *, title: str | None = None) -> TargetT:
    """Draws the wins of each layer's neurons, sorted, in multiples of an equal share; neurons without wins are red.

    Args:
        counts: {layer: [K] integers, the number of patches that each neuron won}.
        path: see `hebbkern.plots`.
        title: above the panels.

    Returns:
        path.

    Raises:
        ValueError: counts is empty.
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


def _rank(panel: Any, name: str, wins: np.ndarray) -> None:
    """The neurons of one layer by their wins, on a logarithmic axis."""
    neurons, alive = len(wins), int((wins > 0).sum())
    shares = wins / max(wins.mean(), 1e-12)
    edges = np.arange(neurons + 1)
    low, high = (0.5 * min(shares[alive - 1], 1), 2 * max(shares[0], 1)) if alive else (0.1, 10)
    panel.set_yscale("log", subs=())
    panel.set_ylim(low, high)
    panel.yaxis.get_major_locator().set_params(subs=(1, 2, 5) if high / low < 500 else (1,))
    panel.yaxis.set_major_formatter("{x:g}")
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


def activations(statistics: Mapping[str, Mapping[str, float]], path: TargetT, *, title: str | None = None) -> TargetT:
    """Draws the distribution and the sparseness of each layer's activations.

    Args:
        statistics: {layer: numbers "mean", "q05", "q25", "q50", "q75", "q95" (quantiles), "inactive" (share of
            activations at most 0), "silent" (share of neurons never above 0), "sparseness" (0 to 1)}, as
            `hebbkern.evaluation.measures.activity` returns them.
        path: see `hebbkern.plots`.
        title: above the panels.

    Returns:
        path.

    Raises:
        ValueError: statistics is empty.
    """
    if not statistics:
        refuse("statistics", "of one layer or more", "none")
    rows = list(statistics.values())
    with styled():
        drawn = figure(8.2, 1.7 + 0.55 * len(rows))
        spread, sparse = drawn.subplots(1, 2, sharey=True)
        _spread(spread, rows)
        spread.set_yticks(range(len(rows)), [name or "model" for name in statistics])
        _sparsity(sparse, rows)
        spread.invert_yaxis()
        drawn.legend(loc="outside upper right", ncols=len(SPARSITY))
        drawn.suptitle(title or "", fontsize=10, x=0.01, horizontalalignment="left")
        return write(drawn, path)


def _spread(panel: Any, rows: list[Mapping[str, float]]) -> None:
    """A box a layer."""
    ends = {"whislo": "q05", "q1": "q25", "med": "q50", "q3": "q75", "whishi": "q95", "mean": "mean"}
    boxes = [{end: row[key] for end, key in ends.items()} | {"fliers": []} for row in rows]
    mark = {"marker": "D", "markerfacecolor": COLOURS[1], "markeredgecolor": "none", "markersize": 5}
    looks = {"boxprops": {"facecolor": "#bcd7ea"}, "medianprops": {"color": COLOURS[0], "linewidth": 2}}
    looks |= {"patch_artist": True, "showmeans": True, "meanprops": mark, "widths": 0.5}
    panel.bxp(boxes, range(len(rows)), orientation="horizontal", **looks)
    panel.axvline(0, color="0.3", linewidth=0.8)
    panel.set(xlabel="activation: 5, 25, 50, 75, 95 %, mean ◆")


def _sparsity(panel: Any, rows: list[Mapping[str, float]]) -> None:
    """A bar a layer for each measure."""
    places, width = np.arange(len(rows)), 0.8 / len(SPARSITY)
    for index, (key, label) in enumerate(SPARSITY.items()):
        offset = (index - (len(SPARSITY) - 1) / 2) * width
        panel.barh(places + offset, [row[key] for row in rows], width, color=COLOURS[index], label=label)
    panel.set(xlim=(0, 1), xlabel="share")
