// Torch's stable ABI as the kernels use it: tensors, threads, scratch memory and dtypes.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace hebbkern {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Ints = std::vector<int64_t>;

// Asks for huge pages from 4 MiB on: a fault per 2 MiB instead of one per 4 kB.
inline void prefer_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = 4096;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(memory) + bytes;
  if (bytes >= (int64_t(1) << 22)) madvise(reinterpret_cast<void*>(first), (end - first) / page * page, MADV_HUGEPAGE);
#endif
}

[[noreturn]] inline void fail_memory(double bytes) {
  std::ostringstream text;
  text << "hebbkern: memory must suffice for what a kernel allocates, got no " << bytes / (int64_t(1) << 20) << " MiB";
  throw std::runtime_error(text.str());
}

// Raises if so much memory is not to be had. torch's allocator would print its stack before it raises.
inline void check_memory(const Ints& sizes, ScalarType dtype) {
  double bytes = dtype == ScalarType::Double || dtype == ScalarType::Long ? 8 : 4;  // of an entry, at most
  for (int64_t size : sizes) bytes *= double(size);
  if (bytes < double(int64_t(1) << 28)) return;
  void* memory = bytes < 9e18 ? std::malloc(size_t(bytes)) : nullptr;
  if (!memory) fail_memory(bytes);
  *static_cast<volatile char*>(memory) = 0;  // else a compiler may leave out both calls
  std::free(memory);
}

inline Tensor empty(const Ints& sizes, ScalarType dtype) {
  check_memory(sizes, dtype);
  Tensor fresh = torch::stable::empty({sizes.data(), sizes.size()}, dtype, std::nullopt,
                                      torch::stable::Device(torch::headeronly::DeviceType::CPU));
  prefer_huge_pages(fresh.mutable_data_ptr(), fresh.numel() * fresh.element_size());
  return fresh;
}

// While an enabled one lives, `parallel` runs everything on the calling thread: for work too small to wake others.
class SingleThread {
 public:
  explicit SingleThread(bool enabled) : before_(active()) { active() |= enabled; }
  ~SingleThread() { active() = before_; }
  SingleThread(const SingleThread&) = delete;
  SingleThread& operator=(const SingleThread&) = delete;
  static bool& active() {
    static thread_local bool single = false;
    return single;
  }

 private:
  const bool before_;
};

// Calls f(item) for every item, on as many threads as torch would use. Items are handed out one by one, so f must not
// depend on their order. An exception of f is rethrown here once every thread is back: it cannot cross the stable ABI.
template <class F>
void parallel(int64_t items, const F& f) {
  const int64_t threads = torch::stable::get_num_threads();
  if (items <= 1 || threads == 1 || SingleThread::active()) {
    for (int64_t item = 0; item < items; ++item) f(item);
    return;
  }
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr failure;
  torch::stable::parallel_for(0, items < threads ? items : threads, 1, [&](int64_t, int64_t) {
    try {
      for (int64_t item = next++; item < items && !failed; item = next++) f(item);
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

// Uninitialised memory on a cache line's boundary, in huge pages from 4 MiB on, freed at the end of the scope.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    if (count <= 0) return;
    int64_t bytes;
    if (__builtin_mul_overflow(count, int64_t(sizeof(T)), &bytes)) fail_memory(double(count) * sizeof(T));
    const bool huge = bytes >= (int64_t(1) << 22);
    if (posix_memalign(&memory_, huge ? size_t(1) << 21 : 64, bytes) != 0) fail_memory(double(bytes));
    prefer_huge_pages(memory_, bytes);
  }
  ~Scratch() { std::free(memory_); }
  Scratch(Scratch&& other) noexcept : memory_(other.memory_) { other.memory_ = nullptr; }
  Scratch& operator=(Scratch&&) = delete;
  T* get() const { return static_cast<T*>(memory_); }
  T& operator[](int64_t i) const { return get()[i]; }

 private:
  void* memory_ = nullptr;
};

// Calls f(tag of the stored type, tag of the type it is computed in).
template <class F>
void with_dtype(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Double:
      return f(double{}, double{});
    case ScalarType::BFloat16:
      return f(BFloat16{}, float{});
    case ScalarType::Half:
      return f(Half{}, float{});
    default:
      return f(float{}, float{});
  }
}

inline ScalarType result_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace hebbkern
