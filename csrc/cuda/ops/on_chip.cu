// on_chip: the dense rules where all weights fit on chip. Responses are never written, patches are read from the image.
// A block adds up YᵀX and YᵀY, or a factor a neuron (Σ y², Σ y), of its run of patches; then the runs' sums are added
// in order.
#include "cuda/ops/dense_update.cuh"

namespace hebbkern {
namespace {

constexpr int threads = 256;
constexpr int largest = 64;        // neurons, and inputs
constexpr int tile = 32;           // patches at once: 8 threads to each, and 8 numbers of them on their way a thread
constexpr int step = largest + 4;  // between rows: aligned for 128 bits, and 8 rows lie on different banks
constexpr int most_runs = 264;     // blocks: 2 a multiprocessor of an H100; the bits must not depend on the device

template <class S, class T>
struct Gather {
  PatchView<S> view;
  const S* weight;  // [K, N]
  const T *offset, *scale;
  T* runs;  // [blocks, K N + K K or K or nothing]
  int run, K, N;
  Activation activation;
  Decay decay;
  T temperature;
};

template <class T>
struct SharedMemory {
  T w[largest][step], x[tile][step], y[tile][step];
  Tap taps[largest];  // registers are the sums'
};

// A tile of patches, on its way in registers: threads lie along patches of an image, along inputs of a sample.
template <class S>
struct Load {
  static constexpr int each = tile * largest / threads;
  S fetched[each];

  template <class T>
  __device__ __forceinline__ static int patch(const Gather<S, T>& g, int i) {
    return g.view.flat ? int(threadIdx.x) / largest + i * (threads / largest) : int(threadIdx.x) % tile;
  }
  template <class T>
  __device__ __forceinline__ static int entry(const Gather<S, T>& g, int i) {
    return g.view.flat ? int(threadIdx.x) % largest : int(threadIdx.x) / tile + i * (threads / tile);
  }
  template <class T>
  __device__ __forceinline__ void fetch(const Gather<S, T>& g, const SharedMemory<T>& shared, int first, int end) {
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int p = first + patch(g, i), n = entry(g, i);
      fetched[i] = p < end && n < g.N ? g.view.load(g.view.corner(p), shared.taps[n]) : S(0);
    }
  }
  template <class T>
  __device__ __forceinline__ void put(const Gather<S, T>& g, SharedMemory<T>& shared, int first, int end) const {
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int p = patch(g, i), n = entry(g, i);
      T value = T(wide(fetched[i]));
      if (first + p < end && n < g.N) {
        if (g.offset) value -= g.offset[first + p];
        if (g.scale) value *= g.scale[first + p];
      }
      shared.x[p][n] = value;
    }
  }
};

// U of the tile, into y: a thread has 2 patches by 4 neurons.
template <class S, class T>
__device__ __forceinline__ void respond(const Gather<S, T>& g, SharedMemory<T>& shared) {
  const int p = int(threadIdx.x) / 16 * 2, k = int(threadIdx.x) % 16;
  T u[2][4] = {};
#pragma unroll 1
  for (int n = 0; n < g.N; n += 4) {
    Quad<T> x[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) x[i] = *reinterpret_cast<const Quad<T>*>(&shared.x[p + i][n]);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const Quad<T> w = *reinterpret_cast<const Quad<T>*>(&shared.w[k + 16 * j][n]);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int l = 0; l < 4; ++l) u[i][j] += x[i].v[l] * w.v[l];
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) shared.y[p + i][k + 16 * j] = u[i][j];
}

// U becomes Y, whose terms of the decay are added up: y², with softmax r u, or y. 8 threads share a patch, each takes
// every eighth neuron.
template <class S, class T>
__device__ __forceinline__ void activate(const Gather<S, T>& g, SharedMemory<T>& shared, bool known,
                                         T (&terms)[largest / 8]) {
  const int p = int(threadIdx.x) / 8, lane = int(threadIdx.x) % 8;
  const bool soft = g.activation == Activation::softmax;
  Soft<T> mine = Soft<T>::none();
  if (soft) {
    for (int k = lane; k < g.K; k += 8) mine.add(shared.y[p][k], k, g.temperature);
    for (int apart = 4; apart > 0; apart /= 2) {
      Soft<T> other;
      other.best = __shfl_xor_sync(~0u, mine.best, apart);
      other.mass = __shfl_xor_sync(~0u, mine.mass, apart);
      other.winner = __shfl_xor_sync(~0u, mine.winner, apart);
      mine.merge(other, g.temperature);
    }
  }
#pragma unroll
  for (int i = 0; i < largest / 8; ++i) {
    const int k = lane + 8 * i;
    const T u = shared.y[p][k];
    T y = soft ? mine.share(u, k, g.temperature) : activated(u, g.activation);
    if (!known || k >= g.K) y = 0;
    shared.y[p][k] = y;
    if (by_neuron(g.decay)) terms[i] += y * (soft ? u : g.decay == Decay::diagonal ? y : T(1));
  }
}

// G += YᵀX and C += YᵀY of the tile: a thread has 4 neurons by 4 inputs, and by 4 neurons not behind them.
template <class S, class T>
__device__ __forceinline__ void multiply(const Gather<S, T>& g, const SharedMemory<T>& shared, T (&gradient)[4][4],
                                         T (&gram)[4][4]) {
  const int k = int(threadIdx.x) / 16 * 4, n = int(threadIdx.x) % 16 * 4;
  const bool inside = k < g.K && n < g.N, below = g.decay == Decay::triangular && k < g.K && n <= k;
  if (!inside && !below) return;
#pragma unroll 2  // more would take registers from the sums
  for (int p = 0; p < tile; ++p) {
    const Quad<T> y = *reinterpret_cast<const Quad<T>*>(&shared.y[p][k]);
    if (inside) {
      const Quad<T> x = *reinterpret_cast<const Quad<T>*>(&shared.x[p][n]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) gradient[i][j] += y.v[i] * x.v[j];
    }
    if (below) {
      const Quad<T> other = *reinterpret_cast<const Quad<T>*>(&shared.y[p][n]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) gram[i][j] += y.v[i] * other.v[j];
    }
  }
}

template <class S, class T>
__device__ __forceinline__ void store_sums(const Gather<S, T>& g, SharedMemory<T>& shared, const T (&gradient)[4][4],
                                           const T (&gram)[4][4], const T (&terms)[largest / 8]) {
  const int64_t size = g.K * g.N + (g.decay == Decay::triangular ? g.K * g.K : by_neuron(g.decay) ? g.K : 0);
  T *to = g.runs + blockIdx.x * size, *behind = to + g.K * g.N;
  const int t = int(threadIdx.x), k = t / 16 * 4, n = t % 16 * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (k + i < g.K && n + j < g.N) to[(k + i) * g.N + n + j] = gradient[i][j];
      if (g.decay == Decay::triangular && k + i < g.K && n + j < g.K) behind[(k + i) * g.K + n + j] = gram[i][j];
    }
  if (!by_neuron(g.decay)) return;
  __syncthreads();  // the last tile's Y was read
#pragma unroll
  for (int i = 0; i < largest / 8; ++i) shared.y[t / 8][t % 8 + 8 * i] = terms[i];
  __syncthreads();
  if (t >= g.K) return;
  T sum = 0;
  for (int p = 0; p < tile; ++p) sum += shared.y[p][t];
  behind[t] = sum;
}

template <class S, class T>
__global__ void __launch_bounds__(threads, sizeof(T) == 8 ? 1 : 2) gather_kernel(Gather<S, T> g) {
  HEBBKERN_SHARED(SharedMemory<T>, shared);
  const int first = int(blockIdx.x) * g.run, end = min(first + g.run, g.view.patches);
  Load<S> load;
  if (int(threadIdx.x) < g.N) shared->taps[threadIdx.x] = g.view.tap(int(threadIdx.x));
  __syncthreads();
  load.fetch(g, *shared, first, end);
  for (int at = int(threadIdx.x); at < largest * largest; at += threads) {
    const int k = at / largest, n = at % largest;
    shared->w[k][n] = k < g.K && n < g.N ? T(wide(g.weight[k * g.N + n])) : T(0);
  }
  T gradient[4][4] = {}, gram[4][4] = {}, terms[largest / 8] = {};
  for (int at = first; at < end; at += tile) {
    load.put(g, *shared, at, end);
    __syncthreads();
    if (at + tile < end) load.fetch(g, *shared, at + tile, end);
    respond(g, *shared);
    __syncthreads();
    activate(g, *shared, at + int(threadIdx.x) / 8 < end, terms);
    __syncthreads();
    multiply(g, *shared, gradient, gram);
    __syncthreads();
  }
  store_sums(g, *shared, gradient, gram, terms);
}

// Blocks of whole tiles, a power of two of them.
int64_t run_of(int64_t patches) {
  int64_t run = tile;
  while (run * most_runs < patches) run *= 2;
  return run;
}

template <class S, class T>
DenseResult on_chip(const char* op, const Device& device, const Tensor& x, const Tensor& weight,
                    const Geometry& geometry, Patches kind, Gather<S, T> g, const OptionalTensor& frozen,
                    std::optional<double> lr) {
  const Moments<T> known = moments<S, S, T>(op, device, x, g.view, kind);
  g.weight = const_pointer<S>(weight);
  g.offset = known.offset;
  g.scale = known.scale;
  g.run = int(run_of(g.view.patches));
  const int64_t K = g.K, N = g.N, runs = cdiv(g.view.patches, g.run);
  const int64_t size = K * N + (g.decay == Decay::triangular ? K * K : by_neuron(g.decay) ? K : 0);
  const ScalarType dtype = result_dtype(x.scalar_type());
  const Tensor rows = empty_like(x, {runs, size}, dtype);
  g.runs = pointer<T>(rows);
  launch<gather_kernel<S, T>>("on_chip", dim3(unsigned(runs)), threads, sizeof(SharedMemory<T>), device, g);
  Tensor sums = rows;
  if (runs > 1) {
    sums = empty_like(x, {size}, dtype);
    add_rows<T>(device, g.runs, runs, size, pointer<T>(sums));
  }
  const T *gradient = const_pointer<T>(sums), *behind = gradient + K * N;
  const Products<T> products{gradient, g.decay == Decay::triangular ? behind : nullptr,
                             by_neuron(g.decay) ? behind : nullptr};
  return finish<S, T>(device, products, weight, frozen, lr, geometry.patches());
}

}  // namespace

static std::tuple<Tensor, Tensor> on_chip_op(Tensor x, Ints stride, Ints padding, Ints dilation, Tensor weight,
                                             std::string name, std::string activation, std::string decay,
                                             double temperature, std::string patches, OptionalTensor frozen,
                                             std::optional<double> lr) {
  const Device device(x);
  const char* op = name.c_str();
  const Geometry g = check_layer(op, x, weight, stride, padding, dilation);
  DenseResult result;
  with_dtype(x.scalar_type(), [&](auto stored, auto tag) {
    using S = decltype(stored);
    using T = decltype(tag);
    const Gather<S, T> gather{PatchView<S>(op, x, g),
                              nullptr,
                              nullptr,
                              nullptr,
                              nullptr,
                              0,
                              int(g.neurons),
                              int(g.inputs()),
                              check_activation(op, activation),
                              check_decay(op, decay),
                              T(temperature)};
    result = on_chip<S, T>(op, device, x, weight, g, check_patches(op, patches), gather, frozen, lr);
  });
  return {result.out, result.sound};
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, HEBBKERN_KEY, m) { m.impl("_on_chip", TORCH_BOX(&on_chip_op)); }

}  // namespace hebbkern
