// Grouped convolutions: small groups by planes (planes.h), others as layers side by side, one after the other.
#pragma once

#include "common/dense_update.h"
#include "cpu/ops/accumulate.h"
#include "cpu/ops/compete.h"

namespace hebbkern {

// One group as a layer of its own: views of x, of the neurons' rows and of a mask.
inline Geometry geometry_of_group(Geometry g) {
  g.groups = 1;
  return g;
}
Tensor channels_of_group(const Tensor& x, const Geometry& g, int64_t group);
Tensor rows_of_group(const Tensor& rows, const Geometry& g, int64_t group);
OptionalTensor mask_of_group(const OptionalTensor& mask, const Geometry& g, int64_t group);

// The winners of all groups, named among all neurons, and their responses, [groups * patches][k] each.
template <class T>
void find_grouped_winners(const char* op, const Tensor& x, const Geometry& g, const Tensor& weight,
                          const CompeteSettings& contest, T* best, int32_t* winners);

// Where sums [groups * neurons][inputs] go, in the order of a contiguous weight, decays and counts.
template <class T>
struct GroupedSums {
  T *sum, *decay, *count;
};

// The sums of accumulate; targets [groups * patches][ranks], neurons of the patch's group or -1.
template <class T>
void add_grouped(const char* op, const Tensor& x, const Geometry& g, Patches patches, const Assignments<T>& assignments,
                 const GroupedSums<T>& sums);

// What winner_step_ is to learn from patches: ranks by a contest, or one by labels.
template <class T>
struct GroupedStep {
  const CompeteSettings& contest;
  const int32_t* labels;  // [batch], or null
  const T* coefficients;  // one a rank
  bool by_response, decay_by_response;
  Mask frozen;
};
template <class T>
void learn_grouped(const char* op, const Tensor& x, const Geometry& g, const Tensor& weight, const GroupedStep<T>& step,
                   const GroupedSums<T>& sums);

// The sums of a dense rule, as a contiguous tensor like weight.
template <class T>
void dense_by_planes(const char* op, const Tensor& x, const Geometry& g, const Tensor& weight, const Dense& rule,
                     const Mask& frozen, T* sum);

}  // namespace hebbkern
