// The k best so far, in a warp's registers: rank r lies in lane r % 32, slot r / 32, strongest first; and where
// they go in the end.
#pragma once

#include "cuda/ops/compete.cuh"

namespace hebbkern {

// Where a contest's winners go.
template <class T>
struct Outcome {
  int32_t* winners;  // [P, k]
  T* responses;      // [P, k]
  Keys keys;
  int k, neurons;

  // `neuron` won rank `rank` of `patch` with this response, or none did where it names none.
  __device__ __forceinline__ void write(int patch, int rank, T response, int32_t neuron) const {
    const bool somebody = neuron >= 0 && neuron < neurons;
    const int64_t at = int64_t(patch) * k + rank;
    const T value = somebody ? response : T(0);
    winners[at] = somebody ? neuron : -1;
    responses[at] = value;
    if (!keys.keys) return;
    bool teaches = somebody && !(keys.silent >> rank & 1) && !(keys.by_response && !(value > 0));
    if (teaches && keys.frozen[neuron]) teaches = false;
    const bool finite = (value < 0 ? -value : value) < T(INFINITY);
    keys.keys[at] = !finite ? neurons + 1 : teaches ? neuron : neurons;
    keys.numbers[at] = int32_t(at);
  }
};

namespace {

constexpr int32_t no_neuron = 2147483647;  // above every neuron, so that every neuron beats it among equals

// Whether the lane's patch, if it is `there`, is blank, so that no neuron wins it. `scale` is what is known of patches
// that are not raw. A raw patch is read again, by the whole warp, only where the strongest response to it is 0.
template <class S, class T>
__device__ __forceinline__ bool is_blank(const PatchView<S>& view, const T* scale, int patch, bool there, T strongest) {
  if (scale) return there && scale[patch] == 0;
  bool blank = false;
  for (unsigned left = __ballot_sync(~0u, there && strongest == 0); left; left &= left - 1) {
    const int from = __ffs(int(left)) - 1;
    const bool zeros = all_zeros(view, __shfl_sync(~0u, patch, from));
    if (int(threadIdx.x) % 32 == from) blank = zeros;
  }
  return blank;
}

template <class T>
__device__ __forceinline__ T lowest() {
  return -T(INFINITY);
}

// SLOTS: 1 for up to 32 ranks, 2 for up to 64. Every lane of a full warp calls every function.
template <class T, int SLOTS>
struct Ranks {
  T response[SLOTS];
  int32_t neuron[SLOTS];

  __device__ __forceinline__ Ranks() {
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) response[slot] = lowest<T>(), neuron[slot] = no_neuron;
  }

  // Rank r's, in every lane.
  __device__ __forceinline__ T response_of(int rank) const {
    const T first = __shfl_sync(~0u, response[0], rank % 32);
    if constexpr (SLOTS == 1)
      return first;
    else {
      const T second = __shfl_sync(~0u, response[1], rank % 32);
      return rank < 32 ? first : second;
    }
  }
  __device__ __forceinline__ int32_t neuron_of(int rank) const {
    const int32_t first = __shfl_sync(~0u, neuron[0], rank % 32);
    if constexpr (SLOTS == 1)
      return first;
    else {
      const int32_t second = __shfl_sync(~0u, neuron[1], rank % 32);
      return rank < 32 ? first : second;
    }
  }

  // Puts in one neuron, the same in every lane.
  __device__ __forceinline__ void insert(T value, int32_t name) {
    const int lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int slot = SLOTS - 1; slot >= 0; --slot) {
      const bool ahead = beats(response[slot], neuron[slot], value, name);
      const int place = __popc(__ballot_sync(~0u, ahead));  // among this slot's
      T shifted = __shfl_up_sync(~0u, response[slot], 1);
      int32_t shifted_name = __shfl_up_sync(~0u, neuron[slot], 1);
      bool moves = lane >= place;
      if (slot > 0) {  // what falls out of the slot before
        const T carried = __shfl_sync(~0u, response[0], 31);
        const int32_t carried_name = __shfl_sync(~0u, neuron[0], 31);
        const bool full = __all_sync(~0u, beats(response[0], neuron[0], value, name));
        if (!full) {
          if (lane == 0) shifted = carried, shifted_name = carried_name;
          moves = true;
        } else if (lane == place) {
          shifted = value, shifted_name = name;
        }
      } else if (lane == place) {
        shifted = value, shifted_name = name;
      }
      if (moves) response[slot] = shifted, neuron[slot] = shifted_name;
    }
  }

  // Each lane offers a neuron, or none: `there` false. The order in which neurons are offered makes no difference.
  __device__ __forceinline__ void offer(T value, int32_t name, bool there, int k) {
    T worst = response_of(k - 1);
    int32_t last = neuron_of(k - 1);
    unsigned wanted = __ballot_sync(~0u, there && beats(value, name, worst, last));
    while (wanted) {  // few are, once the list is warm
      const int from = __ffs(int(wanted)) - 1;
      const T strong = __shfl_sync(~0u, value, from);
      insert(strong, __shfl_sync(~0u, name, from));
      worst = response_of(k - 1);
      last = neuron_of(k - 1);
      wanted &= __ballot_sync(~0u, there && beats(value, name, worst, last));
      wanted &= ~(1u << from);
    }
  }
};

}  // namespace
}  // namespace hebbkern
