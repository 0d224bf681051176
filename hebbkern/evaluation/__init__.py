"""How good features are: readouts and probes, neighbours, clusters, and intervals over seeds."""

from hebbkern.evaluation.clusters import cluster_accuracy
from hebbkern.evaluation.features import rectified_power
from hebbkern.evaluation.intervals import Interval, interval
from hebbkern.evaluation.neighbours import knn
from hebbkern.evaluation.probes import linear_probes, randomised
from hebbkern.evaluation.readout import Readout, linear_readout

__all__ = [
    "HebbianEvaluator",
    "Interval",
    "Readout",
    "Score",
    "cluster_accuracy",
    "interval",
    "knn",
    "linear_probes",
    "linear_readout",
    "randomised",
    "rectified_power",
]


def __getattr__(name: str):
    """HebbianEvaluator and Score on their first use: they need pytorch-ignite, nothing else here does."""
    if name in ("HebbianEvaluator", "Score"):
        from hebbkern.evaluation import evaluator

        return getattr(evaluator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
