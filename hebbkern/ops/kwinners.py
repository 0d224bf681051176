"""kwinners: the sparse activation that keeps the k highest entries."""

from hebbkern.ops import checks
from hebbkern.ops.library import define, serving


def kwinners(y, k, dim=-1):
    """y with all but the k highest entries along ``dim`` set to zero; equal entries go to the lower index.

    Args:
        y: any shape with at least one dimension; float32, float64, bfloat16 or float16, any strides.
        k: 1 to y.shape[dim].
        dim: the dimension along which entries compete.

    Returns a contiguous tensor of y's shape and dtype (HebbCL: k-winners of Wx is the representation).
    Raises ValueError or RuntimeError on arguments that do not fit and on a NaN or an infinity in y.
    Deterministic: the same bits on every run and for any number of threads.
    """
    return serving("kwinners", y)(y, k, dim)


def check(y, k, dim):
    """Shapes and settings."""
    checks.floating("kwinners", "y", y)
    if y.dim() == 0:
        checks.fail("kwinners", "y", "have at least one dimension", checks.shape_name(y))
    if not -y.dim() <= dim < y.dim():
        checks.fail("kwinners", "dim", f"be between {-y.dim()} and {y.dim() - 1}", dim)
    if not 1 <= k <= y.shape[dim]:
        checks.fail("kwinners", "k", f"be between 1 and {y.shape[dim]} entries along dim {dim % y.dim()}", k)


def fake(y, k, dim):
    check(y, k, dim)
    return y.new_empty(y.shape)


define("kwinners(Tensor y, int k, int dim) -> Tensor", fake)
