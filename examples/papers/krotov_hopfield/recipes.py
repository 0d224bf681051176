"""Recipes of filters and schedules of the readout: those of the table, and those that the search tries."""

from __future__ import annotations

import hebbkern as hk
from examples.papers.common.readouts import Schedule
from examples.papers.krotov_hopfield.filters import Recipe

PUBLISHED = {"p": 4.0, "k": 4, "delta": 0.4}

# As published but for the number of steps: 12,500 of two images, after which the rank of raw filters stays the same.
RAW = Recipe("Krotov-Hopfield, raw", hk.KrotovHopfield(**PUBLISHED), window=0, images=5000, epochs=5)
CENTRED = Recipe(
    "Krotov-Hopfield, centred", hk.KrotovHopfield(**PUBLISHED, patches="centred"), window=0, images=5000, epochs=5
)
RANDOM = Recipe("random")

# Found by --search on validation data (results/krotov_cnn_search.json).
BEST = "KH centred p3 k8 delta0.4 lr0.04"
BEST_RANDOM = "random whitened eps1 mean"
BEST_SCHEDULE = "rate 1e-3, smoothing 0.1"
BACKPROP = Schedule(rate=1e-3, epochs=8, smoothing=0.1)

SCHEDULES = {
    f"rate {rate}, smoothing {smoothing:g}": Schedule(rate=float(rate), smoothing=smoothing)
    for rate in ("1e-3", "2e-3")
    for smoothing in (0.0, 0.1, 0.3)
}


def random_recipes() -> list[Recipe]:
    """Returns random filters with every advantage of the learnt ones; the first one also chooses the schedule."""
    centred = [Recipe("random centred", centre=True), Recipe("random whitened eps10", whiten=10.0)]
    return [RANDOM, *centred, Recipe("random whitened eps1 mean", whiten=1.0, mean=True)]


def learnt_recipes() -> list[Recipe]:
    """Returns the candidates among learnt filters; the first one also chooses the schedule."""
    standardised, whitened = krotov(p=3.0, k=4, patches="standardised"), krotov(p=3.0, k=4, whiten=1.0, mean=True)
    return [krotov(p=3.0, k=4), standardised, krotov(p=3.0, k=8), whitened, winner_takes_all(1.0, 1.0)]


def krotov(
    *, p: float, k: int, delta: float = 0.4, patches: str = "centred", whiten: float | None = None, mean: bool = False
) -> Recipe:
    """Returns a Krotov-Hopfield recipe, named by its settings."""
    lr = 0.04
    name = f"KH {patches} p{p:g} k{k} delta{delta:g} lr{lr:g}"
    name += "" if whiten is None else f" whitened eps{whiten:g}" + " mean" * mean
    rule = hk.KrotovHopfield(p=p, k=k, delta=delta, patches="raw" if whiten else patches)
    return Recipe(name, rule, whiten=whiten, mean=mean, lr=lr, epochs=3)


def winner_takes_all(whiten: float, contrast: float) -> Recipe:
    """Returns a winner-take-all recipe on whitened patches, named by its settings."""
    name = f"WTA whitened eps{whiten:g} contrast{contrast:g}"
    return Recipe(name, hk.WTA(), lr=0.3, start=0.1, whiten=whiten, contrast=contrast, epochs=3)


def rows(best: str, random: str) -> dict[str, Recipe | None]:
    """Returns the rows of the table, given the names of the best learnt and random recipes; None is backprop."""
    return {
        f"best learnt: {best}": by_name(best),
        "random": RANDOM,
        f"best random: {random}": by_name(random),
        CENTRED.name: CENTRED,
        RAW.name: RAW,
        "end-to-end backprop": None,
    }


def by_name(name: str) -> Recipe:
    """Returns the recipe of this name.

    Raises:
        ValueError: no recipe has this name.
    """
    known = {recipe.name: recipe for recipe in (RAW, CENTRED, *random_recipes(), *learnt_recipes())}
    if name not in known:
        raise ValueError(f"krotov_cnn: recipe must be one of {', '.join(known)}, got {name}")
    return known[name]
