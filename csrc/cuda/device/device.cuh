// Included by every file of kernels: CUDA, or under g++ its emulation; a tensor's device and stream; checked launches.
//
// A kernel is launched by `launch<kernel>("its name", grid, block, shared bytes, device, arguments...)`. Kernels and
// their helpers live in anonymous namespaces. Under g++ tensors are those of the CPU, values can be looked at, and
// launches are noted down, or only noted down, for tests and reports.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define HEBBKERN_SHARED(T, name)                                           \
  extern __shared__ __align__(16) unsigned char hebbkern_dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(hebbkern_dynamic_shared)
#define HEBBKERN_KEY CUDA
#else
#include "cudaemu.h"
#define HEBBKERN_SHARED(T, name) CUDAEMU_DYNAMIC_SHARED(T, name)
#define HEBBKERN_KEY CPU
#endif

#include <atomic>

#include "common/arithmetic.h"
#include "common/checks.h"

namespace hebbkern {

#if defined(__CUDACC__)
constexpr bool readable = false;  // whether values of tensors can be looked at without waiting for the device
#else
constexpr bool readable = true;
#endif

// One launch that was noted down.
struct Launch {
  std::string kernel, code;  // its name, and the instance of the template: "moments_kernel<float, float, float>"
  int64_t grid[3], block;
  int64_t shared;  // bytes of dynamic shared memory
};

// Under g++ only. With `only_noted` nothing runs; with `unseen` values stay out of sight, as on a GPU.
struct LaunchLog {
  bool noting = false, only_noted = false, unseen = false;
  std::vector<Launch> launches;
};
LaunchLog& launch_log();

inline bool values_known() { return readable && !launch_log().only_noted && !launch_log().unseen; }

// The device of a tensor, made current while this lives, its current stream and its number of multiprocessors.
class Device {
 public:
  explicit Device(const Tensor& tensor);
  cudaStream_t stream = nullptr;
  int processors = 0;
  int index = 0;
  int most_shared() const;  // bytes that a block may have

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

// Uninitialised, contiguous, where `like` is.
inline Tensor empty_like(const Tensor& like, const Ints& sizes, ScalarType dtype) {
  return torch::stable::empty({sizes.data(), sizes.size()}, dtype, std::nullopt, like.device());
}

template <class T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class T>
const T* const_pointer(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// null where there is no tensor.
template <class T>
const T* const_pointer(const OptionalTensor& tensor) {
  return tensor ? const_pointer<T>(*tensor) : nullptr;
}

inline int64_t cdiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

#if defined(__CUDACC__)
inline void check(const char* kernel, cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error("hebbkern: the kernel " + std::string(kernel) + " failed: " + cudaGetErrorString(error));
}

template <auto kernel, class... A>
void launch(const char* name, dim3 grid, unsigned block, size_t shared, const Device& device, A... arguments) {
  if (!grid.x || !grid.y || !grid.z) return;
  static std::atomic<uint64_t> asked{0};  // a bit a device
  const uint64_t bit = uint64_t(1) << (device.index & 63);
  if (shared > 32 * 1024 && !(asked.load() & bit)) {  // a block has 48 KiB without asking, static memory included
    cudaFuncAttributes own;
    check(name, cudaFuncGetAttributes(&own, kernel));
    const int most = device.most_shared() - int(own.sharedSizeBytes);
    check(name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
    asked |= bit;
  }
  kernel<<<grid, block, shared, device.stream>>>(arguments...);
  check(name, cudaGetLastError());
}
#else
// What g++ calls `kernel` among the template arguments of launch().
inline std::string instance(const std::string& signature) {
  const std::string start = "kernel = ", space = "{anonymous}::";
  const size_t from = signature.find(start) + start.size();
  const std::string name = signature.substr(from, signature.find("; A = ", from) - from);
  const size_t within = name.find(space);
  return within == std::string::npos ? name : name.substr(within + space.size());
}

template <auto kernel, class... A>
void launch(const char* name, dim3 grid, unsigned block, size_t shared, const Device& device, A... arguments) {
  if (!grid.x || !grid.y || !grid.z) return;
  if (launch_log().noting)
    launch_log().launches.push_back(
        {name, instance(__PRETTY_FUNCTION__), {grid.x, grid.y, grid.z}, block, int64_t(shared)});
  if (launch_log().only_noted) return;
  try {
    cudaemu::launch(kernel, grid, block, shared, device.stream, arguments...);
  } catch (const std::exception& error) {
    throw std::runtime_error("hebbkern: the kernel " + std::string(name) + " failed: " + error.what());
  }
}
#endif

}  // namespace hebbkern
