// sort: entries by their keys, stable. Few of them in one block's shared memory, many by CUB's radix sort.
#include "cuda/ops/sort.cuh"

#if defined(__CUDACC__)
#include <cub/device/device_radix_sort.cuh>
#else
#include "cudaemu_cub.h"
#endif

namespace hebbkern {
namespace {

constexpr int few = 4096;     // entries that one block sorts as fast as CUB's launches follow one another
constexpr int threads = 256;  // eight blocks fill a multiprocessor
constexpr int narrow = 8;     // keys between two entries that a thread steps over by itself

// Every lane of a warp calls it: `at` is where the keys above `before` up to `key` begin.
__device__ __forceinline__ void begin(int32_t* starts, int before, int key, int at) {
  const int lane = int(threadIdx.x) % 32;
  const bool far = key - before > narrow;
  for (int k = before + 1; k <= key && !far; ++k) starts[k] = at;
  unsigned left = __ballot_sync(~0u, far);
  for (; left; left &= left - 1) {
    const int from = __ffs(int(left)) - 1;
    const int low = __shfl_sync(~0u, before, from);
    const int high = __shfl_sync(~0u, key, from);
    const int spot = __shfl_sync(~0u, at, from);
    for (int k = low + 1 + lane; k <= high; k += 32) starts[k] = spot;
  }
}

__global__ void __launch_bounds__(threads) starts_kernel(const int32_t* keys, int count, int kinds, int32_t* starts) {
  const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x;
  const int before = i > 0 && i <= count ? keys[i - 1] : -1;
  const int key = i < count ? keys[i] : i == count ? kinds : before;
  begin(starts, before, key, int(i));
}

// Bitonic: key and entry in one number, 2^bits of them, so that equal keys are told apart by their entries.
__global__ void __launch_bounds__(1024)  // a compare a thread, in most steps
    few_kernel(const int32_t* keys, int count, int bits, int kinds, int32_t* sorted, int32_t* order, int32_t* starts) {
  HEBBKERN_SHARED(uint32_t, packed);
  const int size = 1 << bits, first = int(threadIdx.x), step = int(blockDim.x);
  for (int i = first; i < size; i += step) packed[i] = i < count ? uint32_t(keys[i]) << bits | uint32_t(i) : ~0u;
  __syncthreads();
  for (int run = 2; run <= size; run *= 2)
    for (int apart = run / 2; apart > 0; apart /= 2) {
      for (int pair = first; pair < size / 2; pair += step) {
        const int low = 2 * pair - (pair & (apart - 1)), high = low + apart;
        const uint32_t a = packed[low], b = packed[high];
        if ((a > b) == ((low & run) == 0)) packed[low] = b, packed[high] = a;
      }
      __syncthreads();
    }
  for (int i = first; i - first % 32 <= count; i += step) {
    const int before = i > 0 && i <= count ? int(packed[i - 1] >> bits) : -1;
    const int key = i < count ? int(packed[i] >> bits) : i == count ? kinds : before;
    begin(starts, before, key, i);
    if (i < count) sorted[i] = key, order[i] = int(packed[i] & uint32_t(size - 1));
  }
}

int bits_for(int64_t largest) {
  int bits = 1;
  while (largest >> bits) ++bits;
  return bits;
}

}  // namespace

Sorted sorted(const Device& device, const Tensor& like, const int32_t* keys, const int32_t* numbers, int64_t count,
              int64_t kinds) {
  Sorted result;
  const auto integers = [&](int64_t size) {
    result.memory.push_back(empty_like(like, {size}, ScalarType::Int));
    return pointer<int32_t>(result.memory.back());
  };
  int32_t *by_key = integers(count), *order = integers(count), *starts = integers(kinds + 1);
  result.keys = by_key;
  result.order = order;
  result.starts = starts;
  const int bits = bits_for(std::max<int64_t>(count - 1, 63));  // a warp has a pair a lane
  if (count <= few && kinds << bits <= largest_extent) {
    const int size = 1 << bits;
    launch<few_kernel>("sort.few", dim3(1), unsigned(std::min(size / 2, 1024)), size * sizeof(uint32_t), device, keys,
                       int(count), bits, int(kinds), by_key, order, starts);
    return result;
  }
  const auto sort = [&](void* memory, size_t& bytes) {
    const cudaError_t error = cub::DeviceRadixSort::SortPairs(memory, bytes, reinterpret_cast<const uint32_t*>(keys),
                                                              reinterpret_cast<uint32_t*>(by_key), numbers, order,
                                                              int(count), 0, bits_for(kinds - 1), device.stream);
    if (error != cudaSuccess) throw std::runtime_error("hebbkern: CUB's sort of what patches teach failed");
  };
  size_t bytes = 0;
  sort(nullptr, bytes);
  result.memory.push_back(empty_like(like, {int64_t(bytes)}, ScalarType::Byte));
  if (!launch_log().only_noted) sort(result.memory.back().mutable_data_ptr(), bytes);
  launch<starts_kernel>("sort.starts", dim3(unsigned(cdiv(count + 1, threads))), threads, 0, device,
                        static_cast<const int32_t*>(by_key), int(count), int(kinds), starts);
  return result;
}

}  // namespace hebbkern
