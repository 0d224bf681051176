// A neuron's response to a patch, the same bits on every path that ranks in full precision: products are added one by
// one in the order of the entries, and what is known of patch and neuron enters in one way.
#pragma once

#include "cuda/ops/moments.cuh"

namespace hebbkern {

// Moments as kernels take them. Of `unit` responses (cosines of float32 and float64) both factors have norm 1 before
// they are multiplied, so that no product overflows or vanishes; half types are multiplied as they are, exactly.
template <class T>
struct Known {
  const T *offset = nullptr, *scale = nullptr, *total = nullptr, *inverse = nullptr;
  bool unit = false;
  Known() = default;
  Known(const Moments<T>& moments, bool unit)
      : offset(moments.offset), scale(moments.scale), total(moments.total), inverse(moments.inverse), unit(unit) {}
};

namespace {

// Sum of x * factor times w * factor; then less `less` of the patch times that of the neuron; then times both `after`.
template <class T>
struct Terms {
  T factor = 1, less = 0, after = 1;
};

template <class T>
__device__ __forceinline__ Terms<T> terms(const T* less, const T* times, bool unit, int at) {
  Terms<T> of;
  const T size = times ? times[at] : T(1);
  of.factor = unit ? size : T(1);
  of.after = unit ? T(1) : size;
  if (less) of.less = less[at] * of.factor;
  return of;
}

template <class T>
__device__ __forceinline__ Terms<T> of_patch(const Known<T>& known, int patch) {
  return terms(known.offset, known.scale, known.unit, patch);
}

template <class T>
__device__ __forceinline__ Terms<T> of_neuron(const Known<T>& known, int neuron) {
  return terms(known.total, known.inverse, known.unit, neuron);
}

template <class T>
__device__ __forceinline__ T added(T sum, T x, T w) {
#if defined(__CUDACC__)
  return std::fma(x, w, sum);
#else
  return sum + x * w;  // a processor without the instruction would take its time
#endif
}

// Every response to a flat patch is 0. A response that is not finite counts as +inf, so that it wins and is reported.
template <class T>
__device__ __forceinline__ T final_response(T sum, const Terms<T>& patch, const Terms<T>& neuron) {
  if (patch.factor == 0 || patch.after == 0) return 0;
  const T response = added(sum, -patch.less, neuron.less) * neuron.after * patch.after;
  return std::fabs(response) < T(INFINITY) ? response : T(INFINITY);
}

}  // namespace
}  // namespace hebbkern
