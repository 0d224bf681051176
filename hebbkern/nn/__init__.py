"""Neural network layers that learn by local rules, and the functions that let them learn."""

from hebbkern.nn.conversion import convert, revert
from hebbkern.nn.convolutions import HebbianConv1d, HebbianConv2d, HebbianConv3d
from hebbkern.nn.dhp import DHPLinear
from hebbkern.nn.initialisation import init_from_samples_
from hebbkern.nn.kwinners import KWinners
from hebbkern.nn.layers import HebbianLinear
from hebbkern.nn.learning import learning
from hebbkern.nn.state import no_learning

__all__ = [
    "DHPLinear",
    "HebbianConv1d",
    "HebbianConv2d",
    "HebbianConv3d",
    "HebbianLinear",
    "KWinners",
    "convert",
    "init_from_samples_",
    "learning",
    "no_learning",
    "revert",
]
