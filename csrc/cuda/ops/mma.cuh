// Competitions of half types on tensor cores: products are exact, sums float32, and every response is ranked.
#pragma once

#include "cuda/device/ranks.cuh"
#include "cuda/ops/moments.cuh"

namespace hebbkern {

// Whether shared memory has room for lists of k: everywhere for 50, for 64 where blocks may have 128 kB of it.
bool half_walks(const Device& device, int k);

// As `walk`, of rows [K, N] of S, BFloat16 or Half, in at most three launches: rows that are not aligned to 16 bytes
// are copied first, and where blocks share the neurons of a patch their lists are merged.
template <class S>
void half_walk(const Device& device, const Tensor& like, const PatchView<S>& view, const S* rows,
               const Moments<float>& known, const Mask& eligible, const Outcome<float>& outcome);

}  // namespace hebbkern
