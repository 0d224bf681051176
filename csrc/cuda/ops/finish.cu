// finish: from the products of a dense rule to its sum, or in the same pass to the weights after the step. The
// triangular product stops at the diagonal.
#include "cuda/ops/dense_update.cuh"

namespace hebbkern {
namespace {

constexpr int threads = 128;
constexpr int depth = 16;  // neurons of a step of the triangle: two buffers of float64 stay below 48 KiB

// Up to four numbers, wide; 0 from the `left`th on.
template <class T, class S>
__device__ __forceinline__ Quad<T> some(const S* from, int left, bool at_once) {
  Quad<T> to;
  if (at_once && left >= 4) {
    const Quad<S> stored = *reinterpret_cast<const Quad<S>*>(from);
#pragma unroll
    for (int j = 0; j < 4; ++j) to.v[j] = T(wide(stored.v[j]));
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) to.v[j] = j < left ? T(wide(from[j])) : T(0);
  }
  return to;
}

// A block's SIDE x SIDE entries of tril(C) W: a thread has `rows` neurons by 4 inputs.
template <class S, class T, int SIDE>
struct Triangle {
  static constexpr int rows = SIDE * SIDE / 4 / threads, each = SIDE * depth / 4 / threads;
  struct alignas(16)
      Shared {  // C lies transposed, rows apart by what keeps quads aligned and stores off each other's banks
    T c[2][depth][SIDE + 4], w[2][depth][SIDE];
  };
  Shared& shared;
  const T* gram;
  const S* weight;
  int K, N, neuron, column;  // the block's first
  bool c_at_once, w_at_once;
  Quad<T> cs[each], ws[each];  // on their way

  __device__ __forceinline__ void fetch(int first) {
#pragma unroll
    for (int q = 0; q < each; ++q) {
      const int item = int(threadIdx.x) + q * threads;
      const int row = neuron + item / (depth / 4), other = first + item % (depth / 4) * 4;
      const int end = row < K ? row + 1 : 0;  // the diagonal is the last
      cs[q] = some<T>(gram + int64_t(row) * K + other, end - other, c_at_once);
      const int from = first + item / (SIDE / 4), to = column + item % (SIDE / 4) * 4;
      ws[q] = some<T>(weight + int64_t(from) * N + to, from < K ? N - to : 0, w_at_once);
    }
  }
  __device__ __forceinline__ void put(int buffer) {
#pragma unroll
    for (int q = 0; q < each; ++q) {
      const int item = int(threadIdx.x) + q * threads;
#pragma unroll
      for (int j = 0; j < 4; ++j) shared.c[buffer][item % (depth / 4) * 4 + j][item / (depth / 4)] = cs[q].v[j];
      *reinterpret_cast<Quad<T>*>(&shared.w[buffer][item / (SIDE / 4)][item % (SIDE / 4) * 4]) = ws[q];
    }
  }
  __device__ __forceinline__ void multiply(int buffer, T (&less)[rows][4]) const {
    const int row = int(threadIdx.x) / (SIDE / 4) * rows, to = int(threadIdx.x) % (SIDE / 4) * 4;
#pragma unroll
    for (int l = 0; l < depth; ++l) {
      T c[rows];
      if constexpr (rows % 4 == 0) {
#pragma unroll
        for (int i = 0; i < rows; i += 4) {
          const Quad<T> quad = *reinterpret_cast<const Quad<T>*>(&shared.c[buffer][l][row + i]);
#pragma unroll
          for (int j = 0; j < 4; ++j) c[i + j] = quad.v[j];
        }
      } else {
#pragma unroll
        for (int i = 0; i < rows; ++i) c[i] = shared.c[buffer][l][row + i];
      }
      const Quad<T> w = *reinterpret_cast<const Quad<T>*>(&shared.w[buffer][l][to]);
#pragma unroll
      for (int i = 0; i < rows; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) less[i][j] += c[i] * w.v[j];
    }
  }
  __device__ __forceinline__ void run(T (&less)[rows][4]) {
    const int steps = (min(K, neuron + SIDE) + depth - 1) / depth;
    fetch(0);
    put(0);
    __syncthreads();
    for (int step = 0; step < steps; ++step) {
      if (step + 1 < steps) fetch((step + 1) * depth);
      multiply(step % 2, less);
      if (step + 1 < steps) put((step + 1) % 2);
      __syncthreads();
    }
  }
};

// A row's four entries: the sum, or the step; whether the weights are finite after it.
template <class S, class T>
__device__ __forceinline__ bool conclude(const Products<T>& products, const Sink<S, T>& sink, int neuron, int column,
                                         int N, const T (&less)[4], bool at_once) {
  const int64_t at = int64_t(neuron) * N + column;
  const int left = N - column;
  const bool still = sink.frozen[neuron], whole = at_once && left >= 4;
  const T shift = products.shift ? products.shift[neuron] : T(0);
  const T factor = products.diagonal ? products.diagonal[neuron] : T(0);
  Quad<T> total = some<T>(products.gradient + at, left, at_once);
  Quad<S> weights;
  const bool needed = sink.moved || products.diagonal;
#pragma unroll
  for (int j = 0; j < 4; ++j) weights.v[j] = needed && !whole && j < left ? sink.weight[at + j] : S(0);
  if (needed && whole) weights = *reinterpret_cast<const Quad<S>*>(sink.weight + at);
  bool good = true;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    T sum = total.v[j] - shift - less[j];
    if (products.diagonal) sum -= factor * T(wide(weights.v[j]));
    total.v[j] = still ? T(0) : sum;
    if (sink.moved) weights.v[j] = sink.step(total.v[j], weights.v[j]);
    good = good && (j >= left || sink.finite(weights.v[j]));
  }
  if (whole) {
    if (sink.moved)
      *reinterpret_cast<Quad<S>*>(sink.moved + at) = weights;
    else
      *reinterpret_cast<Quad<T>*>(sink.sums + at) = total;
    return good;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (j < left) {
      if (sink.moved)
        sink.moved[at + j] = weights.v[j];
      else
        sink.sums[at + j] = total.v[j];
    }
  return good;
}

// Blocks of neurons with the longest triangle start first.
template <class S, class T, int SIDE>
__global__ void __launch_bounds__(threads)
    finish_kernel(Products<T> products, Sink<S, T> sink, int K, int N, bool c_at_once, bool at_once) {
  using Part = Triangle<S, T, SIDE>;
  __shared__ typename Part::Shared shared;
  const int across = (N + SIDE - 1) / SIDE, down = (K + SIDE - 1) / SIDE;
  const int row = (down - 1 - int(blockIdx.x) / across) * SIDE, column = int(blockIdx.x) % across * SIDE;
  T less[Part::rows][4] = {};
  if (products.gram) {
    Part part{shared, products.gram, sink.weight, K, N, row, column, c_at_once, at_once, {}, {}};
    part.run(less);
  }
  const int neuron = row + int(threadIdx.x) / (SIDE / 4) * Part::rows;
  const int to = column + int(threadIdx.x) % (SIDE / 4) * 4;
  bool good = true;
#pragma unroll
  for (int i = 0; i < Part::rows; ++i)
    if (neuron + i < K && to < N) good = conclude(products, sink, neuron + i, to, N, less[i], at_once) && good;
  if (!sink.moved) return;
  const int all = __syncthreads_and(good);
  if (threadIdx.x == 0) sink.sound[blockIdx.x] = all;
}

template <class S, class T, int SIDE>
DenseResult finish_by(const Device& device, const Products<T>& products, const Tensor& weight,
                      const OptionalTensor& frozen, std::optional<double> lr, int64_t patches) {
  const int64_t K = weight.size(0), N = weight.numel() / K, blocks = cdiv(K, SIDE) * cdiv(N, SIDE);
  DenseResult to;
  const Sink<S, T> sink = sink_of<S, T>(to, weight, frozen, lr, patches, blocks);
  const bool at_once = aligned(sink.weight, N, sizeof(S)) && aligned(products.gradient, N, sizeof(T));
  launch<finish_kernel<S, T, SIDE>>("finish", dim3(unsigned(blocks)), threads, 0, device, products, sink, int(K),
                                    int(N), aligned(products.gram, K, sizeof(T)), at_once);
  return to;
}

}  // namespace

// 64 x 64 reads an operand of the triangle 64 times less often than it is used; 32 x 32 where those are too few to give
// every multiprocessor of a large GPU a block, and for float64, whose rate they keep up with. The bits are the same.
template <class S, class T>
DenseResult finish(const Device& device, const Products<T>& products, const Tensor& weight,
                   const OptionalTensor& frozen, std::optional<double> lr, int64_t patches) {
  const int64_t K = weight.size(0), N = weight.numel() / K;
  if constexpr (sizeof(T) == 4)
    if (cdiv(K, 64) * cdiv(N, 64) >= 128) return finish_by<S, T, 64>(device, products, weight, frozen, lr, patches);
  return finish_by<S, T, 32>(device, products, weight, frozen, lr, patches);
}

#define FINISH(S, T)                                                                                         \
  template DenseResult finish<S, T>(const Device&, const Products<T>&, const Tensor&, const OptionalTensor&, \
                                    std::optional<double>, int64_t);
FINISH(float, float)
FINISH(double, double)
FINISH(BFloat16, float)
FINISH(Half, float)
#undef FINISH

static std::tuple<Tensor, Tensor> finish_op(Tensor gradient, OptionalTensor gram, OptionalTensor diagonal,
                                            OptionalTensor shift, Tensor weight, OptionalTensor frozen,
                                            std::optional<double> lr, int64_t patches) {
  const Device device(weight);
  DenseResult result;
  with_dtype(weight.scalar_type(), [&](auto stored, auto tag) {
    using S = decltype(stored);
    using T = decltype(tag);
    const Products<T> products{const_pointer<T>(gradient), const_pointer<T>(gram), const_pointer<T>(diagonal),
                               const_pointer<T>(shift)};
    result = finish<S, T>(device, products, weight, frozen, lr, patches);
  });
  return {result.out, result.sound};
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, HEBBKERN_KEY, m) { m.impl("_finish", TORCH_BOX(&finish_op)); }

}  // namespace hebbkern
