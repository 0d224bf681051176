"""Evaluation of features: readouts and probes, nearest neighbours, clusters, and intervals over seeds."""

from typing import TYPE_CHECKING, Any

from hebbkern.evaluation.measures import Interval, cluster_accuracy, interval, knn
from hebbkern.evaluation.readout import Readout, linear_probes, linear_readout, randomised, rectified_power

if TYPE_CHECKING:
    from hebbkern.evaluation.evaluator import HebbianEvaluator, Score

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


def __getattr__(name: str) -> Any:
    """Imports HebbianEvaluator and Score on their first use, because only they need pytorch-ignite."""
    if name in ("HebbianEvaluator", "Score"):
        from hebbkern.evaluation import evaluator

        return getattr(evaluator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
