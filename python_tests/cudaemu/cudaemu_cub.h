// The calls of CUB that the kernels' host code makes, by plain loops: the same signatures, the same two calls (the
// first, without memory, says how much the second needs), and memory that is used up by the second.
#pragma once
#include <algorithm>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>

#include "cudaemu_types.h"

namespace CUDAEMU_OWN cudaemu {
// True if `temp` is to be used; else `result` is to be returned at once.
inline bool has_memory(void* temp, size_t& bytes, size_t needed, cudaError_t& result) {
  result = temp && bytes < needed ? cudaErrorInvalidValue : cudaSuccess;
  if (!temp) bytes = needed;
  if (temp && result == cudaSuccess) std::memset(temp, 0xff, needed);
  return temp && result == cudaSuccess;
}
}  // namespace CUDAEMU_OWN cudaemu

namespace cub {

struct DeviceRadixSort {
  template <class Key, class Value, class Count>
  static cudaError_t SortPairs(void* temp, size_t& temp_bytes, const Key* keys_in, Key* keys_out,
                               const Value* values_in, Value* values_out, Count num_items, int begin_bit = 0,
                               int end_bit = sizeof(Key) * 8, cudaStream_t = nullptr) {
    static_assert(std::is_unsigned_v<Key>, "the order of other keys' bits is not emulated");
    if (num_items < 0 || begin_bit < 0 || begin_bit > end_bit || end_bit > int(sizeof(Key) * 8))
      return cudaErrorInvalidValue;
    cudaError_t result;
    const size_t count = size_t(num_items);
    if (!cudaemu::has_memory(temp, temp_bytes, 256 + count * (sizeof(Key) + sizeof(Value)), result)) return result;
    const auto digits = [&](size_t i) {
      return end_bit == begin_bit
                 ? Key(0)
                 : Key(Key(keys_in[i] << (sizeof(Key) * 8 - end_bit)) >> (sizeof(Key) * 8 - end_bit + begin_bit));
    };
    std::vector<size_t> order(count);
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return digits(a) < digits(b); });
    for (size_t i = 0; i < count; ++i) keys_out[i] = keys_in[order[i]], values_out[i] = values_in[order[i]];
    return cudaSuccess;
  }
};

struct DeviceScan {
  template <class In, class Out, class Count>
  static cudaError_t ExclusiveSum(void* temp, size_t& temp_bytes, const In* in, Out* out, Count num_items,
                                  cudaStream_t = nullptr) {
    if (num_items < 0) return cudaErrorInvalidValue;
    cudaError_t result;
    if (!cudaemu::has_memory(temp, temp_bytes, 256 + size_t(num_items) / 128 * sizeof(In), result)) return result;
    std::exclusive_scan(in, in + num_items, out, In(0));
    return cudaSuccess;
  }
};

}  // namespace cub
