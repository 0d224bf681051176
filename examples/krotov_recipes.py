"""What krotov_cnn.py tries and shows: the recipes for filters, and the schedules of the readout."""

from __future__ import annotations

import hebbkern as hk
from krotov_filters import Recipe
from krotov_network import Schedule

PUBLISHED = {"p": 4.0, "k": 4, "delta": 0.4}

# As published, but for the number of steps: 12,500 of two images, which is where the rank of raw filters has settled.
RAW = Recipe("Krotov-Hopfield, raw", hk.KrotovHopfield(**PUBLISHED), window=0, images=5000, epochs=5)
CENTRED = Recipe(
    "Krotov-Hopfield, centred", hk.KrotovHopfield(**PUBLISHED, patches="centred"), window=0, images=5000, epochs=5
)
RANDOM = Recipe("random")

# Found by --search on validation data (results/krotov_cnn_search.json).
BEST = "KH centred p3 k4 delta0.4 lr0.04"
BEST_RANDOM = "random centred"
BEST_SCHEDULE = "rate 1e-3, wait 2, factor 0.3"

SCHEDULES = {
    "rate 1e-3, wait 2, factor 0.3": Schedule(wait=2, factor=0.3, patience=5),
    "rate 1e-3, wait 1, factor 0.2": Schedule(),
    "rate 1e-3, wait 2, factor 0.3, decay 1e-4": Schedule(wait=2, factor=0.3, patience=5, decay=1e-4),
    "rate 3e-4, wait 2, factor 0.3": Schedule(rate=3e-4, wait=2, factor=0.3, patience=5),
}


def random_recipes() -> list[Recipe]:
    """Random filters with every advantage that learnt ones get: centring, whitening and colouring the start."""
    whitened = [Recipe(f"random whitened eps{epsilon:g}", whiten=epsilon) for epsilon in (0.1, 1.0, 10.0)]
    return [RANDOM, Recipe("random centred", centre=True), *whitened]


def learnt_recipes() -> list[Recipe]:
    """The candidates, the more promising first."""
    recipes = [krotov(p=p, k=k) for p in (3.0, 4.0) for k in (2, 4)]
    recipes += [
        winner_takes_all(epsilon, contrast) for epsilon, contrast in ((0.1, 0.1), (0.1, 1.0), (1.0, 0.1), (1.0, 1.0))
    ]
    recipes += [krotov(p=2.0, k=4), krotov(p=3.0, k=8), krotov(p=3.0, k=4, delta=0.3), krotov(p=3.0, k=4, lr=0.02)]
    recipes += [krotov(p=3.0, k=4, epochs=10), krotov(p=3.0, k=4, window=0), krotov(p=2.5, k=4)]
    recipes += [krotov(p=p, k=4, whiten=epsilon) for p, epsilon in ((3.0, 1.0), (3.0, 10.0), (2.0, 1.0))]
    recipes += [krotov(p=p, k=4, patches="standardised") for p in (3.0, 4.0)]
    recipes += [Recipe("WTA standardised", hk.WTA(patches="standardised"), lr=0.3, start=0.1, epochs=3)]
    rule = hk.SoftWTA(temperature=0.1, patches="standardised")
    recipes += [Recipe("SoftWTA standardised", rule, lr=0.1, start=0.2, epochs=3)]
    return recipes


def krotov(*, p, k, delta=0.4, patches="centred", whiten=None, lr=0.04, epochs=3, window=8) -> Recipe:
    name = f"KH {patches} p{p:g} k{k} delta{delta:g} lr{lr:g}"
    name += "" if whiten is None else f" whitened eps{whiten:g}"
    name += ("" if epochs == 3 else f" epochs{epochs}") + ("" if window else " whole images")
    rule = hk.KrotovHopfield(p=p, k=k, delta=delta, patches="raw" if whiten else patches)
    images = 60_000 if window else 6000
    return Recipe(name, rule, whiten=whiten, lr=lr, epochs=epochs, window=window, images=images)


def winner_takes_all(whiten: float, contrast: float) -> Recipe:
    name = f"WTA whitened eps{whiten:g} contrast{contrast:g}"
    return Recipe(name, hk.WTA(), lr=0.3, start=0.1, whiten=whiten, contrast=contrast, epochs=3)


def rows(best: str, random: str) -> dict[str, Recipe | None]:
    """The rows of the table, by the names of the best learnt and the best random recipe; None is backprop."""
    return {
        RAW.name: RAW,
        CENTRED.name: CENTRED,
        f"best learnt: {best}": by_name(best),
        "random": RANDOM,
        f"best random: {random}": by_name(random),
        "end-to-end backprop": None,
    }


def by_name(name: str) -> Recipe:
    """Raises ValueError for a name that is none of theirs."""
    known = {recipe.name: recipe for recipe in (RAW, CENTRED, *random_recipes(), *learnt_recipes())}
    if name not in known:
        raise ValueError(f"krotov_cnn: recipe must be one of {', '.join(known)}, got {name}")
    return known[name]
