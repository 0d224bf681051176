"""Learning from streams: HebbCL, streams of tasks, synaptic consolidation, and what forgetting is measured by."""

from hebbkern.continual.hebbcl import HebbCL

__all__ = ["HebbCL"]
