// compete: what host and device ask of its arguments.
#pragma once

#include "common/checks.h"

namespace hebbkern {

struct Asked {
  Geometry g;
  Patches kind;
};

inline Asked check_compete(const char* op, const Tensor& x, const Tensor& weight, int64_t k, double p, bool cosine,
                           const std::string& patches, const Ints& stride, const Ints& padding, const Ints& dilation,
                           const OptionalTensor& mask) {
  const Geometry g = check_layer(op, x, weight, stride, padding, dilation);
  check_contest(op, k, p, cosine, g.neurons);
  const Patches kind = check_patches(op, patches);
  check_mask(op, "mask", mask, g.neurons, x);
  return {g, kind};
}

}  // namespace hebbkern
