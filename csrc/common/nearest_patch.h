// nearest_patch: what host and device ask of its arguments.
#pragma once

#include <limits>

#include "common/checks.h"

namespace hebbkern {

inline std::pair<Geometry, Patches> check_nearest_patch(const char* op, const Tensor& x, const Tensor& weight,
                                                const std::string& patches, const Ints& stride, const Ints& padding,
                                                const Ints& dilation, const OptionalTensor& mask) {
  const Geometry g = check_layer(op, x, weight, stride, padding, dilation);
  const Patches kind = check_patches(op, patches);
  check_mask(op, "mask", mask, g.neurons, x);
  if (g.patches() > std::numeric_limits<int32_t>::max())
    fail(op, "x must have at most ", std::numeric_limits<int32_t>::max(), " patches, got ", g.patches());
  return {g, kind};
}

}  // namespace hebbkern
