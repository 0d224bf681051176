// Rows of weights as the kernels of a step see them: a team of threads to a row, and to a thread a pack of
// its entries at a time.
//
// Rows are dealt out in groups that depend on shapes alone, so that neither a bit nor a verdict depends on the device.
#pragma once

#include "cuda/ops/apply.cuh"

namespace hebbkern {
namespace {

constexpr int block_threads = 256;  // a team at most: a row of 1024 float32 is read at once
constexpr int most_groups = 1024;   // what each is found to hold every block of the step reads, 4 of them a thread

// Entries of a row that one thread reads at once: 16 bytes of sums.
template <class S>
constexpr int pack = sizeof(S) == 8 ? 2 : 4;

template <class A, int V>
struct alignas(V * sizeof(A)) Pack {
  A at[V];
};

// Where the entries of a weight lie that is seen as [K, N].
template <class S>
struct Matrix {
  S* data;
  int64_t rows, row, channel, line, pixel;  // how many; strides
  int inputs;
  bool dense = true;  // entries of a row lie side by side
  Divisor area, width;

  Matrix(const char* op, const Tensor& weight)
      : data(pointer<S>(weight)),
        rows(weight.size(0)),
        row(weight.stride(0)),
        channel(weight.stride(1)),
        line(weight.dim() == 4 ? weight.stride(2) : 0),
        pixel(weight.dim() == 4 ? weight.stride(3) : 0),
        inputs(int(weight.numel() / rows)),
        area(weight.dim() == 4 ? weight.size(2) * weight.size(3) : 1),
        width(weight.dim() == 4 ? weight.size(3) : 1) {
    if (weight.numel() / rows > int64_t(1) << 30)
      fail(op, "weight must have at most 2^30 inputs a neuron, got ", weight.numel() / rows);
    int64_t apart = 1;
    for (int64_t d = weight.dim() - 1; d > 0; --d) {
      dense &= weight.size(d) == 1 || weight.stride(d) == apart;
      apart *= weight.size(d);
    }
  }

  // Whether each thread's entries can be read and written as one.
  bool in_packs() const {
    return dense && inputs % pack<S> == 0 && row % pack<S> == 0 && uintptr_t(data) % (pack<S> * sizeof(S)) == 0;
  }
  __device__ __forceinline__ S* spot(int64_t j, int n) const {
    if (dense) return data + j * row + n;
    const int c = area.quotient(n), within = n - c * int(area.divisor), i = width.quotient(within);
    return data + j * row + c * channel + i * line + (within - i * int(width.divisor)) * pixel;
  }
};

// Entries n and following of row j, 0 beyond its end.
template <bool PACKED, class S>
__device__ __forceinline__ Pack<S, pack<S>> load(const Matrix<S>& weight, int64_t j, int n) {
  Pack<S, pack<S>> all;
  if constexpr (PACKED) {
    all = *reinterpret_cast<const Pack<S, pack<S>>*>(weight.data + j * weight.row + n);
  } else {
#pragma unroll
    for (int i = 0; i < pack<S>; ++i) all.at[i] = n + i < weight.inputs ? *weight.spot(j, n + i) : S(0.f);
  }
  return all;
}

// The same of one row that lies side by side.
template <bool PACKED, int V, class A>
__device__ __forceinline__ Pack<A, V> load(const A* row, int n, int inputs) {
  Pack<A, V> all;
  if constexpr (PACKED) {
    all = *reinterpret_cast<const Pack<A, V>*>(row + n);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) all.at[i] = n + i < inputs ? row[n + i] : A(0.f);
  }
  return all;
}

template <bool PACKED, class S>
__device__ __forceinline__ void store(const Matrix<S>& weight, int64_t j, int n, const Pack<S, pack<S>>& all) {
  if constexpr (PACKED) {
    *reinterpret_cast<Pack<S, pack<S>>*>(weight.data + j * weight.row + n) = all;
  } else {
#pragma unroll
    for (int i = 0; i < pack<S>; ++i)
      if (n + i < weight.inputs) *weight.spot(j, n + i) = all.at[i];
  }
}

template <bool PACKED, int V, class A>
__device__ __forceinline__ void store(A* row, int n, int inputs, const Pack<A, V>& all) {
  if constexpr (PACKED) {
    *reinterpret_cast<Pack<A, V>*>(row + n) = all;
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (n + i < inputs) row[n + i] = all.at[i];
  }
}

// How rows are dealt out.
struct RowSplit {
  int team;   // threads to a row, a power of two
  int rows;   // of a group, a multiple of what a block does at once
  int count;  // groups

  template <class S>
  explicit RowSplit(const Matrix<S>& weight) {
    team = 8;  // fewer would read less than a sector of 32 bytes side by side
    while (team < block_threads && team * pack<S> < weight.inputs) team *= 2;
    const int at_once = block_threads / team;
    rows = at_once * int(cdiv(weight.rows, int64_t(at_once) * most_groups));
    count = int(cdiv(weight.rows, rows));
  }
  dim3 grid(const Device& device) const { return {unsigned(std::min(count, 8 * device.processors))}; }

  // Calls f(row, whether there is such a row, this thread's number in its team); all threads of a block alike.
  template <class F>
  __device__ __forceinline__ void each_row(int group, int64_t of, const F& f) const {
    const int mine = int(threadIdx.x) / team, member = int(threadIdx.x) % team;
    for (int first = 0; first < rows; first += block_threads / team) {
      const int64_t j = int64_t(group) * rows + first + mine;
      f(j, j < of, member);
    }
  }
};

struct Sum {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a + b;
  }
};

struct Highest {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a > b ? a : b;
  }
};

// All values of a team joined, in each of its threads; every thread of the block calls it.
template <class A, class F>
__device__ __forceinline__ A of_team(A value, int team, const F& join) {
  __shared__ A of_warps[block_threads / 32];
  for (int apart = (team < 32 ? team : 32) / 2; apart > 0; apart /= 2)
    value = join(value, __shfl_xor_sync(~0u, value, apart));
  if (team <= 32) return value;
  const int warp = int(threadIdx.x) / 32, first = warp / (team / 32) * (team / 32);
  __syncthreads();  // what was joined before has been read
  if (threadIdx.x % 32 == 0) of_warps[warp] = value;
  __syncthreads();
  value = of_warps[first];
  for (int other = 1; other < team / 32; ++other) value = join(value, of_warps[first + other]);
  return value;
}

}  // namespace
}  // namespace hebbkern
