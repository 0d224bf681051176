"""kwinners: the sparse activation that keeps the k highest entries."""

from __future__ import annotations

from torch import Tensor

from hebbkern import checks
from hebbkern.ops.library import call, define

OP = "kwinners"


def kwinners(y: Tensor, k: int, dim: int = -1) -> Tensor:
    """Set all but the k highest entries of y along ``dim`` to zero; of equal entries those of lower index stay.

    The representation of HebbCL is k-winners of W x. Deterministic: two runs give the same bits, the compiled CPU
    kernels on any number of threads.

    Args:
        y: any shape with at least one dimension; float32, float64, bfloat16 or float16, any strides.
        k: 1 to y.shape[dim].
        dim: the dimension along which entries compete.

    Returns:
        A contiguous tensor of y's shape and dtype.

    Raises:
        ValueError: arguments do not fit, or y holds a NaN or an infinity (on a GPU no operator looks at values).
    """
    return call(OP, y, k, dim)


def check(y: Tensor, k: int, dim: int) -> None:
    """Shapes and settings."""
    checks.floating(OP, "y", y)
    if y.dim() == 0:
        checks.fail(OP, "y", "have at least one dimension", checks.shape_name(y))
    if not -y.dim() <= dim < y.dim():
        checks.fail(OP, "dim", f"be between {-y.dim()} and {y.dim() - 1}", dim)
    if not 1 <= k <= y.shape[dim]:
        checks.fail(OP, "k", f"be between 1 and {y.shape[dim]} entries along dim {dim % y.dim()}", k)


def fake(y: Tensor, k: int, dim: int) -> Tensor:
    return y.new_empty(y.shape)


define("kwinners(Tensor y, int k, int dim) -> Tensor", check, fake)
