"""Continual learning: HebbCL, streams of tasks, synaptic consolidation, and measures of forgetting."""

from hebbkern.continual import consolidation, metrics, streams, tasks
from hebbkern.continual.avalanche import from_avalanche
from hebbkern.continual.consolidation import (
    EWC,
    L2,
    MAS,
    SI,
    Consolidation,
    LwF,
    OnlineEWC,
    SynapticIntelligence,
)
from hebbkern.continual.hebbcl import HebbCL
from hebbkern.continual.tasks import Task

__all__ = [
    "EWC",
    "L2",
    "MAS",
    "SI",
    "Consolidation",
    "HebbCL",
    "LwF",
    "OnlineEWC",
    "SynapticIntelligence",
    "Task",
    "consolidation",
    "from_avalanche",
    "metrics",
    "streams",
    "tasks",
]
