"""Layers that learn locally: thin modules over hebbkern.rules, and what makes them learn."""

from hebbkern.nn.conversion import convert
from hebbkern.nn.dhp import DHPLinear
from hebbkern.nn.layers import HebbianConv2d, HebbianLinear, KWinners
from hebbkern.nn.learning import learning

__all__ = ["DHPLinear", "HebbianConv2d", "HebbianLinear", "KWinners", "convert", "learning"]
