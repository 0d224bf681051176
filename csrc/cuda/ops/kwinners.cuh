// Keys that are ordered as floats are, and how a warp finds the k highest of a row in its registers.
#pragma once

#include <limits>

#include "cuda/device/patch_view.cuh"

namespace hebbkern {
namespace {

constexpr int all_equal = std::numeric_limits<int32_t>::max();  // of those equal to the k-th highest

// Slices along the dimension, "rows": entry i of row r is y[r / near * y_far + r % near * y_near + i * y_along].
struct Lines {
  int rows, entries;
  Divisor near;
  int64_t y_far, y_near, y_along, out_far, out_along;
  __device__ __forceinline__ int64_t of_y(int row) const {
    return near.quotient(row) * y_far + near.remainder(row) * y_near;
  }
  __device__ __forceinline__ int64_t of_out(int row) const {
    return near.quotient(row) * out_far + near.remainder(row);
  }
  bool columns() const { return near.divisor > 1; }
};

// Ordered as the floats of these bits, zeros of either sign equal; 0 is below them all.
template <class B>
struct Order {
  using Key = std::conditional_t<sizeof(B) == 8, uint64_t, uint32_t>;
  static constexpr int bits = 8 * sizeof(B);
  static constexpr Key sign = Key(1) << (bits - 1);
  static __device__ __forceinline__ Key key(B b) { return b & sign ? sign - (Key(b) & (sign - 1)) : sign + Key(b); }
  static __device__ __forceinline__ B bits_of(Key key, bool negative) {
    return B(negative ? (sign - key) | sign : key - sign);
  }
};

// How many entries a load of 128 bits brings.
template <class B>
constexpr int group = 16 / sizeof(B);

template <class B>
__device__ __forceinline__ void load_group(const B* from, B (&to)[group<B>]) {
  const uint4 four = *reinterpret_cast<const uint4*>(from);
  const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
  for (int i = 0; i < group<B>; ++i) {
    if constexpr (sizeof(B) == 2) to[i] = B(words[i / 2] >> (16 * (i % 2)));
    if constexpr (sizeof(B) == 4) to[i] = words[i];
    if constexpr (sizeof(B) == 8) to[i] = words[2 * i] | B(words[2 * i + 1]) << 32;
  }
}

template <class B>
__device__ __forceinline__ void store_group(B* to, const B (&from)[group<B>]) {
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < group<B>; ++i) {
    if constexpr (sizeof(B) == 2) words[i / 2] |= uint32_t(from[i]) << (16 * (i % 2));
    if constexpr (sizeof(B) == 4) words[i] = from[i];
    if constexpr (sizeof(B) == 8) words[2 * i] = uint32_t(from[i]), words[2 * i + 1] = uint32_t(from[i] >> 32);
  }
  // By name: a plain assignment is taken apart into four stores.
  __stcg(reinterpret_cast<uint4*>(to), uint4{words[0], words[1], words[2], words[3]});
}

// The entries that are kept: keys above the threshold, and of those equal to it the first `room`, or all.
template <class Key>
struct Cut {
  Key threshold;
  int room;
  __device__ __forceinline__ bool keeps(Key key, int equals_before) const {
    return key > threshold || (key == threshold && equals_before < room);
  }
};

// Of a row in a warp's registers; lane l's slot s is entry (s / EACH * 32 + l) * EACH + s % EACH, 0 where there is
// none.
template <class B, int SLOTS, int EACH, class Key>
__device__ __forceinline__ Cut<Key> cut_in_warp(const Key (&keys)[SLOTS], int entries, int k) {
  Key threshold = 0;
  int above = 0;
  for (int bit = Order<B>::bits - 1; bit >= 0; --bit) {
    const Key higher = threshold | Key(1) << bit;
    int count = 0;
#pragma unroll
    for (int slot = 0; slot < SLOTS; slot += EACH)
      if (slot * 32 < entries)
#pragma unroll
        for (int i = 0; i < EACH; ++i) count += keys[slot + i] >= higher;
    count = __reduce_add_sync(~0u, count);
    if (count >= k)
      threshold = higher;
    else
      above = count;
    if (count == k) return {threshold, all_equal};
  }
  return {threshold, k - above};
}

// A bit a slot: whether it is one of the k highest.
template <class B, int SLOTS, int EACH, class Key>
__device__ __forceinline__ uint32_t kept_in_warp(const Key (&keys)[SLOTS], int entries, int k) {
  const Cut<Key> cut = cut_in_warp<B, SLOTS, EACH>(keys, entries, k);
  const unsigned lower_lanes = (1u << threadIdx.x % 32) - 1;
  uint32_t kept = 0;
  int before = 0;  // equal to the threshold, in the groups before
#pragma unroll
  for (int slot = 0; slot < SLOTS; slot += EACH) {
    if (slot * 32 >= entries) break;
    int mine = before;
    if (cut.room != all_equal)
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const unsigned equal = __ballot_sync(~0u, keys[slot + i] == cut.threshold);
        mine += __popc(equal & lower_lanes);
        before += __popc(equal);
      }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      if (cut.room == all_equal ? keys[slot + i] >= cut.threshold : cut.keeps(keys[slot + i], mine))
        kept |= 1u << (slot + i);
      mine += keys[slot + i] == cut.threshold;
    }
  }
  return kept;
}

}  // namespace
}  // namespace hebbkern
