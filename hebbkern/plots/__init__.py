"""Pictures of what is learnt: weights, convergence, winners, activations and curves (pip install 'hebbkern[demo]').

Every function takes what it draws and a path, and returns the path. The path's ending chooses the format; an open
binary file in its place gets a PNG. A PNG stays under 300 kB, and the same input gives the same bytes.
"""

from hebbkern.plots.charts import convergence, learning_curves, weight_histograms
from hebbkern.plots.grid import weight_grid
from hebbkern.plots.layers import activations, winners

__all__ = ["activations", "convergence", "learning_curves", "weight_grid", "weight_histograms", "winners"]
