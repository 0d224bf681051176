"""Neural network layers that learn by local rules, and the functions that let them learn."""

from hebbkern.nn.conversion import convert, revert
from hebbkern.nn.dhp import DHPLinear
from hebbkern.nn.layers import HebbianConv2d, HebbianLinear, KWinners
from hebbkern.nn.learning import learning
from hebbkern.nn.state import no_learning

__all__ = ["DHPLinear", "HebbianConv2d", "HebbianLinear", "KWinners", "convert", "learning", "no_learning", "revert"]
