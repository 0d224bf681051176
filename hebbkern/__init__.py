"""hebbkern: neural layers that learn by local (Hebbian) rules, at the speed of plain inference."""

from importlib import import_module, metadata
from typing import Any

from hebbkern import nn, ops, reference, rules
from hebbkern.backends import backend, screening, synchronize
from hebbkern.nn import learning
from hebbkern.rules import WTA, Hebb, KrotovHopfield, Oja, Rule, Sanger, SoftWTA, Supervised
from hebbkern.update import Update

try:
    __version__ = metadata.version("hebbkern")
except metadata.PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0+unknown"

# Imported when first named: most need more packages.
LATER = ("continual", "datasets", "evaluation", "plots", "training")


def __getattr__(name: str) -> Any:
    """Import a subpackage on first use, or find a rule of hebbkern/rules.py that is not listed here."""
    if name in LATER:
        return import_module(f"hebbkern.{name}")
    for rule in rules.RULES.values():
        if rule.__name__ == name:
            return rule
    raise AttributeError(f"module 'hebbkern' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *LATER})


__all__ = [
    "WTA",
    "Hebb",
    "KrotovHopfield",
    "Oja",
    "Rule",
    "Sanger",
    "SoftWTA",
    "Supervised",
    "Update",
    "__version__",
    "backend",
    "learning",
    "nn",
    "ops",
    "reference",
    "rules",
    "screening",
    "synchronize",
]
