// Streams and launches, counts of skipped steps, and checks of values under emulation.
#include "cuda/device/device.cuh"

#include <map>
#include <mutex>

#include "common/apply.h"
#include "cuda/device/status.cuh"
#include "cuda/device/values.cuh"

#if defined(__CUDACC__)
// Declared by torch only for programs that link against its CUDA library as a whole.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);
#endif

namespace hebbkern {

LaunchLog& launch_log() {
  static LaunchLog book;
  return book;
}

#if defined(__CUDACC__)
static int property(cudaDeviceAttr attribute, int index) {
  int value = 0;
  check("device", cudaDeviceGetAttribute(&value, attribute, index));
  return value;
}

Device::Device(const Tensor& tensor) : index(tensor.get_device_index()), guard_(std::in_place, index) {
  void* current = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &current));
  stream = static_cast<cudaStream_t>(current);
  static std::atomic<int> counted[64];  // multiprocessors, once they are known
  int& known = processors;
  known = index < 64 ? counted[index].load() : 0;
  if (!known) known = property(cudaDevAttrMultiProcessorCount, index);
  if (index < 64) counted[index] = known;
}

int Device::most_shared() const { return property(cudaDevAttrMaxSharedMemoryPerBlockOptin, index); }
#else
// An H100's, or few and what every GPU has, to share work out and to run short.
Device::Device(const Tensor&) : processors(launch_log().only_noted ? 132 : 3) {}
int Device::most_shared() const { return (launch_log().only_noted ? 227 : 99) * 1024; }
#endif

struct Count {
  int* kernels = nullptr;
  int reported = 0;
};

static std::mutex& counting() {
  static std::mutex mutex;
  return mutex;
}

static std::map<int, Count>& counts() {
  static std::map<int, Count> all;
  return all;
}

int* skipped(const Device& device) {
  const std::lock_guard lock(counting());
  Count& count = counts()[device.index];
  if (!count.kernels) {
#if defined(__CUDACC__)
    void* pinned = nullptr;
    // Else no memory may be allocated while a graph is captured.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check("device", cudaThreadExchangeStreamCaptureMode(&mode));
    const cudaError_t made = cudaHostAlloc(&pinned, sizeof(int), cudaHostAllocPortable | cudaHostAllocMapped);
    check("device", cudaThreadExchangeStreamCaptureMode(&mode));
    check("device", made);
    count.kernels = static_cast<int*>(pinned);
#else
    static int here;
    count.kernels = &here;
#endif
    *count.kernels = 0;
  }
  return count.kernels;
}

int take_skipped(int index) {
  const std::lock_guard lock(counting());
  const auto entry = counts().find(index);
  if (entry == counts().end() || !entry->second.kernels) return 0;
  const int now = *static_cast<volatile int*>(entry->second.kernels), number = now - entry->second.reported;
  entry->second.reported = now;
  return number;
}

std::vector<int> counted() {
  const std::lock_guard lock(counting());
  std::vector<int> all;
  for (const auto& [index, count] : counts())
    if (count.kernels) all.push_back(index);
  return all;
}

void raise_if_skipped(const Device& device) {
  const int number = take_skipped(device.index);
  if (number)
    throw std::runtime_error("hebbkern: " + std::to_string(number) + (number == 1 ? " step was" : " steps were") +
                             " skipped on " + (readable ? "cpu" : "cuda:" + std::to_string(device.index)) +
                             ", the weights left as before: a NaN or an infinity was in the inputs, or a weight would "
                             "have overflowed");
}

void raise_if_step_skipped(const char* op, const Device& device) {
  if (values_known() && take_skipped(device.index)) fail_step(op);
}

// Calls f with every number of the tensor.
template <class F>
static void each_value(const Tensor& tensor, const F& f) {
  const auto walk = [&](auto tag) {
    using S = decltype(tag);
    const S* data = const_pointer<S>(tensor);
    std::vector<int64_t> at(tensor.dim(), 0);
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      int64_t spot = 0;
      for (size_t d = 0; d < at.size(); ++d) spot += at[d] * tensor.stride(d);
      f(double(data[spot]));
      for (int d = int(at.size()) - 1; d >= 0 && ++at[d] == tensor.size(d); --d) at[d] = 0;
    }
  };
  switch (tensor.scalar_type()) {
    case ScalarType::Int:
      return walk(int32_t{});
    case ScalarType::Long:
      return walk(int64_t{});
    default:
      with_dtype(tensor.scalar_type(), [&](auto stored, auto) { walk(stored); });
  }
}

static bool is_finite(const Tensor& tensor) {
  bool finite = true;
  each_value(tensor, [&](double value) { finite = finite && std::isfinite(value); });
  return finite;
}

void require_finite(const char* op, const char* argument, const Tensor& tensor) {
  if (values_known() && !is_finite(tensor)) fail_finite(op, argument);
}

void require_finite(const char* op, const char* argument, const OptionalTensor& tensor) {
  if (tensor) require_finite(op, argument, *tensor);
}

void require_no_overflow(const char* op, const char* sentence, const Tensor& result) {
  if (values_known() && !is_finite(result)) fail_overflow(op, sentence, result.scalar_type() == ScalarType::Double);
}

void require_indices(const char* op, const char* argument, const Tensor& named, int64_t neurons, int64_t groups) {
  if (!values_known()) return;
  int64_t at = 0;
  each_value(named, [&](double name) {
    const int64_t each = neurons / groups, group = at++ * groups / named.numel();
    if (name == -1 || (name >= double(group * each) && name < double((group + 1) * each))) return;
    fail_index(op, argument, each, int64_t(name), group, groups);
  });
}

void require_norms(const char* op, const Tensor& scale) {
  if (!values_known()) return;
  const bool wide = scale.scalar_type() == ScalarType::Double;
  each_value(scale, [&](double value) {
    const double norm = wide ? 1 / value : double(float(1 / float(value)));
    if (value != 0 && (!std::isfinite(value) || !std::isfinite(norm))) fail_norms(op, wide);
  });
}

}  // namespace hebbkern
