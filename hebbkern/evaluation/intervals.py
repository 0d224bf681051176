"""interval: what several seeds say about a number (pip install 'hebbkern[eval]')."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """Mean and sample standard deviation (n − 1) of n values, and the ends of Student's interval around the mean."""

    mean: float
    std: float
    low: float
    high: float
    n: int


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """mean ± t · std / √n, with Student's t of n − 1 degrees of freedom: the values are taken as normal.

    Args:
        values: one a seed, at least two, finite. confidence: above 0, below 1.

    Raises:
        ValueError: of these. ImportError: scipy, which comes with scikit-learn, is missing.
    """
    values = [float(value) for value in values]
    if len(values) < 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"hebbkern.evaluation: values must be at least two finite numbers, got {values}")
    if not 0 < confidence < 1:
        raise ValueError(f"hebbkern.evaluation: confidence must be between 0 and 1, got {confidence}")
    try:
        from scipy.stats import t
    except ImportError as error:
        raise ImportError("hebbkern.evaluation: scipy is missing: pip install 'hebbkern[eval]'") from error
    mean, std = statistics.fmean(values), statistics.stdev(values)
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * std / math.sqrt(len(values))
    return Interval(mean, std, mean - half, mean + half, len(values))
