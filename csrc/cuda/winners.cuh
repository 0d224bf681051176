// How the winners of a patch leave the warp that found them: in falling order, with the keys that accumulate groups by.
#pragma once

#include "compete.cuh"
#include "ranks.cuh"

namespace hebbkern {

template <class T>
struct Results {
  int32_t* winners;
  T* responses;
  Keys keys;
  int k, neurons;
};

namespace {

// By a full warp.
template <class T, int SLOTS>
__device__ __forceinline__ void write(const Ranks<T, SLOTS>& best, int patch, const Results<T>& to) {
  const Keys& keys = to.keys;
#pragma unroll
  for (int slot = 0; slot < SLOTS; ++slot) {
    const int rank = int(threadIdx.x) % 32 + 32 * slot;
    if (rank >= to.k) continue;
    const int64_t at = int64_t(patch) * to.k + rank;
    const int32_t name = best.neuron[slot];
    const bool somebody = best.response[slot] > lowest<T>();
    const T response = somebody ? best.response[slot] : T(0);
    to.winners[at] = somebody ? name : -1;
    to.responses[at] = response;
    if (!keys.keys) continue;
    const bool teaches = somebody && !(keys.silent >> rank & 1) && !(keys.by_response && !(response > 0)) &&
                         !keys.frozen[name];
    keys.keys[at] = !(std::fabs(response) < T(INFINITY)) ? to.neurons + 1 : teaches ? name : to.neurons;
  }
}

}  // namespace
}  // namespace hebbkern
