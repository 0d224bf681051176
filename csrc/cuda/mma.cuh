// Competitions of half types on tensor cores: products are exact, sums float32, and every response is ranked.
#pragma once

#include "compete.cuh"

namespace hebbkern {

// Winners and responses of patches and `rows` [K, N] of S, BFloat16 or Half (p = 2), in at most three launches: rows
// that are not aligned to 16 bytes are copied first, and where blocks share the neurons of a patch their lists are
// merged.
template <class S>
void compete_half(const char* op, const Device& device, const Tensor& x, const Place<S>& place, const Tensor& rows,
                  const Contest& how, const Moments<float>& known, int32_t* winners, float* responses,
                  const Keys& keys);

}  // namespace hebbkern
