// What the kernels of the dense rules share. hebbkern/backends/dense.py composes them with ATen's products.
#pragma once

#include "common/dense_update.h"
#include "cuda/ops/moments.cuh"

namespace hebbkern {

// The sum [K, N], or the weights after a step and, a block, whether all it wrote are finite.
struct DenseResult {
  Tensor out, sound;
};

// sum = G - shift - tril(C) W, or - diag(d) W, in one launch; a null is not taken off. With lr the step by sum /
// patches.
template <class T>
struct Products {
  const T *gradient, *gram = nullptr, *diagonal = nullptr, *shift = nullptr;  // [K, N], [K, K], [K], [K]
};
template <class S, class T>
DenseResult finish(const Device& device, const Products<T>& products, const Tensor& weight,
                   const OptionalTensor& frozen, std::optional<double> lr, int64_t patches);

// out [columns] = the sums of the columns of rows [count, columns], in a fixed order.
template <class T>
void add_rows(const Device& device, const T* rows, int64_t count, int64_t columns, T* out);

// U as ATen laid it out: strides of images, neurons and patches.
struct Layout {
  int64_t per_image, image, neuron, patch;
};
inline Layout layout_of(const Ints& numbers) { return {numbers[0], numbers[1], numbers[2], numbers[3]}; }

namespace {

// Where a kernel puts sums, or the weights after a step.
template <class S, class T>
struct Sink {
  const S* weight;  // [K, N]
  Mask frozen;
  T* sums;   // [K, N], or null:
  S* moved;  // [K, N]
  int32_t* sound;
  T rate, count;

  // Of a neuron that is frozen or not. The step is that of apply_: an entry whose step is zero keeps its bits.
  __device__ __forceinline__ S step(T total, S before) const {
    const T delta = total / count;
    return delta * rate == 0 ? before : S(hebbkern::moved(T(wide(before)), rate, delta));
  }
  __device__ __forceinline__ static bool finite(S after) { return T(wide(after)) - T(wide(after)) == 0; }
};

template <class S, class T>
Sink<S, T> sink_of(DenseResult& to, const Tensor& weight, const OptionalTensor& frozen, std::optional<double> lr,
                   int64_t patches, int64_t blocks) {
  const Ints shape = {weight.size(0), weight.numel() / weight.size(0)};
  to.out = empty_like(weight, shape, lr ? weight.scalar_type() : result_dtype(weight.scalar_type()));
  to.sound = empty_like(weight, {lr ? blocks : 0}, ScalarType::Int);
  return {const_pointer<S>(weight),
          Mask(frozen),
          lr ? nullptr : pointer<T>(to.out),
          lr ? pointer<S>(to.out) : nullptr,
          lr ? pointer<int32_t>(to.sound) : nullptr,
          T(lr.value_or(0)),
          T(patches)};
}

// Four numbers side by side, loaded or stored at once.
template <class S>
struct alignas(4 * sizeof(S) < 16 ? 4 * sizeof(S) : 16) Quad {
  S v[4];
};

inline bool aligned(const void* data, int64_t step, size_t size) {
  return step % 4 == 0 && uintptr_t(data) % std::min<size_t>(4 * size, 16) == 0;
}

// f(u), but NaN where u is not finite: an overflow must reach the sum.
template <class T>
__device__ __forceinline__ T activated(T u, Activation activation) {
  if (activation == Activation::relu) return (u > 0 ? u : T(0)) + (u - u);
  if (activation == Activation::tanh) return std::tanh(u) + (u - u);
  return u;
}

// The softmax of a patch so far: its highest response, that response's neuron, and the sum of e^((u - best) / t).
template <class T>
struct Soft {
  T best, mass;
  int32_t winner;

  __device__ __forceinline__ static Soft none() { return {-T(INFINITY), 0, 2147483647}; }
  // A NaN is never the best, but makes the mass a NaN.
  __device__ __forceinline__ void add(T u, int32_t neuron, T temperature) {
    if (u > best) {
      mass = mass * std::exp((best - u) / temperature) + 1;
      best = u;
      winner = neuron;
    } else {
      mass += std::exp((u - best) / temperature);
    }
  }
  __device__ __forceinline__ void merge(const Soft& other, T temperature) {
    const T top = other.best > best ? other.best : best;
    const T mine = best == top ? T(1) : std::exp((best - top) / temperature);
    const T theirs = other.best == top ? T(1) : std::exp((other.best - top) / temperature);
    mass = mass * mine + other.mass * theirs;
    winner = beats(other.best, other.winner, best, winner) ? other.winner : winner;
    best = top;
  }
  // r of a neuron.
  __device__ __forceinline__ T share(T u, int32_t neuron, T temperature) const {
    const T part = std::exp((u - best) / temperature) / mass;
    return (neuron == winner ? part : -part) + (u - u);
  }
};

}  // namespace
}  // namespace hebbkern
