// accumulate: the argument checks of every device.
#pragma once

#include "common/checks.h"

namespace hebbkern {

inline PatchedLayer check_accumulate(const Tensor& x, const Tensor& targets, const Tensor& coefficients,
                                     const OptionalTensor& responses, int64_t neurons, const Ints& kernel,
                                     const std::string& patches, const Ints& stride, const Ints& padding,
                                     const Ints& dilation, int64_t groups, const OptionalTensor& frozen) {
  const char* op = "accumulate";
  check_x(op, x);
  if (x.size(1) == 0) fail(op, "x must have at least one input, got shape ", list(x.sizes()));
  if (neurons < 1) fail(op, "neurons must be at least 1, got ", neurons);
  if (x.dim() == 2 && !kernel.empty()) fail(op, "kernel must be empty for x [batch, inputs], got ", list(kernel));
  if (x.dim() == 4 && (kernel.size() != 2 || kernel[0] < 1 || kernel[1] < 1))
    fail(op, "kernel must be two numbers of at least 1 for images, got ", list(kernel));
  check_groups(op, x, neurons, groups);
  const Geometry g = check_geometry(op, x, neurons, kernel, stride, padding, dilation, groups, "kernel");
  const Patches kind = check_patches(op, patches);
  const int64_t count = g.groups * g.patches();
  if (!is_index(targets.scalar_type()) || targets.dim() != 2 || targets.size(0) != count)
    fail(op, "targets must be int32 or int64 of shape [patches = ", count, ", ranks], got ", describe(targets));
  check_device(op, "targets", targets, "x", x);
  const int64_t ranks = targets.size(1);
  const ScalarType result = result_dtype(x.scalar_type());
  if (coefficients.scalar_type() != result ||
      !(has_shape(coefficients, {ranks}) || has_shape(coefficients, {count, ranks})))
    fail(op, "coefficients must be ", name_of(result), " of shape [", ranks, "] or [", count, ", ", ranks, "], got ",
         describe(coefficients));
  check_device(op, "coefficients", coefficients, "x", x);
  if (responses && (responses->scalar_type() != result || !has_shape(*responses, {count, ranks})))
    fail(op, "responses must be ", name_of(result), " of shape [", count, ", ", ranks, "], got ", describe(*responses));
  if (responses) check_device(op, "responses", *responses, "x", x);
  check_mask(op, "frozen", frozen, neurons, x);
  return {g, kind};
}

}  // namespace hebbkern
