"""Pictures of a training: weights, convergence, winners, activations and curves (pip install 'hebbkern[demo]').

Every function takes its data and a path, and returns the path. The suffix of the path chooses the format; an open
binary file instead of a path gets a PNG. A PNG is smaller than 300 kB, and the same input gives the same bytes.
"""

from hebbkern.plots.charts import activations, convergence, learning_curves, weight_histograms, winners
from hebbkern.plots.grid import weight_grid

__all__ = ["activations", "convergence", "learning_curves", "weight_grid", "weight_histograms", "winners"]
