// The competition, for operators that use its winners.
#pragma once

#include "cuda/ops/moments.cuh"

namespace hebbkern {

struct CompeteSettings {
  int k;
  double p;
  bool cosine;
  Patches patches;
  Mask eligible{std::nullopt};  // given: the neurons that may win
};

// What accumulate groups by, written by the last kernel of a contest: the neuron that rank r of a patch teaches, K for
// none (bit r of `silent` is set, the neuron is frozen, or by_response and the response is not positive), K + 1 for a
// response that is not finite.
struct Keys {
  int32_t* keys = nullptr;     // [P, k], null: not wanted
  int32_t* numbers = nullptr;  // [P, k], each entry's own number, what is sorted by its key
  Mask frozen{std::nullopt};
  uint64_t silent = 0;
  bool by_response = false;
};

// Winners int32 [P, k] and responses [P, k], and the moments of the patches; at most four launches. `rows` [K, N] is
// the contiguous weight; where p is not 2 it is raised to powers first.
template <class S, class T>
Moments<T> contest(const char* op, const Device& device, const Tensor& x, const PatchView<S>& view, const Tensor& rows,
                   const CompeteSettings& how, int32_t* winners, T* responses, const Keys& keys);

}  // namespace hebbkern
