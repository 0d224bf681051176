"""hebbkern: neural layers that learn by local (Hebbian) rules, at the speed of plain inference."""

from hebbkern import nn, ops, reference
from hebbkern.backends import backend
from hebbkern.nn import learning
from hebbkern.rules import WTA, Hebb, KrotovHopfield, Oja, Rule, Sanger, SoftWTA, Teacher
from hebbkern.update import Update

__all__ = [
    "WTA",
    "Hebb",
    "KrotovHopfield",
    "Oja",
    "Rule",
    "Sanger",
    "SoftWTA",
    "Teacher",
    "Update",
    "backend",
    "learning",
    "nn",
    "ops",
    "reference",
]
