"""How good features are: rectified powers of responses, and linear readouts."""

from hebbkern.evaluation.features import rectified_power
from hebbkern.evaluation.readout import Readout, linear_readout

__all__ = ["Readout", "linear_readout", "rectified_power"]
