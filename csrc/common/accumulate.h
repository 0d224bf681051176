// accumulate: what host and device ask of its arguments.
#pragma once

#include "common/checks.h"

namespace hebbkern {

inline void check_taught(const Tensor& x, const Tensor& taught, const Tensor& coefficients,
                         const OptionalTensor& responses, int64_t patches) {
  const char* op = "accumulate";
  const ScalarType result = result_dtype(x.scalar_type());
  if ((taught.scalar_type() != ScalarType::Int && taught.scalar_type() != ScalarType::Long) || taught.dim() != 2 ||
      taught.size(0) != patches)
    fail(op, "taught must be int32 or int64 of shape [patches = ", patches, ", ranks], got ", describe(taught));
  check_device(op, "taught", taught, "x", x);
  const int64_t ranks = taught.size(1);
  if (coefficients.scalar_type() != result ||
      !(has_shape(coefficients, {ranks}) || has_shape(coefficients, {patches, ranks})))
    fail(op, "coefficients must be ", name_of(result), " of shape [", ranks, "] or [", patches, ", ", ranks, "], got ",
         describe(coefficients));
  check_device(op, "coefficients", coefficients, "x", x);
  if (!responses) return;
  if (responses->scalar_type() != result || !has_shape(*responses, {patches, ranks}))
    fail(op, "responses must be ", name_of(result), " of shape [", patches, ", ", ranks, "], got ",
         describe(*responses));
  check_device(op, "responses", *responses, "x", x);
}

struct Asked {
  Geometry g;
  Patches patches;
};

inline Asked check_accumulate(const Tensor& x, const Tensor& taught, const Tensor& coefficients,
                              const OptionalTensor& responses, int64_t neurons, const Ints& kernel,
                              const std::string& patches, const Ints& stride, const Ints& padding, const Ints& dilation,
                              const OptionalTensor& frozen) {
  const char* op = "accumulate";
  check_x(op, x);
  if (x.size(1) == 0) fail(op, "x must have at least one input, got shape ", list(x.sizes()));
  if (neurons < 1) fail(op, "neurons must be at least 1, got ", neurons);
  if (x.dim() == 2 && !kernel.empty()) fail(op, "kernel must be empty for x [batch, inputs], got ", list(kernel));
  if (x.dim() == 4 && (kernel.size() != 2 || kernel[0] < 1 || kernel[1] < 1))
    fail(op, "kernel must be two numbers of at least 1 for images, got ", list(kernel));
  const Geometry g = check_geometry(op, x, neurons, kernel, stride, padding, dilation, "kernel");
  const Patches kind = check_patches(op, patches);
  check_taught(x, taught, coefficients, responses, g.patches());
  check_mask(op, "frozen", frozen, neurons, x);
  return {g, kind};
}

}  // namespace hebbkern
