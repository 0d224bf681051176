// kwinners: the argument checks of every device.
#pragma once

#include "common/checks.h"

namespace hebbkern {

// Returns `dim` counted from the first dimension.
inline int64_t check_kwinners(const char* op, const Tensor& y, int64_t k, int64_t dim) {
  check_floating(op, "y", y);
  const int64_t rank = y.dim();
  if (rank == 0) fail(op, "y must have at least one dimension, got shape []");
  if (dim < -rank || dim >= rank) fail(op, "dim must be between ", -rank, " and ", rank - 1, ", got ", dim);
  if (dim < 0) dim += rank;
  if (k < 1 || k > y.size(dim))
    fail(op, "k must be between 1 and ", y.size(dim), " entries along dim ", dim, ", got ", k);
  return dim;
}

}  // namespace hebbkern
