// compete and nearest_patch: the argument checks of every device.
#pragma once

#include <limits>

#include "common/checks.h"

namespace hebbkern {

inline PatchedLayer check_compete(const char* op, const Tensor& x, const Tensor& weight, int64_t k, double p,
                                  bool cosine, const std::string& patches, const Ints& stride, const Ints& padding,
                                  const Ints& dilation, const OptionalTensor& eligible) {
  const Geometry g = check_layer(op, x, weight, stride, padding, dilation);
  check_contest(op, k, p, cosine, g.neurons);
  const Patches kind = check_patches(op, patches);
  check_mask(op, "eligible", eligible, g.neurons, x);
  return {g, kind};
}

inline PatchedLayer check_nearest_patch(const char* op, const Tensor& x, const Tensor& weight,
                                        const std::string& patches, const Ints& stride, const Ints& padding,
                                        const Ints& dilation, const OptionalTensor& eligible) {
  const Geometry g = check_layer(op, x, weight, stride, padding, dilation);
  const Patches kind = check_patches(op, patches);
  check_mask(op, "eligible", eligible, g.neurons, x);
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  if (g.patches() > most) fail(op, "x must have at most ", most, " patches, got ", g.patches());
  return {g, kind};
}

}  // namespace hebbkern
