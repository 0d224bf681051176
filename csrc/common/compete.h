// compete and nearest_patch: the argument checks of every device.
#pragma once

#include <limits>

#include "common/checks.h"

namespace hebbkern {

inline PatchedLayer check_compete(const char* op, const Tensor& x, const Tensor& weight, int64_t k, double p,
                                  bool cosine, const std::string& patches, const Ints& stride, const Ints& padding,
                                  const Ints& dilation, int64_t groups, const OptionalTensor& eligible) {
  const Geometry g = check_layer(op, x, weight, stride, padding, dilation, groups);
  check_contest(op, k, p, cosine, g);
  const Patches kind = check_patches(op, patches);
  check_mask(op, "eligible", eligible, weight.size(0), x);
  return {g, kind};
}

inline PatchedLayer check_nearest_patch(const char* op, const Tensor& x, const Tensor& weight,
                                        const std::string& patches, const Ints& stride, const Ints& padding,
                                        const Ints& dilation, int64_t groups, const OptionalTensor& eligible) {
  const Geometry g = check_layer(op, x, weight, stride, padding, dilation, groups);
  const Patches kind = check_patches(op, patches);
  check_mask(op, "eligible", eligible, weight.size(0), x);
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  const int64_t count = g.groups * g.patches();
  if (count > most) fail(op, "x must have at most ", most, " patches, got ", count);
  return {g, kind};
}

}  // namespace hebbkern
