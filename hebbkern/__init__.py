"""hebbkern: neural layers that learn by local (Hebbian) rules, at the speed of plain inference."""

from hebbkern import ops, reference
from hebbkern.backends import backend

__all__ = ["backend", "ops", "reference"]
