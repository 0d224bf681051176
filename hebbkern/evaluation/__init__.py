"""How good features are: linear readouts."""

from hebbkern.evaluation.readout import Readout, linear_readout

__all__ = ["Readout", "linear_readout"]
