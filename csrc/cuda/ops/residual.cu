// residual: Sanger's sum with fewer patches than neurons, without a matrix of neurons x neurons. With R = X at first,
// block b of neurons after block: sum_b = Y_bᵀ R - tril(Y_bᵀ Y_b) W_b, then R -= Y_b W_b.
#include "cuda/device/ptx.cuh"
#include "cuda/ops/dense_update.cuh"

namespace hebbkern {
namespace {

// As hebbkern/dense.py estimates with. A thread of 256 has an input of 4 patches, and of one neuron of the block.
constexpr int columns = 16, chunk = 64, block = 16;
constexpr int threads = 256, warps = threads / 32;
constexpr int each = chunk * columns / threads;
constexpr int stages = 4;  // blocks of neurons on chip or on their way there: one passes by in less than a load takes

// What a block of neurons needs of a chunk of patches, packed for copies of 16 bytes.
template <class T>
struct alignas(16) Record {
  T y[chunk][block];     // 0 beyond the last patch and neuron
  T gram[block][block];  // tril(YᵀY)
};

// Y as the layer has it -> records [chunks][blocks of neurons], one to a block of threads.
template <class T>
__global__ void __launch_bounds__(threads)
    pack_kernel(const T* y, Layout layout, Divisor per_image, Record<T>* records, int blocks, int P, int K) {
  __shared__ T tile[chunk][block + 1];
  const int t = int(threadIdx.x), first = int(blockIdx.x) / blocks * chunk, neuron = int(blockIdx.x) % blocks * block;
  Record<T>& to = records[blockIdx.x];
#pragma unroll
  for (int i = 0; i < chunk * block / threads; ++i) {
    const int at = t + i * threads;  // lanes lie along what lies side by side
    const int p = layout.neuron == 1 ? at / block : at % chunk, k = layout.neuron == 1 ? at % block : at / chunk;
    const int patch = first + p, image = per_image.quotient(patch);
    const int64_t spot = image * layout.image + (patch - image * layout.per_image) * layout.patch;
    tile[p][k] = patch < P && neuron + k < K ? y[spot + (neuron + k) * layout.neuron] : T(0);
  }
  __syncthreads();
  for (int at = t; at < chunk * block; at += threads) to.y[at / block][at % block] = tile[at / block][at % block];
  const int i = t / block, j = t % block;
  T sum = 0;
  for (int p = 0; p < chunk; ++p) sum += tile[p][i] * tile[p][j];
  to.gram[i][j] = j <= i ? sum : T(0);
}

template <class S, class T>
struct Walk {
  PatchView<S> view;
  const T *offset, *scale;
  const Record<T>* records;
  T* partial;  // [K, N], the sums of the chunks before; null with one chunk
  int chunks, blocks, K, N;
};

template <class T>
struct SharedMemory {
  Record<T> records[stages];
  T w[2][block][columns];
  // Partial sums of warps; rows of the two halves of a warp lie on different banks.
  T parts[warps][block][columns + 2];
};

template <class T>
__device__ __forceinline__ void copy(SharedMemory<T>& shared, const Record<T>* records, int step, int steps) {
  if (step < steps) {
    const char* from = reinterpret_cast<const char*>(records + step);
    char* to = reinterpret_cast<char*>(&shared.records[step % stages]);
    for (int at = int(threadIdx.x) * 16; at < int(sizeof(Record<T>)); at += threads * 16)
      cp_async_zfill<16>(to + at, from + at, 16);
  }
  cp_async_commit();  // also of nothing: so many groups later a record is there
}

// The residual of this thread's patches and input is at first what centring and scaling make of them.
template <class S, class T>
__device__ __forceinline__ void open(const Walk<S, T>& walk, int first, int column, T (&rest)[each]) {
  const Tap tap = walk.view.tap(min(column, walk.N - 1));
#pragma unroll
  for (int i = 0; i < each; ++i) {
    const int patch = first + int(threadIdx.x) / columns * each + i;
    rest[i] = 0;
    if (patch >= walk.view.patches || column >= walk.N) continue;
    T value = T(wide(walk.view.load(walk.view.corner(patch), tap)));
    if (walk.offset) value -= walk.offset[patch];
    rest[i] = walk.scale ? value * walk.scale[patch] : value;
  }
}

// Takes a block of neurons off the residual, and leaves what its patches add to YᵀR in `parts`.
template <class T>
__device__ __forceinline__ void pass(SharedMemory<T>& shared, const Record<T>& record, const T (&w)[block],
                                     T (&rest)[each]) {
  const int t = int(threadIdx.x), column = t % columns, patch = t / columns * each;
  T sums[block] = {};
#pragma unroll
  for (int i = 0; i < each; ++i) {
    T less = 0;
#pragma unroll
    for (int k = 0; k < block; k += 4) {
      const Quad<T> y = *reinterpret_cast<const Quad<T>*>(&record.y[patch + i][k]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[k + j] += y.v[j] * rest[i];
        less += y.v[j] * w[k + j];
      }
    }
    rest[i] -= less;
  }
  const bool upper =
      t % 32 >= columns;  // a warp's halves have the same inputs: each keeps the sums of half the neurons
#pragma unroll
  for (int k = 0; k < block / 2; ++k) {
    const T kept = upper ? sums[k + block / 2] : sums[k], given = upper ? sums[k] : sums[k + block / 2];
    const T taken = __shfl_xor_sync(~0u, given, columns);
    shared.parts[t / 32][k + (upper ? block / 2 : 0)][column] = kept + taken;
  }
}

// This thread's entry of the block's sum in this chunk.
template <class T>
__device__ __forceinline__ T sum_of(const SharedMemory<T>& shared, const Record<T>& record, const T (&w)[block]) {
  const int row = int(threadIdx.x) / columns, column = int(threadIdx.x) % columns;
  T sum = 0, less = 0;
#pragma unroll
  for (int warp = 0; warp < warps; ++warp) sum += shared.parts[warp][row][column];
#pragma unroll
  for (int k = 0; k < block; k += 4) {
    const Quad<T> gram = *reinterpret_cast<const Quad<T>*>(&record.gram[row][k]);
#pragma unroll
    for (int j = 0; j < 4; ++j) less += gram.v[j] * w[k + j];
  }
  return sum - less;
}

// Keeps an entry's sum for the next chunk, or after the last stores the sum or the step. Returns whether the new weight
// is finite.
template <class S, class T>
__device__ __forceinline__ bool conclude(const Walk<S, T>& walk, const Sink<S, T>& sink, int part, int neuron,
                                         int column, T total, S before) {
  const int64_t at = int64_t(neuron) * walk.N + column;
  if (part > 0) total += walk.partial[at];
  if (part + 1 < walk.chunks) {
    walk.partial[at] = total;
    return true;
  }
  if (sink.frozen[neuron]) total = 0;
  if (sink.sums) {
    sink.sums[at] = total;
    return true;
  }
  const S after = sink.step(total, before);
  sink.moved[at] = after;
  return sink.finite(after);
}

// A block of threads owns 16 inputs; the residual of a chunk of patches stays in registers while the neurons pass by.
// Two of them a multiprocessor: usual layers have no more, and one hides the waits of the other.
template <class S, class T>
__global__ void __launch_bounds__(threads, 2) residual_kernel(Walk<S, T> walk, Sink<S, T> sink) {
  HEBBKERN_SHARED(SharedMemory<T>, shared);
  const int row = int(threadIdx.x) / columns, column = int(blockIdx.x) * columns + int(threadIdx.x) % columns;
  const int steps = walk.chunks * walk.blocks;
  const auto weight = [&](int step) {
    const int neuron = step % walk.blocks * block + row;
    const bool there = step < steps && neuron < walk.K && column < walk.N;
    return there ? sink.weight[int64_t(neuron) * walk.N + column] : S(0);
  };
  for (int step = 0; step < stages - 1; ++step) copy(*shared, walk.records, step, steps);
  S now = weight(0), next = weight(1);
  T rest[each] = {};
  bool good = true;
  for (int step = 0; step < steps; ++step) {
    const S before = now;
    now = next;
    auto& tile = shared->w[step % 2];
    tile[row][threadIdx.x % columns] = T(wide(before));
    cp_async_wait<stages - 2>();
    __syncthreads();
    copy(*shared, walk.records, step + stages - 1, steps);
    next = weight(step + 2);
    const int number = step % walk.blocks, part = step / walk.blocks;
    if (number == 0) open(walk, part * chunk, column, rest);
    const Record<T>& record = shared->records[step % stages];
    T w[block];
#pragma unroll
    for (int k = 0; k < block; ++k) w[k] = tile[k][threadIdx.x % columns];
    pass(*shared, record, w, rest);
    __syncthreads();
    const T total = sum_of(*shared, record, w);
    const int neuron = number * block + row;
    if (neuron < walk.K && column < walk.N) good = conclude(walk, sink, part, neuron, column, total, before) && good;
  }
  if (!sink.moved) return;
  const int all = __syncthreads_and(good);
  if (threadIdx.x == 0) sink.sound[blockIdx.x] = all;
}

template <class S, class T>
DenseResult residual(const Device& device, const Tensor& y, const Layout& layout, const Tensor& weight,
                     const OptionalTensor& frozen, std::optional<double> lr, Walk<S, T> walk) {
  const int P = walk.view.patches, K = walk.K, N = walk.N;
  walk.chunks = int(cdiv(P, chunk));
  walk.blocks = int(cdiv(K, block));
  const int64_t records = int64_t(walk.chunks) * walk.blocks, tiles = cdiv(N, columns);
  if (records > largest_extent) fail("dense_update", "x must have fewer patches times neurons, got ", P, " times ", K);
  const ScalarType dtype = y.scalar_type();
  const Tensor packed = empty_like(y, {records, int64_t(sizeof(Record<T>) / sizeof(T))}, dtype);
  const Tensor partial = empty_like(y, {walk.chunks > 1 ? K : 0, N}, dtype);
  walk.records = pointer<Record<T>>(packed);
  walk.partial = pointer<T>(partial);
  DenseResult to;
  const Sink<S, T> sink = sink_of<S, T>(to, weight, frozen, lr, P, tiles);
  launch<pack_kernel<T>>("residual.pack", dim3(unsigned(records)), threads, 0, device, const_pointer<T>(y), layout,
                         Divisor(layout.per_image), pointer<Record<T>>(packed), walk.blocks, P, K);
  launch<residual_kernel<S, T>>("residual", dim3(unsigned(tiles)), threads, sizeof(SharedMemory<T>), device, walk,
                                sink);
  return to;
}

}  // namespace

static std::tuple<Tensor, Tensor> residual_op(Tensor x, Ints stride, Ints padding, Ints dilation, Tensor y, Ints layout,
                                              OptionalTensor offset, OptionalTensor scale, Tensor weight,
                                              OptionalTensor frozen, std::optional<double> lr) {
  const Device device(x);
  const Geometry g = check_layer("dense_update", x, weight, stride, padding, dilation);
  DenseResult result;
  with_dtype(x.scalar_type(), [&](auto stored, auto tag) {
    using S = decltype(stored);
    using T = decltype(tag);
    const Walk<S, T> walk{PatchView<S>("dense_update", x, g),
                          const_pointer<T>(offset),
                          const_pointer<T>(scale),
                          nullptr,
                          nullptr,
                          0,
                          0,
                          int(g.neurons),
                          int(g.inputs())};
    result = residual<S, T>(device, y, layout_of(layout), weight, frozen, lr, walk);
  });
  return {result.out, result.sound};
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, HEBBKERN_KEY, m) { m.impl("_residual", TORCH_BOX(&residual_op)); }

}  // namespace hebbkern
