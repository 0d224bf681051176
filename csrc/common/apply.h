// apply_: the argument checks of every device.
#pragma once

#include <algorithm>

#include "common/checks.h"

namespace hebbkern {

enum class Normalise { none, row_max, row_l2, global_max };

[[noreturn]] inline void fail_step(const char* op) {
  fail(op, "weight must stay finite, got a step that overflows it");
}

inline Normalise check_normalise(const char* op, const std::string& normalise) {
  if (normalise == "none") return Normalise::none;
  if (normalise == "row_max") return Normalise::row_max;
  if (normalise == "row_l2") return Normalise::row_l2;
  if (normalise == "global_max") return Normalise::global_max;
  fail(op, "normalise must be \"none\", \"row_max\", \"row_l2\" or \"global_max\", got \"", normalise, "\"");
}

// Raises if two entries of the weight may share memory: each dimension's stride must exceed the distance that the
// dimensions with smaller strides span.
inline void check_apart(const char* op, const Tensor& weight) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < weight.dim(); ++d)
    if (weight.size(d) > 1) dims.push_back({weight.stride(d), weight.size(d)});
  std::sort(dims.begin(), dims.end());
  int64_t reach = 0;
  for (const auto& [stride, size] : dims) {
    if (stride <= reach)
      fail(op, "weight must hold each entry once, got strides ", list(weight.strides()), " for shape ",
           list(weight.sizes()));
    reach += stride * (size - 1);
  }
}

// How many entries a tensor's memory spans, from its first to its last.
inline int64_t span(const Tensor& t) {
  int64_t entries = 1;
  for (int64_t d = 0; d < t.dim(); ++d) entries += t.stride(d) * (t.size(d) - 1);
  return entries;
}

// Raises if the argument shares memory with the weight, unless it is the same view, which a row's step reads before it
// writes. As torch does, only for tensors without gaps: views that interleave do not share entries.
inline void check_overlap(const char* op, const char* argument, const Tensor& t, const Tensor& weight) {
  const char *first = static_cast<const char*>(t.const_data_ptr()),
             *other = static_cast<const char*>(weight.const_data_ptr());
  if (span(t) != t.numel() || span(weight) != weight.numel()) return;
  if (first >= other + weight.numel() * weight.element_size() || other >= first + t.numel() * t.element_size()) return;
  bool same = first == other && t.dim() == weight.dim() && t.scalar_type() == weight.scalar_type();
  for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == weight.size(d) && t.stride(d) == weight.stride(d);
  if (!same) fail(op, argument, " must not share memory with weight, got one that overlaps it");
}

// One number a row of the weight; with `single` also one number for all rows.
inline void check_column(const char* op, const char* argument, const OptionalTensor& column, const Tensor& weight,
                         bool single) {
  if (!column) return;
  const ScalarType result = result_dtype(weight.scalar_type());
  const int64_t neurons = weight.size(0);
  const bool fits = has_shape(*column, {neurons}) || (single && has_shape(*column, {1}));
  if (column->scalar_type() != result || !fits)
    fail(op, argument, " must be ", name_of(result), " of shape [", neurons, single ? "] or [1], got " : "], got ",
         describe(*column));
  check_device(op, argument, *column, "weight", weight);
  check_overlap(op, argument, *column, weight);
}

inline Normalise check_apply(const Tensor& weight, const Tensor& sum, const OptionalTensor& decay,
                             const OptionalTensor& denominator, double lr, const std::string& normalise,
                             double rate_power, const OptionalTensor& frozen) {
  const char* op = "apply_";
  if (weight.dim() != 2 && weight.dim() != 4)
    fail(op, "weight must be [neurons, inputs] or [neurons, channels, height, width], got shape ",
         list(weight.sizes()));
  check_floating(op, "weight", weight);
  if (weight.numel() == 0)
    fail(op, "weight must have at least one neuron and one input, got shape ", list(weight.sizes()));
  check_apart(op, weight);
  const ScalarType result = result_dtype(weight.scalar_type());
  const Ints shape(weight.sizes().begin(), weight.sizes().end());
  if (sum.scalar_type() != result || !has_shape(sum, shape))
    fail(op, "sum must be ", name_of(result), " of shape ", list(shape), ", got ", describe(sum));
  check_device(op, "sum", sum, "weight", weight);
  check_overlap(op, "sum", sum, weight);
  check_column(op, "decay", decay, weight, false);
  check_column(op, "denominator", denominator, weight, true);
  check_rate(op, lr);
  if (!std::isfinite(rate_power) || rate_power < 0)
    fail(op, "rate_power must be a finite number of at least 0, got ", rate_power);
  check_mask(op, "frozen", frozen, weight.size(0), weight);
  return check_normalise(op, normalise);
}

}  // namespace hebbkern
